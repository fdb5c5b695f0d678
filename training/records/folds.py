"""Cross-validation: the test parts of all folds as one, each image scored by the network that never saw it."""

import hashlib
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hub_unets.training.data.partition import make_partition
from hub_unets.training.errors import UserError
from hub_unets.training.measure.calibration import SCORES, THRESHOLDS, by_thresholds, choose
from hub_unets.training.measure.ensemble import ENSEMBLE, describe, write_ensemble
from hub_unets.training.measure.ensemble import THRESHOLDS as PAIR
from hub_unets.training.measure.metrics import metrics_from_counts
from hub_unets.training.measure.models import load_model
from hub_unets.training.measure.score import Scores, score
from hub_unets.training.measure.task import Task
from hub_unets.training.records.locks import log_scoring, make_lock
from hub_unets.training.records.pictures import pick_cases, prediction_grid
from hub_unets.training.records.results import read_results, summary_lines, write_results
from hub_unets.training.records.run_pictures import case, save_mask

HARDEST, PICTURE = 12, "hardest.png"
RULE = (
    "One pair of thresholds for all folds. Of all pairs whose Dice, the mean over the folds of the means over each "
    "fold's validation images and their mirror images by the fold's own network, is at most .001 below the best, the "
    "one that marks the fewest polyp-free crops. No network saw the images that it was tried on, and none was tried "
    "on its test part; each validation image is a test image of another fold. The temperatures are the networks' own."
)


class Fold(NamedTuple):
    """A finished run with the images of its split: `rows` of all data, and the indices of two parts."""

    folder: Path
    results: dict
    rows: object
    validation: list
    test: list

    @property
    def boundary_width(self):
        return self.results["data"].get("boundary_width")

    @property
    def names(self):
        """The test images'."""
        return self.rows.select(self.test)["name"]

    def lock(self, thresholds):
        """What its test part is scored under with these thresholds."""
        run, data = self.results["run"], self.results["data"]
        settings = run["settings"] | thresholds
        return make_lock(run["model_type"], settings, run["seed"], data["split_seed"], data["sha256"])

    def load(self, thresholds):
        """Its model, and its processor with these thresholds."""
        model, processor = load_model(self.folder)
        for name, value in thresholds.items():
            setattr(processor, name, value)
        return model, processor


def read_fold(folder, source):
    """A finished run and its data as a Fold.

    Raises:
        UserError: the data split otherwise than when it was trained.
    """
    results = read_results(Path(folder) / "results.json")
    data, limit = results["data"], results["run"]["settings"].get("max_samples")
    rows, partition = make_partition(source, data["split"], data["split_seed"])
    if partition.sha256 != data["sha256"]:
        raise UserError(f"the data split otherwise than when {folder} was trained: give the same data.")
    parts = [list(part)[: None if limit is None else int(limit)] for part in (partition.validation, partition.test)]
    return Fold(Path(folder), results, rows, *parts)


def write_out_of_fold(name, folders, source, output):
    """Score each image by the network that never saw it, with one pair of thresholds for all folds.

    Leaves in the folder `results.json` and `per_image.csv` of all folds' test images, `masks/NAME.png`, the picture
    of the hardest images, and `ensemble.json`, so that the folder is a model, the mean of all folds'. Where all of it
    is there and no fold has changed since, nothing is done.

    Args:
        name: of what was trained.
        folders: of the finished runs, one a fold.
        source: their data, as `load_source` gives them.
        output: folder that is written.

    Returns:
        str: the figures, to print.

    Raises:
        UserError: other data, or an image in two folds.
    """
    output = Path(output)
    if is_up_to_date(output, folders):
        return "\n".join(summary_lines(read_results(output / "results.json")))
    folds = [read_fold(folder, source) for folder in folders]
    names = [image for fold in folds for image in fold.names]
    if twice := [image for image, count in Counter(names).items() if count > 1]:
        raise UserError(f"{name}: {min(twice)} is a test image of two folds: give each fold's run once.")
    thresholds, fitted = common_thresholds(folds)
    scores = score_folds(folds, thresholds, output)
    draw_hardest(folds, thresholds, scores, output / PICTURE)
    write_ensemble(output, folders, thresholds)
    members = [Path(folder).name for folder in folders]
    record = cross_validation_record(name, folds, len(names)) | {
        "cross_validation": {"members": members, **thresholds, **fitted}
    }
    return write_results(output, record, {"test": scores})


