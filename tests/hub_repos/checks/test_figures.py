"""A figures' record of several images, with a twin, of two classes; the card's checks are in test_verify.py."""

import json
import time
from pathlib import Path

import numpy as np
import pytest

from hub_unets.hub_repos.checks.figures import (
    _check_boundary,
    _check_polyps,
    check_named,
    check_per_image,
    check_results_file,
    loaded_repository,
    snippets,
)
from hub_unets.training.measure.calibration import _cost_of_size
from hub_unets.training.measure.metrics import COUNTS
from hub_unets.training.measure.reliability import TABLE_BINS
from hub_unets.training.measure.score import Scores
from hub_unets.training.records.results import read_per_image, write_results

HUB_REPOS = Path(__file__).parents[3] / "hub_repos"
COMMITTED = sorted(HUB_REPOS.glob("**/results.json"))


def write(folder, classes=1, twins=("c",), max_samples=None, absent=False, report=False):
    """results.json and per_image.csv of one validation and three test images, 10 x 20; the last class may lack.

    `report` adds polyps, outlines and tables.
    """
    rng = np.random.default_rng(0)
    scores = {}
    for part, names in (("validation", ["v"]), ("test", ["a", "b", "c"])):
        counts = [rng.integers(1, 50, (classes, 4)) for _ in names]
        for image_counts in counts if absent else ():
            image_counts[-1, [0, 2]] = 0
        losses = rng.uniform(0.1, 1, len(names)).tolist()
        class_names = [f"class {number}" for number in range(1, classes + 1)]
        scores[part] = Scores(names, [(10, 20)] * len(names), counts, losses, class_names=class_names)
        if report:
            _add_report(scores[part], rng)
    labels = {str(number): name for number, name in enumerate(["background", *class_names])}
    settings = {"model.id2label": json.dumps(labels)}
    settings |= {} if max_samples is None else {"max_samples": str(max_samples)}
    sizes = {"train": 9, "validation": 1, "test": 3 if max_samples is None else 8}
    results = {
        "run": {"name": "x", "model_type": "unet", "settings": settings, "command": "accelerate launch '[1]'"},
        "data": {"source": "x", "split": "own", "split_seed": 42, "sizes": sizes, "sha256": "0" * 64}
        | {"twins": list(twins)},
        "environment": {"device": "cpu: x (R)", "cores": 2, "python": "3", "torch": "2", "transformers": "5"},
        "cost": {},
    }
    write_results(folder, results, scores, twins)
    (folder / "config.json").write_text(json.dumps({"model_type": "unet", "id2label": labels}))
    return folder


def _add_report(scores, rng):
    """Polyps 3, 2 of them found and touched, 1 false; outlines; all pixels in the bin around the probability .3."""
    for counts in scores.counts:
        true_positives, false_positives, false_negatives, true_negatives = counts[0]
        polyp, background = true_positives + false_negatives, false_positives + true_negatives
        table = np.zeros((3, TABLE_BINS))
        table[:, 6] = background, polyp, 0.3025 * (background + polyp)
        scores.tables.append(table)
        scores.polyps.append(np.array((3, 2, 2, 1)))
        scores.boundaries.append((rng.uniform(0.1, 0.9), rng.uniform(1, 9)))
        scores.crops.append([None, 0, 7][len(scores.crops) % 3])


def change(folder, old, new):
    text = (folder / "per_image.csv").read_text()
    assert text.count(old) == 1
    (folder / "per_image.csv").write_text(text.replace(old, new))


def change_results(folder, value, *keys):
    results = json.loads((folder / "results.json").read_text())
    inner = results
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    (folder / "results.json").write_text(json.dumps(results))


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


@pytest.mark.parametrize("part", ["validation", "test", "test_without_twins"])
@pytest.mark.parametrize("bound", ["value", "low", "high"])
@pytest.mark.parametrize(
    "keys",
    [
        ("boundary", "nsd"),
        ("boundary", "hd95"),
        ("boundary", "hd95_share"),
        ("polyps", "recall"),
        ("polyps", "precision"),
        ("polyps", "touched_share"),
    ],
    ids=".".join,
)
def test_polyps_and_outlines_follow_from_the_rows(keys, bound, part, tmp_path):
    write(tmp_path, report=True)
    keys = "metrics", part, *keys, bound
    change_results(tmp_path, 0.123456, *keys)
    with pytest.raises(ValueError, match=rf"{'.'.join(keys)} is 0.123456, the rows"):
        check_per_image(tmp_path)


