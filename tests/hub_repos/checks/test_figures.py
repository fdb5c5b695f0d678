"""A figures' record agrees with its rows, and each way in which it does not is named."""

import json
import time

import numpy as np
import pytest

from hub_unets.hub_repos.checks.figures import (
    check_per_image,
    check_results_file,
)
from hub_unets.training.measure.metrics import COUNTS
from hub_unets.training.records.results import read_per_image
from tests.hub_repos.checks.figure_records import COMMITTED, HUB_REPOS, change, change_results, write


@pytest.mark.parametrize(
    "options",
    [{}, {"report": True}, {"classes": 2}, {"twins": ()}, {"twins": ("a", "b", "c")}, {"max_samples": 3}],
    ids=str,
)
def test_what_write_results_writes_agrees(options, tmp_path):
    write(tmp_path, **options)
    check_results_file(tmp_path)
    check_per_image(tmp_path)


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: str(path.parent.relative_to(HUB_REPOS)))
def test_committed_results_agree_with_their_rows(path):
    check_per_image(path.parent)


def test_a_row_is_read_with_its_counts_by_class(tmp_path):
    parts, twins = read_per_image(write(tmp_path, classes=2) / "per_image.csv")
    assert {part: scores.names for part, scores in parts.items()} == {"validation": ["v"], "test": ["a", "b", "c"]}
    assert twins == {"c"} and parts["test"].sizes == [(10, 20)] * 3
    lines = (tmp_path / "per_image.csv").read_text().splitlines()
    header, row = (line.split(",") for line in (lines[0], lines[2]))
    fields = dict(zip(header, row, strict=True))
    counts = parts["test"].counts[0]
    assert counts.shape == (2, 4) and counts.dtype == np.int64
    assert counts[1].tolist() == [int(fields[f"{name}_2"]) for name in COUNTS]
    assert parts["test"].losses[0] == float(fields["loss"])


def test_everything_of_a_row_is_read(tmp_path):
    parts, _ = read_per_image(write(tmp_path, report=True) / "per_image.csv")
    assert parts["test"].polyps[0].tolist() == [3, 2, 2, 1]
    assert parts["test"].crops == [None, 0, 7]
    summary = json.loads((tmp_path / "results.json").read_text())["metrics"]["test"]
    for group in ("polyps", "false_alarms", "boundary", "per_image", "by_size"):
        assert np.allclose(numbers(parts["test"].summary()[group]), numbers(summary[group]), atol=1e-6)


def numbers(value):
    """Every number in a JSON value, in order."""
    if isinstance(value, (dict, list)):
        return [
            number for inner in (value.values() if isinstance(value, dict) else value) for number in numbers(inner)
        ]
    return [value]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("a,test", "b,test", "b is in two rows"),
        ("a,test", "a,validation", "validation: per_image.csv has 2 images, results.json 1"),
        ("a,test", "a,train", "part must be validation or test, got 'train'"),
        ("c,test,10,20,1", "c,test,10,20,0", "twin does not agree"),
        ("a,test,10,20,0", "a,test,10,20,2", "line 3: twin is 2, its counts give 0"),
        ("v,validation,10,20,0", "v,validation,10,20,1", "twin does not agree"),
        ("a,test,10,20", "a,test,1,20", "more pixels are counted than 1 x 20"),
        ("a,test,10", "a,test,ten", "line 3: invalid literal"),
        ("a,test,10", "a,test,-10", "line 3: numbers must be from 0"),
        ("a,test,10", "a,test,010", "line 3: height is 010"),
        ("a,test,10,20,0,", "a,test,10,20,0,1", "line 3: dice is 10"),
        ("a,test,10,20,0,", "a,test,10,20,0,nan", "line 3: dice is nan"),
        ("a,test,", "a,test,1,", "line 3: "),
        ("name,part", "name,role", "the column 'part' is missing"),
        ("true_negatives", "true_negatives_1", "line 2: the columns must be name, part"),
    ],
)
def test_a_row_that_does_not_agree_is_named(old, new, message, tmp_path):
    write(tmp_path)
    change(tmp_path, old, new)
    with pytest.raises(ValueError, match=message):
        check_per_image(tmp_path)


