"""results.json and per_image.csv: what a run or an evaluation found, written and read here and nowhere else."""

import csv
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path

import jsonschema
import numpy as np
import torch

from hub_unets.training.errors import UserError
from hub_unets.training.measure import boundaries, false_alarms, polyps, reliability
from hub_unets.training.measure.metrics import COUNTS, NAMES, WITH_BACKGROUND, metrics_from_counts
from hub_unets.training.measure.score import Scores
from hub_unets.training.records.data_digests import write_data_digests

HISTORY = "history.csv"
BACKGROUND_COLUMNS = tuple(f"background_{count}" for count in COUNTS)
SCHEMA = json.loads(Path(__file__).with_name("results.schema.json").read_text(encoding="utf-8"))
_PACKAGES = (
    "torch",
    "timm",
    "transformers",
    "datasets",
    "accelerate",
    "evaluate",
    "albumentations",
    "numpy",
    "pillow",
)


def write_results(folder, results, scores, twins=(), history=()):
    """Write results.json, checked against its schema, per_image.csv, data_digests.csv, and a training's history.csv.

    Args:
        folder: where; made if need be.
        results: run, data, environment and cost; schema_version and metrics are added.
        scores: "validation", "test" or both to Scores.
        twins: test names with a twin in training or validation; then the test is also summarised without them.
        history: the Trainer's log: dictionaries of numbers.

    Returns:
        str: the figures, to print.
    """
    metrics = {part: part_scores.summary() for part, part_scores in scores.items()}
    twins = set(twins)
    tested = scores["test"].names if "test" in scores else []
    if 0 < sum(name in twins for name in tested) < len(tested):
        metrics["test_without_twins"] = scores["test"].summary({name for name in tested if name not in twins})
    last_metrics = metrics[[*scores][-1]]
    results = {"schema_version": 1, **results, "definitions": definitions(last_metrics), "metrics": metrics}
    check_results(results)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_tables(folder, scores, twins)
    if history:
        _write_rows(folder / HISTORY, dict.fromkeys(name for row in history for name in row), history)
    partial = folder / ".results.json"
    partial.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    partial.replace(folder / "results.json")
    return "\n".join(summary_lines(results))


def write_tables(folder, scores, twins=frozenset()):
    """Write per_image.csv and, where they are known, data_digests.csv, row by row; arguments as `write_results`."""
    columns = dict.fromkeys(name for part, part_scores in scores.items() for name in _row(part, part_scores, 0, twins))
    rows = (row for part, part_scores in scores.items() for row in _rows(part, part_scores, twins))
    _write_rows(Path(folder) / "per_image.csv", columns, rows)
    if all(part_scores.digests for part_scores in scores.values()):
        write_data_digests(folder, scores)


