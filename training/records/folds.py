"""Cross-validation: the test parts of all folds as one, each image scored by the network that never saw it."""

import csv
import hashlib
from collections import Counter
from pathlib import Path

import numpy as np

from hub_unets.training.errors import UserError
from hub_unets.training.measure.boundaries import BOUNDARY_COLUMNS
from hub_unets.training.measure.false_alarms import ALARM_COLUMNS
from hub_unets.training.measure.metrics import COUNTS
from hub_unets.training.measure.polyps import POLYP_COLUMNS
from hub_unets.training.measure.score import Scores
from hub_unets.training.records.results import class_columns, read_results, write_results


def write_out_of_fold(name, folders, output):
    """Write `results.json` and `per_image.csv` of all folds' test images together.

    The figures are means over all images with their intervals, as of one test part; there is no calibration, which
    is not kept image by image.

    Args:
        name: of what was trained.
        folders: of the finished runs, one a fold.
        output: folder that is written.

    Returns:
        str: the figures, to print.

    Raises:
        UserError: a run that left its test part unseen, or an image in two folds.
    """
    results = [read_results(Path(folder) / "results.json") for folder in folders]
    first = results[0]
    classes = _test_metrics(first, folders[0]).get("per_class", ())
    scores = Scores(class_names=[metrics["label"] for metrics in classes])
    for folder, result in zip(folders, results, strict=True):
        _test_metrics(result, folder)
        read_scores(Path(folder) / "per_image.csv", "test", scores)
    twice = [image for image, count in Counter(scores.names).items() if count > 1]
    if twice:
        raise UserError(f"{name}: {min(twice)} is a test image of two folds: give each fold's run once.")
    digest = hashlib.sha256("".join(result["data"]["sha256"] for result in results).encode()).hexdigest()
    merged = {
        "run": {"name": name, "model_type": first["run"]["model_type"], "settings": first["run"]["settings"]},
        "data": first["data"]
        | {
            "split": f"{len(results)} folds",
            "sizes": {"train": 0, "validation": 0, "test": len(scores.names)},
            "sha256": digest,
            "twins": [],
        },
        "environment": first["environment"],
        "cost": {"training_seconds": sum(result["cost"]["training_seconds"] for result in results)},
    }
    return write_results(output, merged, {"test": scores})


def read_scores(path, part, scores):
    """Add the rows of one part of a per_image.csv to `scores`, whose figures it holds image by image."""
    with Path(path).open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["part"] == part:
                _add_row(scores, row)


def _add_row(scores, row):
    classes = sum(name.startswith("true_positives") for name in row)
    columns = class_columns(classes)[: classes * len(COUNTS)]
    scores.names.append(row["name"])
    scores.sizes.append((int(row["height"]), int(row["width"])))
    scores.counts.append(np.array([int(row[name]) for name in columns]).reshape(classes, len(COUNTS)))
    scores.losses.append(float(row["loss"]))
    if POLYP_COLUMNS[0] in row:
        scores.polyps.append(np.array([int(row[name]) for name in POLYP_COLUMNS]))
    if BOUNDARY_COLUMNS[0] in row:
        scores.boundaries.append(np.array([float(row[name]) for name in BOUNDARY_COLUMNS]))
    if ALARM_COLUMNS[0] in row:
        scores.crops.append(None if row[ALARM_COLUMNS[0]] == "" else int(row[ALARM_COLUMNS[0]]))


def _test_metrics(results, folder):
    if "test" not in results["metrics"]:
        raise UserError(f"{folder}: its test part, the fold, was not scored: folds need score_test, which is false.")
    return results["metrics"]["test"]
