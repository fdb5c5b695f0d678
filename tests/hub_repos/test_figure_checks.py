"""A figures' record of several images, with a twin, of two classes; the card's checks are in test_verify.py."""

import json
from pathlib import Path

import numpy as np
import pytest

from hub_repos.figure_checks import check_per_image, check_results_file, loaded_repository, read_rows, snippets
from training.evaluate import Scores
from training.results import write_results

COMMITTED = sorted(Path(__file__).parents[2].glob("hub_repos/*/results.json"))


def write(folder, classes=1, twins=("c",), max_samples=None, absent=False):
    """results.json and per_image.csv of one validation and three test images, 10 x 20; the last class may lack."""
    rng = np.random.default_rng(0)
    scores = {}
    for part, names in (("validation", ["v"]), ("test", ["a", "b", "c"])):
        counts = [rng.integers(1, 50, (classes, 4)) for _ in names]
        for of_image in counts if absent else ():
            of_image[-1, [0, 2]] = 0
        losses = rng.uniform(0.1, 1, len(names)).tolist()
        class_names = [f"class {number}" for number in range(1, classes + 1)]
        scores[part] = Scores(names, [(10, 20)] * len(names), counts, losses, class_names=class_names)
    settings = {} if max_samples is None else {"max_samples": str(max_samples)}
    sizes = {"train": 9, "validation": 1, "test": 3 if max_samples is None else 8}
    results = {
        "run": {"name": "x", "model_type": "unet", "settings": settings, "command": "accelerate launch '[1]'"},
        "data": {"source": "x", "split": "own", "split_seed": 42, "sizes": sizes, "sha256": "0" * 64}
        | {"twins": list(twins)},
        "environment": {"device": "cpu: x (R)", "cores": 2, "python": "3", "torch": "2", "transformers": "5"},
        "cost": {},
    }
    write_results(folder, results, scores, twins)
    labels = {str(number): name for number, name in enumerate(["background", *class_names])}
    (folder / "config.json").write_text(json.dumps({"model_type": "unet", "id2label": labels}))
    return folder


def change(folder, old, new):
    text = (folder / "per_image.csv").read_text()
    assert text.count(old) == 1
    (folder / "per_image.csv").write_text(text.replace(old, new))


def change_results(folder, value, *place):
    results = json.loads((folder / "results.json").read_text())
    inner = results
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    (folder / "results.json").write_text(json.dumps(results))


@pytest.mark.parametrize(
    "options", [{}, {"classes": 2}, {"twins": ()}, {"twins": ("a", "b", "c")}, {"max_samples": 3}], ids=str
)
def test_what_write_results_writes_agrees(options, tmp_path):
    write(tmp_path, **options)
    check_results_file(tmp_path)
    check_per_image(tmp_path)


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.parent.name)
def test_committed_results_agree_with_their_rows(path):
    check_per_image(path.parent)


def test_a_row_is_read_with_its_counts_by_class(tmp_path):
    rows = read_rows(write(tmp_path, classes=2))
    assert [(row["name"], row["part"], row["twin"]) for row in rows] == [
        ("v", "validation", False),
        ("a", "test", False),
        ("b", "test", False),
        ("c", "test", True),
    ]
    assert all(row["counts"].shape == (2, 4) for row in rows)
    (tp, fp, fn, _), (tp2, fp2, fn2, _) = rows[1]["counts"]
    dice = (2 * tp / (2 * tp + fp + fn) + 2 * tp2 / (2 * tp2 + fp2 + fn2)) / 2
    assert rows[1]["dice"] == pytest.approx(dice, abs=1e-6)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("a,test", "b,test", "b is in two rows"),
        ("a,test", "a,validation", "validation: per_image.csv has 2 images, results.json 1"),
        ("a,test", "a,train", "part must be validation or test"),
        ("c,test,10,20,1", "c,test,10,20,0", "twin does not agree"),
        ("a,test,10,20,0", "a,test,10,20,2", "twin 0 or 1"),
        ("v,validation,10,20,0", "v,validation,10,20,1", "twin does not agree"),
        ("a,test,10,20", "a,test,1,20", "more pixels are counted than 1 x 20"),
        ("a,test,10", "a,test,ten", "whole numbers"),
        ("a,test,10,20,0,", "a,test,10,20,0,1", "dice is 10"),
        ("a,test,10,20,0,", "a,test,10,20,0,nan", "six decimals"),
        ("a,test,", "a,test,1,", "values in"),
        ("name,part", "name,role", "columns must be"),
    ],
)
def test_a_row_that_does_not_agree_is_named(old, new, message, tmp_path):
    write(tmp_path)
    change(tmp_path, old, new)
    with pytest.raises(ValueError, match=message):
        check_per_image(tmp_path)


