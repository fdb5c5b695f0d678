"""Ranks, groups and paired differences, and the files that show them."""

import csv
import math

import numpy as np
import pytest
from PIL import Image

from hub_unets.training.records.leaderboard import (
    Entry,
    group_of,
    is_pretrained,
    paired_difference,
    ranked,
    write_leaderboard,
)

NAMES = [f"image-{number}" for number in range(40)]
NOISE = np.random.default_rng(0).normal(0, 0.02, len(NAMES))


def interval(value):
    return {"value": value, "low": value - 0.05, "high": value + 0.05}


def entry(name, validation, test, group="all", settings=None, cpu_ms=3.0, sha256="ab" * 32):
    """`test` is the mean Dice; the images' Dice differ from it by the same noise in every entry."""
    names = ("dice", "iou", "precision", "recall", "f1", "accuracy")
    metrics = {"per_image": {key: interval(test) for key in names}, "pooled": {key: interval(test) for key in names}}
    results = {
        "run": {"settings": settings or {}, "parameters": 4_000_000, "gmacs": 0.5},
        "data": {"sha256": sha256},
        "metrics": {
            "test": {**metrics, "loss": interval(0.3)},
            "validation": {"per_image": {"dice": interval(validation)}},
        },
    }
    return Entry(name, results, dict(zip(NAMES, test + NOISE, strict=True)), group, cpu_ms)


def test_the_validation_dice_ranks_and_not_the_tests():
    rows = ranked([entry("a", 0.7, 0.9), entry("b", 0.8, 0.6), entry("c", 0.75, 0.7)])
    assert [(row["name"], row["place"]) for row in rows] == [("b", 1), ("c", 2), ("a", 3)]
    assert rows[0]["difference"] is None
    assert rows[2]["difference"]["value"] == pytest.approx(-0.3)


def test_of_several_classes_the_pooled_dice_ranks():
    entries = [entry("never marks the rare one", 0.7, 0.9), entry("finds it", 0.6, 0.6)]
    for trial, pooled in zip(entries, (0.4, 0.7), strict=True):
        trial.results["metrics"]["validation"] |= {"pooled": {"dice": interval(pooled)}, "per_class": [{}, {}]}
    assert [row["name"] for row in ranked(entries)] == ["finds it", "never marks the rare one"]


def test_groups_are_ranked_apart():
    rows = ranked([entry("a", 0.7, 0.7, "x"), entry("b", 0.8, 0.8, "y"), entry("c", 0.6, 0.6, "x")])
    assert [(row["group"], row["name"], row["place"]) for row in rows] == [("x", "a", 1), ("x", "c", 2), ("y", "b", 1)]


def test_same_difference_on_every_image_is_its_own_interval():
    first, second = entry("a", 0.8, 0.8), entry("b", 0.7, 0.75)
    difference = paired_difference(first.dice, second.dice)
    assert (difference["value"], difference["low"], difference["high"]) == pytest.approx((0.05, 0.05, 0.05))
    assert difference["real"]


def test_paired_difference_by_hand():
    """Differences 0 and 1, two images: resampled means are 0, 1/2, 1 with chances 1/4, 1/2, 1/4."""
    difference = paired_difference({"a": 1.0, "b": 0.5}, {"a": 0.0, "b": 0.5})
    assert (difference["value"], difference["low"], difference["high"], difference["real"]) == (0.5, 0.0, 1.0, False)


def test_more_comparisons_need_a_larger_difference():
    values = np.random.default_rng(1).normal(0.011, 0.03, len(NAMES))
    first, second = dict(zip(NAMES, values, strict=True)), dict.fromkeys(NAMES, 0.0)
    assert paired_difference(first, second, 1)["real"]
    assert not paired_difference(first, second, 23)["real"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"model.backbone": "resnet50"}, True),
        ({"model.backbone": "resnet50", "backbone_weights": "none"}, False),
        ({"model.backbone": "resnet50", "backbone_weights": "weights.safetensors"}, True),
        ({"model.backbone": "null"}, False),
        ({}, False),
    ],
)
def test_pretrained(settings, expected):
    assert is_pretrained({"run": {"settings": settings}}) is expected


