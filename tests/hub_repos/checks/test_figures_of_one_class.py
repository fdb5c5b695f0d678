"""What a record of one class has besides: polyps, outlines, reliability, thresholds and false alarms."""

import json

import numpy as np
import pytest

from hub_unets.hub_repos.checks.figures import (
    _check_boundary,
    _check_polyps,
    check_per_image,
    check_results_file,
)
from hub_unets.training.measure.calibration import _cost_of_size
from tests.hub_repos.checks.figure_records import change_results, write


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


def test_false_alarms_follow_from_the_rows(tmp_path):
    write(tmp_path, report=True)
    check_per_image(tmp_path)
    share = {"value": 0.25, "low": 0.1, "high": 0.4}
    change_results(tmp_path, share, "metrics", "test", "false_alarms", "marked")
    with pytest.raises(ValueError, match=r"metrics\.test\.false_alarms\.marked"):
        check_per_image(tmp_path)