def test_the_dice_of_each_class_follows_from_its_counts(tmp_path):
    row = read_rows(write(tmp_path, classes=2))[1]
    (tp, fp, fn, _) = row["counts"][1]
    change(tmp_path, f",{2 * tp / (2 * tp + fp + fn):.6f}\n", ",0.123456\n")
    with pytest.raises(ValueError, match=r"per_image.csv, line 3: dice_2 is 0.123456, its counts give 0\."):
        check_per_image(tmp_path)


@pytest.mark.parametrize(
    ("value", "place", "message"),
    [
        (3.5, ("dice", "value"), r"per_class\.1\.present\.dice\.value is 3.5"),
        (None, ("dice",), r"per_class\.1\.present\.dice is incomplete"),
        (9, ("images",), r"per_class\.1\.present\.images is 9, the rows"),
    ],
)
def test_a_class_by_the_images_that_hold_it_follows_from_the_rows(value, place, message, tmp_path):
    write(tmp_path, classes=2)
    change_results(tmp_path, value, "metrics", "test", "per_class", 1, "present", *place)
    with pytest.raises(ValueError, match=message):
        check_per_image(tmp_path)


def test_a_class_that_no_image_holds_has_no_dice(tmp_path):
    write(tmp_path, classes=2, absent=True)
    check_per_image(tmp_path)
    change_results(tmp_path, {"value": 1, "low": 1, "high": 1}, "metrics", "test", "per_class", 1, "present", "dice")
    with pytest.raises(ValueError, match="present.dice is .*, the rows of per_image.csv give None"):
        check_per_image(tmp_path)


def test_classes_are_called_as_in_the_config(tmp_path):
    write(tmp_path, classes=2)
    check_results_file(tmp_path)
    change_results(tmp_path, "another", "metrics", "validation", "per_class", 0, "label")
    with pytest.raises(ValueError, match=r"metrics.validation.per_class has \['another', 'class 2'\], the config"):
        check_results_file(tmp_path)


@pytest.mark.parametrize("metric", ["dice", "iou", "precision", "recall", "f1", "accuracy"])
@pytest.mark.parametrize("kind", ["per_image", "pooled"])
@pytest.mark.parametrize("bound", ["value", "low", "high"])
def test_every_figure_follows_from_the_counts(kind, metric, bound, tmp_path):
    write(tmp_path)
    place = "metrics", "test_without_twins", kind, metric, bound
    change_results(tmp_path, 0.123456, *place)
    with pytest.raises(ValueError, match=rf"{'.'.join(place)} is 0.123456, the rows"):
        check_per_image(tmp_path)


@pytest.mark.parametrize(
    ("value", "place", "message"),
    [
        (0.5, ("metrics", "test", "loss", "high"), r"metrics\.test\.loss\.high"),
        (4, ("metrics", "test", "images"), "test: per_image.csv has 3 images, results.json 4, the split 3"),
        (9, ("data", "sizes", "test"), "the split 9"),
        (["b"], ("data", "twins"), "twin does not agree"),
        ({"images": 1}, ("metrics", "test_without_twins"), r"metrics\.test_without_twins is incomplete"),
    ],
)
def test_the_record_agrees_with_the_rows(value, place, message, tmp_path):
    write(tmp_path)
    change_results(tmp_path, value, *place)
    with pytest.raises(ValueError, match=message):
        check_per_image(tmp_path)


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ("x\n# y", ("run", "name")),
        ("[x](y)", ("run", "name")),
        ("a `b", ("run", "command")),
        ("a\n```python", ("run", "command")),
        (None, ("run", "command")),
        ("<b>", ("data", "source")),
        ("own | test", ("data", "split")),
        ("2\u2028", ("environment", "cores")),
        (["2"], ("environment", "torch")),
    ],
)
def test_what_a_card_could_take_for_markup_is_refused(value, place, tmp_path):
    write(tmp_path)
    change_results(tmp_path, value, *place)
    with pytest.raises(ValueError, match=".".join(place)):
        check_results_file(tmp_path)


CARD = 'segment = pipeline("image-segmentation", model={}, trust_remote_code=True)\n'


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("MODEL", (None, None)),
        ('"a/b.c-d"', ("a/b.c-d", None)),
        ('"a/b", revision="v1.0"', ("a/b", "v1.0")),
    ],
)
def test_the_repository_of_the_snippets_is_read(arguments, expected):
    assert loaded_repository(CARD.format(arguments)) == expected


@pytest.mark.parametrize(
    "arguments", ['"a"', '"../a/b"', '"a/b", revision=x()', '"a/b"); x("', "MODEL, x=1", '"ä/b"', '"a/b\\n"']
)
def test_another_form_of_it_is_refused(arguments):
    with pytest.raises(ValueError, match="first snippet must load"):
        loaded_repository(CARD.format(arguments))


def test_snippets_are_made_to_load_the_folder(repository):
    texts = snippets(repository, "/x/image.png")
    assert len(texts) == 4
    for text in texts:
        assert repr(str(repository)) in text and "'/x/image.png'" in text
        assert "MODEL" not in text and "image.jpg" not in text and "```" not in text