@pytest.mark.parametrize("name", ["polyps", "found", "touched", "false_polyps"])
def test_polyp_counts_follow_from_the_rows(name, tmp_path):
    write(tmp_path, report=True)
    change_results(tmp_path, 99, "metrics", "test", "polyps", name)
    with pytest.raises(ValueError, match=rf"metrics\.test\.polyps\.{name} is 99, the rows"):
        check_per_image(tmp_path)


def last_columns(folder, new, line=1):
    """Put `new` in the place of a row's polyps, found, touched, false_polyps, nsd, hd95; and of its counts before."""
    lines = (folder / "per_image.csv").read_text().splitlines()
    values = lines[line].split(",")
    *_, crop = values
    lines[line] = ",".join([*values[: -1 - len(new)], *map(str, new), crop])
    (folder / "per_image.csv").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((3, 2, 2, 2, "0.500000", "5.000000"), r"metrics\.validation\.polyps\.false_polyps is 1, the rows .* 2"),
        ((3, 3, 2, 1, "0.500000", "5.000000"), "polyps can't be 3, 3 found, 2 touched, 1 false"),
        ((2, 2, 3, 1, "0.500000", "5.000000"), "polyps can't be 2, 2 found, 3 touched"),
        ((3, 2, 2, 1, "0.500001", "5.000000"), r"metrics\.validation\.boundary"),
        ((3, 2, 2, 1, "1.500000", "5.000000"), "nsd 1.5 and hd95 5.0 do not fit"),
        ((3, 2, 2, 1, "0.500000", "99.000000"), "nsd 0.5 and hd95 99.0 do not fit"),
        ((3, 2, 2, 1, "0.5", "5.000000"), "nsd is 0.5, its counts give 0.500000"),
        ((3, 2, 2, -1, "0.500000", "5.000000"), "numbers must be from 0"),
        ((3, 2, 2, 1, "nan", "5.000000"), "numbers must be from 0"),
        ((3, 2, 2, 1, "0.500000", "inf"), "numbers must be from 0"),
    ],
)
def test_a_row_of_polyps_and_outlines_that_does_not_agree(values, message, tmp_path):
    write(tmp_path, report=True)
    last_columns(tmp_path, values)
    with pytest.raises(ValueError, match=message):
        check_per_image(tmp_path)


@pytest.mark.parametrize(
    ("counts", "size", "fits", "does_not"),
    [
        ((0, 0, 0, 200), (10, 20), (1, 0), (0.5, 3)),  # both empty
        ((5, 0, 0, 195), (10, 20), (1, 0), (0.9, 0)),  # equal
        ((0, 5, 0, 195), (30, 40), (0, 50), (0, 3)),  # one empty
        ((0, 0, 5, 195), (30, 40), (0, 50), (0.1, 50)),
        ((3, 2, 1, 195), (10, 20), (0.7, 3), (0.7, 30)),
    ],
)
def test_outlines_of_empty_and_of_equal_masks(counts, size, fits, does_not):
    _check_boundary("row", *fits, counts, np.hypot(*size))
    with pytest.raises(ValueError, match="row: nsd"):
        _check_boundary("row", *does_not, counts, np.hypot(*size))


@pytest.mark.parametrize("polyps", [(1, 0, 0, 0), (0, 0, 0, 1)])
def test_polyps_need_pixels(polyps):
    with pytest.raises(ValueError, match="row: the polyps can't be"):
        _check_polyps("row", *polyps, (0, 0, 0, 200))


@pytest.mark.parametrize("key", ["polyps", "boundary"])
def test_figures_without_columns_are_refused(key, tmp_path):
    write(tmp_path, report=True)
    figures = json.loads((tmp_path / "results.json").read_text())["metrics"]["test"][key]
    write(tmp_path)
    change_results(tmp_path, figures, "metrics", "test", key)
    with pytest.raises(ValueError, match="metrics.test holds more than follows from the rows of per_image.csv"):
        check_per_image(tmp_path)