def test_groups_part_splits_weights_and_the_settings_named():
    base = {"model.backbone": "resnet50", "variant": "unet"}
    results = [
        entry("", 0.5, 0.5, settings=base).results,
        entry("", 0.5, 0.5, settings=base | {"variant": "resunet"}).results,
        entry("", 0.5, 0.5, settings=base | {"backbone_weights": "none"}).results,
        entry("", 0.5, 0.5, settings=base | {"model.backbone": "resnet18"}).results,
        entry("", 0.5, 0.5, settings=base, sha256="cd" * 32).results,
    ]
    same, _, weights, backbone, split = (group_of(result, ["model.backbone"]) for result in results)
    assert group_of(results[1], ["model.backbone"]) == same
    assert len({same, weights, backbone, split}) == 4
    assert group_of(results[3]) == group_of(results[0]) != group_of(results[4])


def test_files(tmp_path):
    entries = [entry("a", 0.7, 0.7, "x"), entry("b", 0.8, 0.8, "y"), entry("c", 0.6, 0.6, "x", cpu_ms=None)]
    write_leaderboard(tmp_path, entries, "A title", ["- On phantoms."], [("d", "no memory")])
    page = (tmp_path / "leaderboard.md").read_text("utf-8")
    assert page.startswith("# A title\n\n- On phantoms.\n") and "- d: no memory" in page
    assert "| 1 | a | 0.7000 | 0.7000 (0.6500–0.7500) | – |" in page
    assert "| 2 | c | 0.6000 | 0.6000 (0.5500–0.6500) | **+0.1000 (+0.1000 to +0.1000)** |" in page
    assert page.count("| 0.50 | – |") == 1 and page.count("| 4.0 | 0.50 | 3.0 |") == 2
    with (tmp_path / "leaderboard.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["a", "c", "b"]
    assert (rows[1]["dice_value"], rows[1]["difference_real"], rows[0]["difference_real"]) == ("0.6", "True", "")
    with (tmp_path / "test_dice.csv").open(newline="") as file:
        dices = list(csv.DictReader(file))
    assert len(dices) == len(NAMES)
    assert np.mean([float(row["b"]) for row in dices]) == pytest.approx(0.8 + NOISE.mean(), abs=1e-6)
    assert Image.open(tmp_path / "leaderboard.png").width > 400


def test_trials_that_left_the_test_unseen_are_compared_on_validation(tmp_path):
    entries = [entry("a", 0.7, 0.9), entry("b", 0.8, 0.6)]
    names = ("dice", "iou", "precision", "recall", "accuracy")
    for trial in entries:
        metrics = trial.results["metrics"]
        metrics["validation"] |= metrics.pop("test") | {
            "per_image": dict.fromkeys(names, interval(trial.validation_dice))
        }
    write_leaderboard(tmp_path, entries, "Unseen", [])
    page = (tmp_path / "leaderboard.md").read_text("utf-8")
    assert "| 1 | b | 0.8000 | 0.8000 (0.7500–0.8500) | – |" in page and "Dice on the validation images" in page
    assert (tmp_path / "validation_dice.csv").exists() and not (tmp_path / "test_dice.csv").exists()


def test_page_without_a_finished_trial(tmp_path):
    write_leaderboard(tmp_path, [], "Empty", [], [("d", "no memory")])
    assert "no memory" in (tmp_path / "leaderboard.md").read_text("utf-8")
    assert not (tmp_path / "leaderboard.png").exists()


def test_missing_values_have_a_dash_and_rank_last(tmp_path):
    lost = entry("a", 0.7, 0.7)
    lost.results["metrics"]["validation"]["per_image"]["dice"]["value"] = None
    lost.results["metrics"]["test"]["per_image"]["dice"] = dict.fromkeys(("value", "low", "high"))
    lost.results["metrics"]["test"]["loss"]["value"] = math.nan
    lost.dice = dict.fromkeys(lost.dice)
    write_leaderboard(tmp_path, [lost, entry("b", 0.1, 0.8)], "A title", [])
    page = (tmp_path / "leaderboard.md").read_text("utf-8")
    assert "| 1 | b |" in page and "| 2 | a | – | – | – |" in page and "nan" not in page
    with (tmp_path / "test_dice.csv").open(newline="") as file:
        assert {row["a"] for row in csv.DictReader(file)} == {""}