def test_the_dice_of_each_class_follows_from_its_counts(tmp_path):
    parts, _ = read_per_image(write(tmp_path, classes=2) / "per_image.csv")
    (tp, fp, fn, _) = parts["test"].counts[0][1]
    change(tmp_path, f",{2 * tp / (2 * tp + fp + fn):.6f}\n", ",0.123456\n")
    with pytest.raises(ValueError, match=r"per_image.csv, line 3: dice_2 is 0.123456, its counts give 0\."):
        check_per_image(tmp_path)


@pytest.mark.parametrize(
    ("value", "keys", "message"),
    [
        (3.5, ("dice", "value"), r"per_class\.1\.present\.dice\.value is 3.5"),
        (None, ("dice",), r"per_class\.1\.present\.dice is incomplete"),
        (9, ("images",), r"per_class\.1\.present\.images is 9, the rows"),
    ],
)
def test_a_class_by_the_images_that_hold_it_follows_from_the_rows(value, keys, message, tmp_path):
    write(tmp_path, classes=2)
    change_results(tmp_path, value, "metrics", "test", "per_class", 1, "present", *keys)
    with pytest.raises(ValueError, match=message):
        check_per_image(tmp_path)


def test_a_class_that_no_image_holds_has_no_dice(tmp_path):
    write(tmp_path, classes=2, absent=True)
    check_per_image(tmp_path)
    change_results(tmp_path, {"value": 1, "low": 1, "high": 1}, "metrics", "test", "per_class", 1, "present", "dice")
    with pytest.raises(ValueError, match="present.dice is .*, the rows of per_image.csv give None"):
        check_per_image(tmp_path)


@pytest.mark.parametrize("shift", [(1, 0, 0, 1), (1, 0, 0, -1), (0, 1, -1, 0), "fewer of both than right ones"])
def test_the_background_is_what_is_of_no_class(shift, tmp_path):
    path = write(tmp_path, classes=2, masks=True) / "per_image.csv"
    check_per_image(tmp_path)
    parts, _ = read_per_image(path)
    counts, background = parts["test"].counts[0], parts["test"].background[0]
    if isinstance(shift, str):
        shift = np.array([-1, 1, 1, -1]) * (background[3] - counts[:, 0].sum() + 1)
    old, new = (f",{','.join(map(str, numbers))}" for numbers in (background, background + shift))
    change(tmp_path, old, new)
    with pytest.raises(ValueError, match="per_image.csv, image a: the background counts other pixels than the class"):
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
    keys = "metrics", "test_without_twins", kind, metric, bound
    change_results(tmp_path, 0.123456, *keys)
    with pytest.raises(ValueError, match=rf"{'.'.join(keys)} is 0.123456, the rows"):
        check_per_image(tmp_path)


@pytest.mark.parametrize(
    ("value", "keys", "message"),
    [
        (0.5, ("metrics", "test", "loss", "high"), r"metrics\.test\.loss\.high"),
        (4, ("metrics", "test", "images"), "test: per_image.csv has 3 images, results.json 4, the split 3"),
        (9, ("data", "sizes", "test"), "the split 9"),
        (["b"], ("data", "twins"), "twin does not agree"),
        ({"images": 1}, ("metrics", "test_without_twins"), r"metrics\.test_without_twins is incomplete"),
    ],
)
def test_the_record_agrees_with_the_rows(value, keys, message, tmp_path):
    write(tmp_path)
    change_results(tmp_path, value, *keys)
    with pytest.raises(ValueError, match=message):
        check_per_image(tmp_path)