def _write_rows(path, columns, rows):
    """A CSV file of dictionaries; a value that is missing or None is left empty."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(columns), restval="")
        writer.writeheader()
        writer.writerows(rows)


def read_history(folder, results):
    """The Trainer's log of a run as dictionaries of numbers: of history.csv, or of an older run's results.json.

    Raises:
        UserError: a value is no number.
    """
    path = Path(folder) / HISTORY
    if not path.exists():
        return results["run"].get("history", [])
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    try:
        return [{name: float(text) for name, text in row.items() if text} for row in rows]
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: a value is no number ({error}): it is not the file that a run wrote.") from error


def definitions(part):
    """What the figures of a part that have a rule of their own are, by name."""
    texts = {
        "with_background": lambda: WITH_BACKGROUND,
        "polyps": lambda: polyps.DEFINITION,
        "boundary": boundaries.definition,
        "calibration": lambda: reliability.DEFINITION,
        "false_alarms": lambda: false_alarms.DEFINITION,
    }
    return {name: text() for name, text in texts.items() if name in part}


def read_results(path):
    """A results.json that fits the schema.

    Raises:
        UserError: it does not; says where.
    """
    try:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    check_results(results, path)
    return results


def scored_part(results):
    """The part that a run is known by: test, or validation where it left the test unseen."""
    return "test" if "test" in results["metrics"] else "validation"


def check_results(results, path="results.json"):
    """Raise UserError, naming the place, unless the results fit the schema."""
    for error in jsonschema.Draft202012Validator(SCHEMA).iter_errors(results):
        raise UserError(f"{path}: {'.'.join(map(str, error.absolute_path)) or 'top level'}: {error.message[:300]}")


def summary_lines(results):
    """Lines for each part: Dice and IoU, precision, recall, loss; then polyps, outlines and ECE; then each class."""
    for part, metrics in results["metrics"].items():
        dice, iou = metrics["per_image"]["dice"], metrics["per_image"]["iou"]
        yield (
            f"{part.replace('_', ' '):<19}{metrics['images']:>5} images   Dice {dice['value']:.4f} "
            f"({dice['low']:.4f}-{dice['high']:.4f})   IoU {iou['value']:.4f}   "
            f"pooled Dice {metrics['pooled']['dice']['value']:.4f}   "
            f"precision {metrics['per_image']['precision']['value']:.4f}   "
            f"recall {metrics['per_image']['recall']['value']:.4f}   loss {metrics['loss']['value']:.4f}"
        )
        if figures := list(_report_figures(metrics)):
            yield "  " + "   ".join(figures)
        for class_metrics in metrics.get("per_class", ()):
            yield _class_line(class_metrics, metrics["images"])
    if frames := results.get("negatives"):
        marked = frames["marked"]
        yield (
            f"{frames['source']}: {frames['frames']} frames without a polyp, marked {marked['value']:.4f} "
            f"({marked['low']:.4f}-{marked['high']:.4f})"
        )


def _report_figures(metrics):
    """Polyps, outlines and calibration of a part, each where it was measured."""
    if counts := metrics.get("polyps"):
        yield (
            f"polyps {counts['found']} of {counts['polyps']} found at IoU .5, {counts['touched']} touched, "
            f"{counts['false_polyps']} false (recall {counts['recall']['value']:.4f}, "
            f"precision {counts['precision']['value']:.4f})"
        )
    if boundary := metrics.get("boundary"):
        yield f"NSD {boundary['nsd']['value']:.4f}   HD95 {boundary['hd95']['value']:.1f} pixels"
    alarms = metrics.get("false_alarms")
    if alarms and alarms["crops"]:
        yield f"false alarms in {alarms['marked']['value']:.4f} of {alarms['crops']} polyp-free crops"
    if calibration := metrics.get("calibration"):
        yield f"ECE {calibration['ece']:.4f}"


def _class_line(class_metrics, images):
    """A class's Dice over all images, over those that hold it, and pooled."""
    over_all, present = class_metrics["per_image"]["dice"], class_metrics["present"]
    present_dice = f"{present['dice']['value']:.4f}" if present["images"] else "-"
    return (
        f"  {class_metrics['label']:<30}Dice {over_all['value']:.4f} ({over_all['low']:.4f}-{over_all['high']:.4f})   "
        f"where present {present_dice} ({present['images']} of {images} images)   "
        f"pooled Dice {class_metrics['pooled']['dice']['value']:.4f}"
    )


def data_record(data, partition, boundary_width=None):
    """What `results.json` says of the data."""
    return {
        "source": source_name(data),
        "split": partition.name,
        "split_seed": partition.seed,
        "sizes": partition.sizes,
        "sha256": partition.sha256,
        "twins": list(partition.twins),
        "boundary_width": boundary_width,
    }


def source_name(data):
    """What data are called in a record: of a local path only the last name."""
    return Path(data).name if Path(data.partition("?")[0]).expanduser().exists() else data


def without_folder(text):
    """The last name of an absolute path: results are published without a machine's folders."""
    return Path(text).name if Path(text).is_absolute() else text


def environment_record(model):
    """Hardware and versions."""
    device = model.device
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}: {cpu_name()}",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{package: version(package) for package in _PACKAGES},
    }


