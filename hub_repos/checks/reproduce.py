"""Score a built repository again on its data, with this project's own classes, and compare with its figures."""

from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np

from hub_unets.hub_repos.checks.calibration import check_best, check_calibration
from hub_unets.hub_repos.checks.check import Check, checked
from hub_unets.hub_repos.checks.data import compare_digests, require_present, stored_digests
from hub_unets.hub_repos.checks.untrusted import read_json
from hub_unets.modeling.image_processing_unet import UNetImageProcessor
from hub_unets.modeling.variants import find_variant
from hub_unets.training.data.partition import make_partition
from hub_unets.training.data.sources import load_source
from hub_unets.training.errors import UserError
from hub_unets.training.measure.metrics import metrics_from_counts
from hub_unets.training.measure.score import score
from hub_unets.training.measure.task import Task
from hub_unets.training.measure.weights import load_weights
from hub_unets.training.records.results import read_per_image

IMAGE_TOLERANCE = 1e-3  # of an image's Dice, pixels and loss: on another processor a pixel at a mask's edge may move
FREE_PIXELS = 2  # may move in the smallest masks
MEAN_TOLERANCE = 1e-4
REPORT = {  # tolerances of a part's other figures, by their keys in results.json; a moved pixel can join two regions
    ("polyps", "recall"): 0.02,
    ("polyps", "precision"): 0.02,
    ("polyps", "touched_share"): 0.02,
    ("boundary", "nsd"): 1e-3,
    ("boundary", "hd95_share"): 1e-3,
    ("calibration", "ece"): 1e-3,
    ("false_alarms", "marked"): 0.02,
}


def reproduce(folder, data, columns=(None, None), scored=None):
    """The checks of split and figures, for a folder that has passed the static checks.

    Args:
        folder: the repository.
        data: the images and masks, as `training.evaluate` takes them.
        columns: the image column and the mask column, from the command line and never from the repository.
        scored: a dictionary that gets the Scores of each part.
    """
    folder = Path(folder)
    results, (rows, _) = read_json(folder / "results.json"), read_per_image(folder / "per_image.csv")
    try:
        config_class, model_class = find_variant(results["run"]["model_type"])
        stored = stored_digests(folder)
        images = load_images(data, results, rows, stored, config_class.from_pretrained(folder).id2label, columns)
    except (UserError, OSError) as error:
        return [Check("split", False, str(error))]
    model, processor = load_weights(model_class, folder), UNetImageProcessor.from_pretrained(folder)
    checks = [Check("split", True, f"{results['data']['split']}, sha256 {results['data']['sha256']}")]
    scored = {} if scored is None else scored
    for part in _parts(results):
        figures, part_images = f"figures of {part}", _select(images, rows[part].names)
        scoring = checked(figures, _score, model, processor, part_images, results, scored, part)
        if scoring.passed and stored:
            checks.append(checked(f"data of {part}", compare_digests, stored[part], scored[part]))
        compared = checked(figures, _compare, scored[part], rows[part], results, part) if scoring.passed else scoring
        checks.append(compared)
    if "calibration" in results:
        validation = _select(images, rows["validation"].names)
        checks.append(checked("calibration", check_calibration, model, processor, validation, results["calibration"]))
    if results["run"].get("best") and "validation" in results["metrics"]:
        checks.append(checked("best epoch", check_best, results))
    return checks


def load_images(data, results, rows, stored, id2label, columns):
    """The rows of the data.

    Raises:
        UserError: their split is not that of results.json, or the scored images are not those of the parts.
    """
    for name in filter(None, columns):
        if ".." in PurePosixPath(name).parts or PurePosixPath(name).root or PureWindowsPath(name).anchor:
            raise UserError(f"a column is a name inside of the data, got the path {name!r}")
    record, source = results["data"], _load(data, results["run"]["settings"], id2label, columns)
    require_present(stored, [name for part in source.values() for name in part["name"][:]])
    images, partition = make_partition(source, record["split"], record["split_seed"])
    for name, value in (
        ("sha256", partition.sha256),
        ("sizes", partition.sizes),
        ("twins", list(partition.twins)),
    ):
        if record[name] != value:
            raise UserError(
                f"{record['split']} of {data} has {name} {str(value)[:200]}, results.json {str(record[name])[:200]}"
            )
    for part in _parts(results):
        names = set(rows[part].names)
        if names != set(partition.names_of(part)[: len(names)]):
            raise UserError(f"per_image.csv has other images as {part} than the split")
    return images


