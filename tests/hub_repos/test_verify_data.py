"""With the data: weights, figures, split and images that are others are named."""

import csv
import io
import json
import re

import datasets
import numpy as np
import pytest
from PIL import Image

from hub_unets.hub_repos.checks.reproduce import REPORT, _compare, _compare_report
from hub_unets.hub_repos.checks.verification import verify_folder
from hub_unets.hub_repos.repository.card import write_card
from hub_unets.training.data.sources import load_source
from hub_unets.training.measure.score import Scores
from hub_unets.training.records.results import write_results
from tests.hub_repos.conftest import DATA
from tests.hub_repos.tampering import edit_json, failures, flip, lock_anew, sign


def test_data_catches_signed_weights(copy):
    flip(copy)
    sign(copy)
    assert failures(copy, run=False) == {}
    failed = failures(copy, run=False, data=DATA)
    assert failed.keys() == {"figures of validation", "figures of test"}
    assert re.search(r"not reproduced: 1 images, .*; largest difference 0\.\d+ \(phantom-", failed["figures of test"])


FORGED = {
    "perfect masks": (lambda tp, fp, fn, tn: (tp + fp + fn, 0, 0, tn), None),
    "recall for precision": (lambda tp, fp, fn, tn: (tp, fn, fp, tn), None),
    "loss": (lambda *counts: counts, 0.001),
}


@pytest.mark.parametrize(("counts", "loss"), FORGED.values(), ids=FORGED)
def test_data_catches_figures_that_agree_with_one_another(counts, loss, copy):
    forge(copy, counts, loss)
    assert failures(copy, run=False) == {}
    assert failures(copy, run=False, data=DATA).keys() == {"figures of validation", "figures of test"}


@pytest.mark.parametrize(("dotted", "value"), [("data__sizes__train", 99), ("data__twins", ["x"])])
def test_data_catches_another_record_of_the_split(dotted, value, copy):
    edit_json("results.json", render=True, **{dotted: value})(copy)
    sign(copy)
    assert failures(copy, run=False) == {}
    assert dotted.split("__")[1] in failures(copy, run=False, data=DATA)["split"]


@pytest.mark.parametrize(("group", "name"), REPORT)
def test_every_other_figure_must_come_out_again(group, name):
    def figures(value):
        others = {key: 0.5 if key == "ece" else {"value": 0.5} for owner, key in REPORT if owner == group}
        return {group: others | {name: value if name == "ece" else {"value": value}}}

    _compare_report(figures(0.5), figures(0.5 + REPORT[group, name] / 2))
    _compare_report({}, figures(0.5))  # MONAI is not installed here
    _compare_report(figures(0.5), {})  # a release that did not have it
    with pytest.raises(ValueError, match=f"not reproduced: {group}.{name} is 0.5, results.json says 0.6"):
        _compare_report(figures(0.5), figures(0.6))


def test_the_background_s_counts_must_come_out_again():
    def scores(background):
        pixels = {"counts": [np.array([[60, 10, 10, 120], [20, 5, 5, 170]])], "background": [np.array(background)]}
        return Scores(["a"], [(10, 20)], losses=[0.5], class_names=["x", "y"], **pixels)

    results = {"data": {"twins": []}, "metrics": {"validation": {}}}
    honest = scores([100, 5, 5, 90])
    _compare(scores([101, 4, 4, 91]), honest, results, "validation")  # a pixel at an edge has moved
    with pytest.raises(ValueError, match="not reproduced: .* at most 10 pixels moved"):
        _compare(honest, scores([95, 10, 10, 85]), results, "validation")
    with pytest.raises(ValueError, match="not reproduced"):
        _compare(honest, scores([105, 0, 0, 95]), results, "validation")


def forge(folder, counts, loss):
    """Other counts and loss in per_image.csv, results.json, card and manifest."""
    results = json.loads((folder / "results.json").read_text())
    scores = {part: Scores() for part in results.pop("metrics")}
    with (folder / "per_image.csv").open() as file:
        for row in csv.DictReader(file):
            part_scores = scores[row["part"]]
            tp, fp, fn, tn = (
                int(row[f"{kind}s"]) for kind in ("true_positive", "false_positive", "false_negative", "true_negative")
            )
            part_scores.names.append(row["name"])
            part_scores.sizes.append((int(row["height"]), int(row["width"])))
            part_scores.counts.append(np.array([counts(tp, fp, fn, tn)]))
            part_scores.losses.append(float(row["loss"]) if loss is None else loss)
    write_results(folder, results, scores)
    write_card(folder, json.loads((folder / "results.json").read_text()))
    sign(folder)