@pytest.mark.parametrize(
    ("value", "keys", "message"),
    [
        (0.01, ("ece",), r"calibration\.ece is 0.01, the rows"),
        (0.34, ("bins", 6, "probability"), r"calibration\.ece is"),
        (0.5, ("bins", 6, "probability"), "bins has a probability of 0.5 in the bin up to 0.35"),
        (None, ("bins", 6, "probability"), "bins has a probability of None"),
        (5, ("bins", 7, "pixels"), "bins has other pixels than per_image.csv"),
        (5, ("bins", 6, "polyp_pixels"), "bins has other pixels than per_image.csv"),
    ],
)
def test_the_reliability_table_agrees_with_the_rows_and_its_ece(value, keys, message, tmp_path):
    write(tmp_path, report=True)
    change_results(tmp_path, value, "metrics", "test", "calibration", *keys)
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


def calibrated(folder):
    """As `write`, with a temperature and a threshold fitted on its validation."""
    write(folder, report=True)
    validation = json.loads((folder / "results.json").read_text())["metrics"]["validation"]
    fitted = {
        "images": 1, "temperature": 1.4, "threshold": 0.4, "score_threshold": 0.8,
        "dice_before": 0.1, "false_alarms_before": 0.4, "false_alarms_after": 0.2,
        "loss_before": 0.9, "loss_after": validation["loss"]["value"], "ece_before": 0.1,
        "ece_after": validation["calibration"]["ece"],
        "dice_after": validation["per_image"]["dice"]["value"],
        "by_size": [_cost_of_size(row, row) for row in validation["by_size"]],
    }  # fmt: skip
    change_results(folder, fitted, "calibration")
    (folder / "preprocessor_config.json").write_text(json.dumps({"mask_threshold": 0.4, "score_threshold": 0.8}))


@pytest.mark.parametrize("name", ["threshold", "score_threshold", "images", "loss_after", "ece_after", "dice_after"])
def test_what_was_fitted_is_what_processor_and_validation_say(name, tmp_path):
    calibrated(tmp_path)
    check_results_file(tmp_path)
    change_results(tmp_path, 7 if name == "images" else 0.123456, "calibration", name)
    with pytest.raises(ValueError, match=f"calibration.{name} is .*, the processor and metrics.validation say"):
        check_results_file(tmp_path)


@pytest.mark.parametrize("name", ["dice_after", "recall_after", "images"])
def test_the_cost_by_size_is_what_validation_says(name, tmp_path):
    calibrated(tmp_path)
    change_results(tmp_path, 2 if name == "images" else 0.123456, "calibration", "by_size", 0, name)
    with pytest.raises(ValueError, match="calibration.by_size is .*, metrics.validation.by_size"):
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


def test_false_alarms_follow_from_the_rows(tmp_path):
    write(tmp_path, report=True)
    check_per_image(tmp_path)
    share = {"value": 0.25, "low": 0.1, "high": 0.4}
    change_results(tmp_path, share, "metrics", "test", "false_alarms", "marked")
    with pytest.raises(ValueError, match=r"metrics\.test\.false_alarms\.marked"):
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


def test_a_long_card_is_searched_in_one_go():
    started = time.process_time()
    with pytest.raises(ValueError, match="first snippet must load"):
        loaded_repository("segment = pipeline(" + ", model=" * 32_000)
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    ("arguments", "repo_id", "revision", "message"),
    [
        ('"a/b"', None, None, r"load a/b, and a folder can't tell .*: if it is, add --repo_id a/b$"),
        ('"a/b", revision="v1"', None, None, "add --repo_id a/b --revision v1$"),
        ('"a/b", revision="v1"', "a/c", "v1", "the snippets load a/b, and this is a/c"),
        ('"a/b", revision="evil"', "a/b", "v1", "the snippets load revision 'evil', and this is v1"),
        ('"a/b", revision="evil"', "a/b", None, "the snippets load revision 'evil', and this is none"),
    ],
)
def test_snippets_that_load_another_repository_or_revision_are_found(arguments, repo_id, revision, message, tmp_path):
    (tmp_path / "README.md").write_text(CARD.format(arguments))
    with pytest.raises(ValueError, match=message):
        check_named(tmp_path, repo_id, revision)


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