def _load(data, settings, id2label, columns):
    """The data's rows; where the columns are ambiguous, the error names those that the run took."""
    try:
        return load_source(data, *columns, id2label)
    except UserError as error:
        options = [
            f"--{name} {str(settings[name])[:80]}" for name in ("image_column", "mask_column") if name in settings
        ]
        if not options or any(columns):
            raise
        raise UserError(f"{error}; the run was given {' '.join(options)}: look whether they are right") from error


def _parts(results):
    return [part for part in ("validation", "test") if part in results["metrics"]]


def _select(images, names):
    """The rows of these names, in their order."""
    index = {name: number for number, name in enumerate(images["name"][:])}
    return images.select([index[name] for name in names])


def _score(model, processor, images, results, scored, part):
    """Put the Scores of a part's images into `scored`."""
    crops, boundary_width = "false_alarms" in results["metrics"][part], results["data"].get("boundary_width")
    scored[part] = score(model, processor, images, Task.of_run(model.config, boundary_width), crops=crops)


def _compare(scores, rows, results, part):
    """The largest differences in words; UserError where an image's pixels, Dice, loss, or the mean differ too much."""
    counts, stated_counts = np.asarray(scores.counts), np.asarray(rows.counts)
    moved = _moved(counts, stated_counts)  # Dice alone would hide a changed recall
    if rows.background:  # of an earlier release, not
        moved = np.maximum(moved, _moved(np.asarray(scores.background), np.asarray(rows.background)))
    allowed = np.maximum(FREE_PIXELS, IMAGE_TOLERANCE * (stated_counts @ [2, 1, 1, 0]).sum(axis=1))
    loss_difference = np.abs(np.subtract(scores.losses, rows.losses)).max()
    dices, stated_dices = (metrics_from_counts(pixels)["dice"].mean(axis=1) for pixels in (counts, stated_counts))
    differences = np.abs(dices - stated_dices)
    mean_difference = abs(dices.mean() - stated_dices.mean())
    worst = int(differences.argmax())
    summary = (
        f"{len(rows.names)} images, mean Dice {dices.mean():.4f}; largest difference {differences[worst]:.6f} "
        f"({rows.names[worst]}), of the mean {mean_difference:.6f}, "
        f"of a loss {loss_difference:.6f}; at most {moved.max():.0f} pixels moved"
    )
    wrong = max(differences[worst], loss_difference) > IMAGE_TOLERANCE or mean_difference > MEAN_TOLERANCE
    if wrong or (moved > allowed).any():
        raise UserError(f"not reproduced: {summary}; allowed are {IMAGE_TOLERANCE}, of the mean {MEAN_TOLERANCE}")
    _compare_report(scores.summary(), results["metrics"][part])
    if part == "test" and "test_without_twins" in results["metrics"]:
        kept = set(rows.names) - set(results["data"]["twins"])
        _compare_report(scores.summary(kept), results["metrics"]["test_without_twins"])
    return summary


def _moved(counts, stated_counts):
    """Each image's pixels that count as something else, of all classes together."""
    return np.abs(counts - stated_counts).reshape(len(counts), -1).sum(axis=1) / 2


def _compare_report(recomputed, stated):
    """Raise UserError where one of the figures in REPORT differs too much.

    Outlines are compared only where MONAI is installed.
    """
    for (group, name), tolerance in REPORT.items():
        if group in stated and group in recomputed:
            figures = [metrics[group][name] for metrics in (recomputed, stated)]
            value, expected = (figure["value"] if isinstance(figure, dict) else figure for figure in figures)
            if (value is None) != (expected is None) or (value is not None and abs(value - expected) > tolerance):
                raise UserError(
                    f"not reproduced: {group}.{name} is {value}, results.json says {expected}; allowed is {tolerance}"
                )