def test_a_test_part_left_unseen_has_no_rows(tmp_path):
    write(tmp_path)
    header, *rows = (tmp_path / "per_image.csv").read_text().splitlines(keepends=True)
    (tmp_path / "per_image.csv").write_text(header + "".join(row for row in rows if ",test," not in row))
    metrics = json.loads((tmp_path / "results.json").read_text())["metrics"]
    change_results(tmp_path, {"validation": metrics["validation"]}, "metrics")
    with pytest.raises(ValueError, match="test: per_image.csv has 0 images, results.json 0, the split 3"):
        check_per_image(tmp_path)
    change_results(tmp_path, "False", "run", "settings", "score_test")
    check_per_image(tmp_path)
    check_results_file(tmp_path)


@pytest.mark.parametrize("removed", [1, 3, 7])
def test_rows_with_fewer_columns(removed, tmp_path):
    """Without the crops; without the outlines too, as where MONAI is missing; without any, as of older releases."""
    write(tmp_path, report=True)
    results = json.loads((tmp_path / "results.json").read_text())
    for metrics in results["metrics"].values():
        del metrics["false_alarms"]
        if removed > 1:
            del metrics["boundary"]
        if removed == 7:
            del metrics["polyps"], metrics["calibration"]
    (tmp_path / "results.json").write_text(json.dumps(results))
    lines = (tmp_path / "per_image.csv").read_text().splitlines()
    shortened = [",".join(line.split(",")[:-removed]) for line in lines]
    (tmp_path / "per_image.csv").write_text("\n".join(shortened) + "\n")
    check_results_file(tmp_path)
    check_per_image(tmp_path)


def test_a_figure_needs_its_definition(tmp_path):
    write(tmp_path, report=True)
    change_results(tmp_path, {"polyps": "x", "calibration": "x"}, "definitions")
    with pytest.raises(ValueError, match="metrics.validation.boundary has no text in definitions"):
        check_results_file(tmp_path)


@pytest.mark.parametrize(
    ("value", "keys"),
    [
        ("see [here](x)", ("definitions", "polyps")),
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
def test_what_a_card_could_take_for_markup_is_refused(value, keys, tmp_path):
    write(tmp_path, report=True)
    change_results(tmp_path, value, *keys)
    with pytest.raises(ValueError, match=".".join(keys)):
        check_results_file(tmp_path)


def test_a_definition_is_the_releases_text(tmp_path):
    write(tmp_path, report=True)
    text = json.loads((tmp_path / "results.json").read_text())["definitions"]["boundary"]
    change_results(tmp_path, text.replace("MONAI", "OTHER"), "definitions", "boundary")
    with pytest.raises(ValueError, match="definitions.boundary is not this release's text"):
        check_results_file(tmp_path)
    change_results(tmp_path, f"{text.rpartition(' ')[0]} 9.9.9.", "definitions", "boundary")
    check_results_file(tmp_path)
    change_results(tmp_path, "harmless", "definitions", "dice")
    with pytest.raises(ValueError, match="definitions.dice is not this release's text"):
        check_results_file(tmp_path)


@pytest.mark.parametrize("id2label", [None, '{"0": "background", "1": "polyp"}'])
def test_a_renamed_label_is_found(id2label, tmp_path):
    write(tmp_path)
    change_results(tmp_path, {} if id2label is None else {"model.id2label": id2label}, "run", "settings")
    config = {"model_type": "unet", "id2label": {"0": "background", "1": "healthy tissue"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config.json: id2label is .*healthy tissue.*, the settings .* give .*polyp"):
        check_results_file(tmp_path)
    change_results(tmp_path, "someone/else", "run", "settings", "start_from")
    if id2label is None:
        assert "1 healthy tissue, as of the checkpoint" in check_results_file(tmp_path)


def test_a_name_in_many_rows_costs_no_more_than_reading_them(tmp_path):
    write(tmp_path)
    header, *rows = (tmp_path / "per_image.csv").read_text().splitlines()
    copies = [f"{number}{rows[1][1:]}" for number in range(20_000)]
    (tmp_path / "per_image.csv").write_text("\n".join([header, *rows, *copies, copies[-1]]) + "\n")
    started = time.process_time()
    with pytest.raises(ValueError, match="19999 is in two rows"):
        check_per_image(tmp_path)
    assert time.process_time() - started < 20
