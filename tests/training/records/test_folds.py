"""The folds' test images as one part: read back from their tables, with the figures of all images."""

import csv
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hub_unets.training.measure.metrics import metrics_from_counts
from hub_unets.training.measure.score import Scores
from hub_unets.training.records.folds import read_scores, write_out_of_fold
from hub_unets.training.records.results import environment_record, read_results, write_results


def scores_of(names, classes=1):
    """Random scores, with polyps, boundaries and crops where there is one class."""
    rng = np.random.default_rng(len(names))
    scores = Scores(
        names=list(names),
        sizes=[(20 + number, 30) for number in range(len(names))],
        counts=list(rng.integers(1, 99, (len(names), classes, 4))),
        losses=list(rng.random(len(names)).round(6)),
        class_names=[] if classes == 1 else [f"class {number}" for number in range(classes)],
    )
    if classes == 1:
        scores.polyps = list(np.array([2, 1, 1, 0]) + rng.integers(0, 2, (len(names), 1)) * [0, 0, 1, 3])
        scores.boundaries = list(rng.random((len(names), 2)).round(6))
        scores.crops = [None if number == 1 else number for number in range(len(names))]
    return scores


def written(folder, names, parts=("validation", "test"), classes=1):
    """A finished run's folder."""
    results = {
        "run": {"name": folder.name, "model_type": "unet", "settings": {"seed": "1"}, "history": [], "seed": 1},
        "data": {
            "source": "frames",
            "split": folder.name,
            "split_seed": 42,
            "sizes": {"train": 9, "validation": 1, "test": len(names)},
            "sha256": f"{len(names):064d}",
            "twins": [],
            "boundary_width": None,
        },
        "environment": environment_record(SimpleNamespace(device=torch.device("cpu"))),
        "cost": {"training_seconds": 10.5},
    }
    scores = {"validation": scores_of(["held-out"], classes), "test": scores_of(names, classes)}
    write_results(folder, results, {part: scores[part] for part in parts})
    return scores["test"]


@pytest.mark.parametrize("classes", [1, 2])
def test_a_table_read_back_is_what_was_written(tmp_path, classes):
    before, after = written(tmp_path / "run", ["a", "b", "c"], classes=classes), Scores()
    read_scores(tmp_path / "run/per_image.csv", "test", after)
    for field in ("names", "sizes", "losses", "crops"):
        assert getattr(after, field) == getattr(before, field)
    for field in ("counts", "polyps", "boundaries"):
        assert np.array_equal(getattr(after, field), getattr(before, field)), field


@pytest.mark.parametrize("classes", [1, 2])
def test_figures_are_those_of_all_test_images(tmp_path, classes):
    parts = [written(tmp_path / f"fold-{n}", names, classes=classes) for n, names in ((1, "abc"), (2, "de"))]
    printed = write_out_of_fold("mine", [tmp_path / "fold-1", tmp_path / "fold-2"], tmp_path / "out")
    results = read_results(tmp_path / "out/results.json")
    counts = np.concatenate([np.stack(part.counts) for part in parts])
    dice = metrics_from_counts(counts)["dice"].mean()
    assert results["metrics"]["test"]["images"] == 5 and list(results["metrics"]) == ["test"]
    assert results["metrics"]["test"]["per_image"]["dice"]["value"] == pytest.approx(dice)
    assert f"Dice {dice:.4f}" in printed
    assert results["data"]["split"] == "2 folds" and results["data"]["sizes"]["test"] == 5
    assert results["run"]["name"] == "mine" and results["cost"]["training_seconds"] == 21
    with (tmp_path / "out/per_image.csv").open() as file:
        assert [(row["name"], row["part"]) for row in csv.DictReader(file)] == [(name, "test") for name in "abcde"]
    if classes == 2:
        assert [metrics["label"] for metrics in results["metrics"]["test"]["per_class"]] == ["class 0", "class 1"]


def test_an_unseen_test_part_and_an_image_in_two_folds_are_refused(tmp_path):
    written(tmp_path / "one", "abc")
    written(tmp_path / "unseen", "de", parts=("validation",))
    written(tmp_path / "again", "cd")
    with pytest.raises(ValueError, match="unseen: its test part, the fold, was not scored"):
        write_out_of_fold("mine", [tmp_path / "one", tmp_path / "unseen"], tmp_path / "out")
    with pytest.raises(ValueError, match="c is a test image of two folds"):
        write_out_of_fold("mine", [tmp_path / "one", tmp_path / "again"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