@pytest.mark.parametrize("data", ["phantoms?count=7&size=64&seed=0", "nowhere"])
def test_other_data_is_refused(data, repository):
    assert failures(repository, run=False, data=data).keys() == {"split"}


@pytest.fixture
def tables(tmp_path):
    """A folder of images with two columns of masks, the images' own copies among them."""
    rows = load_source(DATA)
    for part in rows:
        (tmp_path / "tables").mkdir(exist_ok=True)
        renamed = rows[part].add_column("copy", rows[part]["image"])
        renamed.to_parquet(tmp_path / "tables" / f"{part}.parquet")
    return tmp_path / "tables"


@pytest.fixture
def other_data(tmp_path):
    """A function (change of a row's two files, part by part) -> folder of tables with the data so changed."""

    def write_tables(change):
        (tmp_path / "data").mkdir()
        for part, rows in load_source(DATA).items():
            changed = [change(part, number, row) for number, row in enumerate(rows.to_list())]
            table = datasets.Dataset.from_list(changed, features=rows.features)
            table.to_parquet(tmp_path / "data" / f"{part}.parquet")
        return str(tmp_path / "data")

    return write_tables


def stored_again(file, change=lambda pixels: pixels):
    """A stored image as an uncompressed PNG, its pixels changed."""
    pixels = np.array(Image.open(io.BytesIO(file["bytes"])))
    content = io.BytesIO()
    Image.fromarray(change(pixels)).save(content, "PNG", compress_level=0)
    return {"bytes": content.getvalue(), "path": None}


def test_images_that_were_stored_again_are_named_and_pass(copy, other_data):
    data = other_data(lambda part, number, row: row | {"image": stored_again(row["image"])} if part == "test" else row)
    checks = {check.name: check for check in verify_folder(copy, run=False, data=data)}
    assert all(check.passed for check in checks.values())
    assert checks["data of validation"].reason.endswith("; every file the same")
    assert re.search(r"; image re-encoded only: \d \(phantom-\S+", checks["data of test"].reason)


def test_other_pixels_and_masks_are_named(copy, other_data):
    changed = {"validation": "image", "test": "annotation"}

    def change(part, number, row):
        name = changed.get(part)
        return row | {name: stored_again(row[name], lambda pixels: pixels[::-1])} if name else row

    found = failures(copy, run=False, data=other_data(change))
    assert re.fullmatch(r"image changed: \d \(phantom-.*\)", found["data of validation"])
    assert re.fullmatch(r"mask changed: \d \(phantom-.*\)", found["data of test"])
    assert {"figures of validation", "figures of test"} <= found.keys()


def test_images_that_are_missing_are_named(copy, other_data):
    data = other_data(lambda part, number, row: row | {"name": "other"} if (part, number) == ("test", 0) else row)
    found = failures(copy, run=False, data=data)
    assert re.fullmatch(r"missing: 1 \(phantom-\S+\)", found["split"]) and len(found) == 1


def test_columns_come_from_whoever_verifies(copy, tables):
    """They never come from the repository, which could name its masks as its images."""
    edit_json("results.json", render=True, run__settings__mask_column="copy")(copy)
    edit_json("results.json", render=True, run__settings__image_column="copy")(copy)
    sign(copy)
    assert failures(copy, run=False).keys() == {"lock"}
    lock_anew(copy)
    sign(copy)
    assert failures(copy, run=False) == {}
    failed = failures(copy, run=False, data=str(tables), columns=("image", "annotation"))
    assert failed == {}
    failed = failures(copy, run=False, data=str(tables))
    assert "the run was given --image_column copy --mask_column copy: look whether" in failed["split"]


@pytest.mark.parametrize("column", ["/etc", "../masks", "C:\\masks", "a/../../b"])
def test_a_column_is_no_path(column, repository):
    for columns in ((column, None), (None, column)):
        failed = failures(repository, run=False, data=DATA, columns=columns)
        assert failed == {"split": f"a column is a name inside of the data, got the path {column!r}"}