def is_up_to_date(output, folders):
    """Whether a folder holds what `write_out_of_fold` made of just these checkpoints."""
    return (
        (output / "results.json").is_file()
        and (output / ENSEMBLE).is_file()
        and all(
            f'"{digest}"' in (output / ENSEMBLE).read_text(encoding="utf-8")
            for member in describe(output, folders)["members"]
            for digest in member["sha256"].values()
        )
    )


def common_thresholds(folds):
    """`mask_threshold` and `score_threshold` by RULE, and what says so; of runs that were not calibrated their own."""
    if "calibration" not in folds[0].results:
        _, processor = load_model(folds[0].folder)
        return {name: getattr(processor, name) for name in PAIR}, {}
    tables = [by_thresholds(*fold.load({}), fold.rows.select(fold.validation)) for fold in folds]
    dice, alarms = np.mean(tables, axis=0)
    pixels, regions = choose(dice, alarms)
    pair = float(THRESHOLDS[pixels]), float(SCORES[regions])
    fitted = {"rule": RULE, "dice": float(dice[pixels, regions]), "false_alarms": float(alarms[pixels, regions])}
    return dict(zip(PAIR, pair, strict=True)), fitted


def score_folds(folds, thresholds, output):
    """Scores of all test images, fold by fold; their masks are written."""
    scores = Scores()
    for number, fold in enumerate(folds, start=1):
        model, processor = fold.load(thresholds)
        task = Task.of_run(model.config, fold.boundary_width)
        log_scoring(output, "test", len(fold.test), lock=fold.lock(thresholds))

        def keep(name, mask, num_labels=model.config.num_labels):
            save_mask(output / "masks" / f"{name}.png", mask, num_labels)

        rows, progress = fold.rows.select(fold.test), f"Score fold {number}"
        fold_scores = score(model, processor, rows, task, crops=True, progress=progress, keep=keep)
        scores.class_names = fold_scores.class_names
        scores.extend(fold_scores)
    return scores


def draw_hardest(folds, thresholds, scores, path):
    """The images of the lowest Dice, each with its annotation and the mask of the network that never saw it."""
    dice = metrics_from_counts(np.asarray(scores.counts))["dice"].mean(axis=1)
    dice_of = dict(zip(scores.names, dice, strict=True))
    _, hardest = pick_cases(dice, scores.names, worst=HARDEST)
    cases = {}
    for fold in folds:
        index_of = dict(zip(fold.names, fold.test, strict=True))
        if present := [name for name in hardest if name in index_of]:
            model, processor = fold.load(thresholds)
            for name in present:
                row = fold.rows[index_of[name]]
                cases[name] = case(row, model, processor, dice_of[name], fold.boundary_width)
    prediction_grid([cases[name] for name in hardest], path, "Hardest images, out of fold", model.config.id2label)


def cross_validation_record(name, folds, images):
    """What results.json says besides the figures; the cost is that of all networks together."""
    results, first = [fold.results for fold in folds], folds[0].results
    digest = hashlib.sha256("".join(result["data"]["sha256"] for result in results).encode()).hexdigest()
    sums = {key: sum(result["run"][key] for result in results) for key in ("parameters", "gmacs")}
    return {
        "run": {"name": name, "model_type": first["run"]["model_type"], "settings": first["run"]["settings"], **sums},
        "data": first["data"]
        | {
            "split": f"{len(results)} folds",
            "sizes": {"train": 0, "validation": 0, "test": images},
            "sha256": digest,
            "twins": [],
        },
        "environment": first["environment"],
        "cost": {"training_seconds": sum(result["cost"]["training_seconds"] for result in results)},
    }