def cpu_name():
    """The processor's name, as its maker writes it where the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _rows(part, scores, twins):
    return (_row(part, scores, index, twins) for index in range(len(scores.names)))


def _row(part, scores, index, twins):
    """The row of one image in per_image.csv."""
    name, size, counts = scores.names[index], scores.sizes[index], scores.counts[index]
    metrics = metrics_from_counts(counts)
    row = {"name": name, "part": part, "height": size[0], "width": size[1], "twin": int(name in twins)}
    row |= {metric: f"{metrics[metric].mean():.6f}" for metric in NAMES}
    row["loss"] = f"{scores.losses[index]:.6f}"
    dices = [f"{dice:.6f}" for dice in metrics["dice"]] if len(counts) > 1 else []
    row |= dict(zip(class_columns(len(counts)), [*map(int, counts.ravel()), *dices], strict=True))
    if scores.background:
        row |= dict(zip(BACKGROUND_COLUMNS, map(int, scores.background[index]), strict=True))
    if scores.polyps:
        row |= dict(zip(polyps.POLYP_COLUMNS, map(int, scores.polyps[index]), strict=True))
    if scores.boundaries:
        distances = [f"{value:.6f}" for value in scores.boundaries[index]]
        row |= dict(zip(boundaries.BOUNDARY_COLUMNS, distances, strict=True))
    if scores.crops:
        (column,) = false_alarms.ALARM_COLUMNS
        row[column] = "" if scores.crops[index] is None else scores.crops[index]
    return row


def class_columns(classes):
    """The columns of per_image.csv behind the loss: pixel counts and, where there are several classes, their Dice."""
    if classes == 1:
        return list(COUNTS)
    numbers = range(1, classes + 1)
    return [f"{count}_{number}" for number in numbers for count in COUNTS] + [f"dice_{number}" for number in numbers]


def read_per_image(path):
    """What `write_results` wrote of each image.

    Returns:
        {part: Scores}, without tables and curves, classes called by their numbers; and the set of the twins' names.

    Raises:
        UserError: a row is not what is written of its counts; names the line.
    """
    path, parts, twins = Path(path), {}, set()
    with path.open(newline="", encoding="utf-8") as file:
        reader, number = csv.DictReader(file, strict=True), 1
        try:
            for number, row in enumerate(reader, start=2):  # noqa: B007 - it is for the error
                scores = parts.setdefault(row["part"], Scores())
                _add_row(scores, row)
                twins |= {row["name"]} if row["twin"] == "1" else set()
                _require_same(row, _row(row["part"], scores, len(scores.names) - 1, twins))
        except (KeyError, TypeError, ValueError, OverflowError, csv.Error) as error:
            reason = f"the column {error} is missing" if isinstance(error, KeyError) else str(error)[:300]
            raise UserError(f"{path.name}, line {number}: {reason}") from error
    return parts, twins


def _add_row(scores, row):
    """Append what one row of per_image.csv says to Scores."""
    counts = [int(value) for name, value in row.items() if str(name).startswith(COUNTS)]
    background = [int(row[name]) for name in BACKGROUND_COLUMNS if name in row]
    distances = [float(row[name]) for name in boundaries.BOUNDARY_COLUMNS if name in row]
    regions = [int(row[name]) for name in polyps.POLYP_COLUMNS if name in row]
    crops = [int(row[name]) if row[name] else None for name in false_alarms.ALARM_COLUMNS if name in row]
    size, loss = (int(row["height"]), int(row["width"])), float(row["loss"])
    numbers = (*counts, *background, *distances, *regions, *size, loss, *filter(None, crops))
    if not all(0 <= value < 10**15 for value in numbers):
        raise ValueError("numbers must be from 0, and below 10^15")
    scores.names.append(row["name"])
    scores.sizes.append(size)
    scores.counts.append(np.array(counts, np.int64).reshape(-1, len(COUNTS)))
    scores.losses.append(loss)
    scores.class_names = [str(number) for number in range(1, len(scores.counts[0]) + 1)]
    scores.background += [np.array(background, np.int64)] if background else []
    scores.polyps += [np.array(regions, np.int64)] if regions else []
    scores.boundaries += [tuple(distances)] if distances else []
    scores.crops += crops


def _require_same(row, expected):
    """Raise ValueError unless a row has the columns and texts that are written of its counts."""
    if list(row) != list(expected):
        raise ValueError(f"the columns must be {', '.join(expected)}")
    for name, value in expected.items():
        if row[name] != str(value):
            raise ValueError(f"{name} is {str(row[name])[:80]}, its counts give {value}")
