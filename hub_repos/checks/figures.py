"""Checks that a built repository's figures agree: every image's row, results.json and the card."""

import csv
import io
import itertools
import math
import re

import numpy as np
from huggingface_hub import ModelCard

from hub_unets.hub_repos.checks.untrusted import read_json, read_text
from hub_unets.hub_repos.repository.card import render_card
from hub_unets.training.errors import UserError
from hub_unets.training.measure.boundaries import BOUNDARY_COLUMNS, summarize_boundaries
from hub_unets.training.measure.false_alarms import ALARM_COLUMNS, summarize_crops
from hub_unets.training.measure.metrics import (
    COUNTS,
    NAMES,
    by_size,
    mean_with_interval,
    metrics_from_counts,
    summarize,
)
from hub_unets.training.measure.polyps import POLYP_COLUMNS, summarize_polyps
from hub_unets.training.measure.reliability import expected_calibration_error
from hub_unets.training.records.results import check_results, class_columns

TOLERANCE = 1e-6
CONTROL = r"\x00-\x1f\x7f-\x9f\u2028\u2029`"
MARKUP = re.compile(rf"[{CONTROL}~<>|\[\]]")  # with which a text could be more than a text in a card
CODE_MARKUP = re.compile(rf"[{CONTROL}]")
SNIPPET = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LOADED = re.compile(r"^segment = pipeline\(.*, model=(.*), trust_remote_code=True\)$", re.MULTILINE)
ARGUMENTS = re.compile(
    r'MODEL|"(?P<repo_id>[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96})"(, revision="(?P<revision>[\w.-]{1,100})")?', re.ASCII
)
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
NOT_OF_ROWS = {"label", "calibration"}  # of the metrics; other checks see to them
FIXED_COLUMNS = ("name", "part", "height", "width", "twin", *NAMES, "loss")


def check_results_file(folder):
    """results.json fits its schema, is of this model, and what the card shows of it is plain text."""
    results = read_json(folder / "results.json")
    check_results(results)
    run, data, environment = results["run"], results["data"], results["environment"]
    if "test" not in results["metrics"]:
        raise UserError("results.json: metrics has no test part, which a card needs")
    config = read_json(folder / "config.json")
    model_type = config.get("model_type")
    if run["model_type"] != model_type:
        raise UserError(f"results.json: run.model_type is {run['model_type']!r}, the config's {model_type!r}")
    for part, metrics in results["metrics"].items():
        _check_labels(part, metrics.get("per_class", ()), config)
    if not isinstance(run.get("command"), str):
        raise UserError("results.json: run.command must be one line of text without backticks")
    _require_lines(results, "")
    shown = {"run.name": run["name"], "data.source": data["source"], "data.split": data["split"]}
    shown |= {f"definitions.{name}": text for name, text in results.get("definitions", {}).items()}
    shown |= {f"sweep.{name}": value for name, value in results.get("sweep", {}).items() if value is not None}
    for place, value in {**shown, **{f"environment.{name}": value for name, value in environment.items()}}.items():
        if not isinstance(value, (str, int, float)) or MARKUP.search(str(value)):
            raise UserError(f"results.json: {place} must be plain text, got {str(value)[:80]!r}")
    for part, metrics in results["metrics"].items():
        if missing := sorted(
            {"polyps", "boundary", "calibration", "false_alarms"}
            & metrics.keys() - results.get("definitions", {}).keys()
        ):
            raise UserError(f"results.json: metrics.{part}.{missing[0]} has no text in definitions")
    if "calibration" in results:
        _check_calibration(results, read_json(folder / "preprocessor_config.json"))


def _check_calibration(results, processor):
    """What was fitted on validation is what the processor holds and what the validation's figures say."""
    fitted, validation = results["calibration"], results["metrics"].get("validation")
    if validation is None:
        raise UserError("results.json: calibration without metrics.validation")
    wanted = {
        "threshold": processor.get("mask_threshold"),
        "score_threshold": processor.get("score_threshold"),
        "images": validation["images"],
        "loss_after": validation["loss"]["value"],
        "ece_after": validation.get("calibration", {}).get("ece"),
        "dice_after": validation["per_image"]["dice"]["value"],
    }
    for name, value in wanted.items():
        if value is None or abs(fitted[name] - value) > TOLERANCE:
            raise UserError(
                f"results.json: calibration.{name} is {fitted[name]}, the processor and metrics.validation say {value}"
            )
    if "by_size" in fitted:
        after = [_after(row, row["dice_after"], row["recall_after"]) for row in fitted["by_size"]]
        own = [_after(row, row["dice"]["value"], row["recall"]["value"]) for row in validation.get("by_size", ())]
        if np.shape(after) != np.shape(own) or not np.allclose(after, own, rtol=0, atol=TOLERANCE):
            raise UserError(f"results.json: calibration.by_size is {after}, metrics.validation.by_size {own}")


def _after(row, dice, recall):
    return [row["above"], row["up_to"], row["images"], dice, recall]


def _require_lines(value, place):
    """Whether a card shows it or not: a text with a line's end or a backtick could become a snippet, which is run."""
    if isinstance(value, str) and CODE_MARKUP.search(value):
        raise UserError(f"results.json: {place[:100]} must be one line of text without backticks")
    for name, inner in value.items() if isinstance(value, dict) else ():
        _require_lines(name, f"a name in {place or 'it'}")
        _require_lines(inner, f"{place}.{name}".removeprefix("."))
    for inner in value if isinstance(value, list) else ():
        _require_lines(inner, place)


def _check_labels(part, per_class, config):
    """Several classes are called as the config calls its labels, the background left out."""
    names, labels = [one["label"] for one in per_class], config.get("id2label", {})
    if names and names != [labels.get(str(label)) for label in range(1, len(labels))]:
        raise UserError(f"results.json: metrics.{part}.per_class has {names}, the config {labels}")


def check_per_image(folder):
    """The figures of results.json, intervals too, computed again from the pixel counts of every image's row."""
    results, rows = read_json(folder / "results.json"), read_rows(folder)
    data, metrics = results["data"], results["metrics"]
    names = [row["name"] for row in rows]
    if len(set(names)) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise UserError(f"per_image.csv: {repeated} is in two rows")
    parts = {part: [row for row in rows if row["part"] == part] for part in ("validation", "test")}
    for part, of_part in parts.items():
        _check_count(part, len(of_part), results)
    twins = {row["name"] for row in rows if row["twin"]}
    if twins != set(data["twins"]) & {row["name"] for row in parts["test"]}:
        raise UserError("per_image.csv: the column twin does not agree with data.twins")
    without = [row for row in parts["test"] if not row["twin"]]
    if 0 < len(without) < len(parts["test"]):
        parts["test_without_twins"] = without
    recomputed = {part: summary(of_part) for part, of_part in parts.items() if of_part}
    if recomputed.keys() != metrics.keys():
        raise UserError(f"results.json has metrics of {sorted(metrics)}, per_image.csv of {sorted(recomputed)}")
    _compare(recomputed, metrics, "metrics")
    for part, of_part in metrics.items():
        if "calibration" in of_part:
            _check_reliability(part, of_part["calibration"], np.stack([row["counts"] for row in parts[part]]))


def _check_reliability(part, calibration, counts):
    """The table's pixels are those of the rows, and its ECE follows from it."""
    table, place = calibration["bins"], f"metrics.{part}.calibration"
    pixels, polyp_pixels = (sum(row[name] for row in table) for name in ("pixels", "polyp_pixels"))
    if (pixels, polyp_pixels) != (counts.sum(), counts[..., [0, 2]].sum()):
        raise UserError(f"results.json: {place}.bins has other pixels than per_image.csv")
    for row in table:
        mean = row["probability"]
        if (mean is None) != (row["pixels"] == 0) or (
            mean is not None and not row["above"] - TOLERANCE <= mean <= row["up_to"] + TOLERANCE
        ):
            raise UserError(f"results.json: {place}.bins has a probability of {mean} in the bin up to {row['up_to']}")
    _compare(expected_calibration_error(table), calibration["ece"], f"{place}.ece")


def read_rows(folder):
    """per_image.csv as dictionaries; `counts` is int64 classes x 4, and of one class, where the columns are there,
    `polyps` int64 4 and `boundary` (NSD, HD95).

    Raises:
        UserError: a column, a value or a metric of a row that does not follow from the row's counts.
    """
    reader = csv.reader(io.StringIO(read_text(folder / "per_image.csv"), newline=""), strict=True)
    header, *lines = reader
    added = _added_columns(header)
    classes = max(1, (len(header) - len(FIXED_COLUMNS) - len(added)) // (len(COUNTS) + 1))
    wanted = [*FIXED_COLUMNS, *class_columns(classes), *added]
    if header != wanted or (added and classes > 1):
        raise UserError(f"per_image.csv: the columns must be {', '.join(wanted)}")
    return [_read_row(number, header, line) for number, line in enumerate(lines, start=2)]


def _added_columns(header):
    """The columns behind the counts that are there: polyps, outlines, crops; none in files of older releases."""
    return [name for name in (*POLYP_COLUMNS, *BOUNDARY_COLUMNS, *ALARM_COLUMNS) if name in header]


def _read_row(number, header, line):
    where = f"per_image.csv, line {number}"
    if len(line) != len(header):
        raise UserError(f"{where}: {len(line)} values in {len(header)} columns")
    row = dict(zip(header, line, strict=True))
    if row["part"] not in ("validation", "test") or row["twin"] not in ("0", "1"):
        raise UserError(f"{where}: part must be validation or test, and twin 0 or 1")
    dices = [name for name in header if name.startswith("dice_")]
    polyps, distances = ([name for name in names if name in row] for names in (POLYP_COLUMNS, BOUNDARY_COLUMNS))
    alarms = [name for name in ALARM_COLUMNS if name in row]
    not_counts = {*dices, *polyps, *distances, *alarms}
    values = [row[name] for name in header[len(FIXED_COLUMNS) :] if name not in not_counts]
    whole = (*values, *(row[name] for name in ("height", "width", *polyps)), *(row[name] or "0" for name in alarms))
    if not all(re.fullmatch(r"[0-9]{1,15}", text) for text in whole):
        raise UserError(f"{where}: sizes and counts must be whole numbers")
    counts = np.array(values, np.int64).reshape(-1, len(COUNTS))
    if (counts.sum(axis=1) > int(row["height"]) * int(row["width"])).any():
        raise UserError(f"{where}: more pixels are counted than {row['height']} x {row['width']}")
    if not all(re.fullmatch(r"[0-9]+\.[0-9]{6}", row[name]) for name in (*NAMES, "loss", *dices, *distances)):
        raise UserError(f"{where}: metrics and loss must be numbers of six decimals")
    metrics = metrics_from_counts(counts)
    wanted = {name: of_classes.mean() for name, of_classes in metrics.items()}
    for name, value in (wanted | dict(zip(dices, metrics["dice"], strict=False))).items():
        if abs(float(row[name]) - value) > TOLERANCE:
            raise UserError(f"{where}: {name} is {row[name]}, its counts give {value:.6f}")
    size = int(row["height"]), int(row["width"])
    read = {"name": row["name"], "part": row["part"], "twin": row["twin"] == "1", "size": size, "counts": counts}
    read |= {"dice": float(row["dice"]), "loss": float(row["loss"])}
    if polyps:
        read["polyps"] = [int(row[name]) for name in polyps]
        _check_polyps(where, *read["polyps"], counts[0])
    if distances:
        read["boundary"] = [float(row[name]) for name in distances]
        _check_boundary(where, *read["boundary"], counts[0], math.hypot(*size))
    if alarms:
        (read["crop"],) = (int(row[name]) if row[name] else None for name in alarms)
    return read


def _check_polyps(where, polyps, found, touched, false_polyps, counts):
    """No more found than touched, no more touched than there are, and none without pixels."""
    both, invented, missed, _ = counts
    possible = (
        (polyps == 0 or both + missed > 0)
        and (touched == 0 or both > 0)
        and (false_polyps == 0 or both + invented > 0)
    )
    if not (found <= touched <= polyps and possible):
        raise UserError(
            f"{where}: the polyps can't be {polyps}, {found} found, {touched} touched, {false_polyps} false"
        )


def _check_boundary(where, nsd, hd95, counts, diagonal):
    """Within their ranges; with an empty mask as `training.measure.boundaries` says; and 1 and 0 of equal masks."""
    both, invented, missed, _ = counts
    predicted, there = both + invented > 0, both + missed > 0
    if predicted != there:
        possible = (nsd, round(hd95, 4)) == (0, round(diagonal, 4))
    elif invented == missed == 0:
        possible = (nsd, hd95) == (1, 0)
    else:
        possible = 0 <= nsd <= 1 and hd95 <= diagonal
    if not possible:
        raise UserError(f"{where}: nsd {nsd} and hd95 {hd95} do not fit the row's counts")


def _check_count(part, count, results):
    """As many rows as the split has images, or as `max_samples` kept of them; none of a test part left unseen."""
    sizes, settings = results["data"]["sizes"], results["run"]["settings"]
    kept = settings.get("max_samples")
    wanted = sizes.get(part) if kept is None else min(sizes.get(part), int(kept))
    if part == "test" and str(settings.get("score_test")).lower() == "false":
        wanted = 0
    said = results["metrics"].get(part, {"images": 0})["images"]
    if not count == said == wanted:
        raise UserError(f"{part}: per_image.csv has {count} images, results.json {said}, the split {wanted}")


def summary(rows):
    """What results.json holds of a part, from its rows."""
    counts = np.stack([row["counts"] for row in rows])
    sizes = {"by_size": by_size(counts[:, 0])} if counts.shape[1] == 1 else {}
    losses = [row["loss"] for row in rows]
    polyps = {"polyps": summarize_polyps([row["polyps"] for row in rows])} if "polyps" in rows[0] else {}
    boundary = {}
    if "boundary" in rows[0]:
        boundary["boundary"] = summarize_boundaries([row["boundary"] for row in rows], [row["size"] for row in rows])
    if "crop" in rows[0]:
        boundary["false_alarms"] = summarize_crops([row["crop"] for row in rows])
    loss = {"loss": mean_with_interval(losses)}
    return {"images": len(rows), **summarize(counts), **sizes, **loss, **polyps, **boundary}


def _compare(wanted, got, place):
    """Raise UserError unless `got` has every number of `wanted`, and no more."""
    if isinstance(wanted, (dict, list)):
        if type(got) is not type(wanted) or len(got) < len(wanted):
            raise UserError(f"results.json: {place} is incomplete")
        if len(set(got) - NOT_OF_ROWS if isinstance(got, dict) else got) > len(wanted):
            raise UserError(f"results.json: {place} holds more than follows from the rows of per_image.csv")
        for key in wanted if isinstance(wanted, dict) else range(len(wanted)):
            if isinstance(wanted, dict) and key not in got:
                raise UserError(f"results.json: {place}.{key} is missing")
            _compare(wanted[key], got[key], f"{place}.{key}")
    elif None in (wanted, got):
        if wanted is not got:
            raise UserError(f"results.json: {place} is {got}, the rows of per_image.csv give {wanted}")
    elif abs(got - wanted) > TOLERANCE:
        raise UserError(f"results.json: {place} is {got}, the rows of per_image.csv give {wanted:.6f}")


def check_metadata(folder):
    """The card's metadata say to the Hub what this is: library, task, and figures as model-index."""
    data = ModelCard(read_text(folder / "README.md"), ignore_metadata_errors=False).data
    for field, wanted in (("library_name", "transformers"), ("pipeline_tag", "image-segmentation")):
        if data.get(field) != wanted:
            raise UserError(f"README.md: {field} must be {wanted}, got {data.get(field)!r}")
    if not data.eval_results:
        raise UserError("README.md: model-index has no figures")


def check_card(folder):
    """The card is, to the byte, what our template makes of results.json, config and pictures."""
    card, results = read_text(folder / "README.md"), read_json(folder / "results.json")
    repo_id, revision = loaded_repository(card)
    for name in ("config.json", "preprocessor_config.json"):
        read_json(folder / name)
    ours = render_card(folder, results, repo_id, revision)
    lines = itertools.zip_longest(card.split("\n"), ours.split("\n"), fillvalue="")
    for number, (their_line, our_line) in enumerate(lines, start=1):
        if their_line != our_line:
            raise UserError(f"README.md, line {number}: {_difference(their_line, our_line)}")
    if card != ours:
        raise UserError("README.md: the empty lines at its end are not the template's")


def _difference(theirs, ours):
    """What differs in a line: the first number, or the text."""
    if NUMBER.sub("#", theirs) == NUMBER.sub("#", ours):
        pairs = zip(NUMBER.findall(theirs), NUMBER.findall(ours), strict=True)
        their_number, our_number = next(pair for pair in pairs if pair[0] != pair[1])
        return f"says {their_number} where results.json gives {our_number}"
    return f"is {theirs[:120]!r}, the template gives {ours[:120]!r}"


def loaded_repository(card):
    """(repo_id, revision) that the card's snippets load; None where it names no repository."""
    match = ARGUMENTS.fullmatch(_arguments(card))
    if not match:
        raise UserError('README.md: the first snippet must load MODEL or "owner/name", revision="..."')
    return match["repo_id"], match["revision"]


def _arguments(card):
    match = LOADED.search(card)
    if not match:
        raise UserError("README.md has no snippet that calls the pipeline")
    return match[1]


def check_named(folder, repo_id):
    """The card's snippets load no other repository than the one that the card stands in."""
    named, _ = loaded_repository(read_text(folder / "README.md"))
    if named not in (None, repo_id):
        raise UserError(f"README.md: the snippets load {named}, and this is {repo_id}")


def snippets(folder, image):
    """The Python of the card's snippets, loading from the folder and reading the file `image`."""
    card = read_text(folder / "README.md")
    arguments = _arguments(card)
    return [
        block.replace(arguments, repr(str(folder))).replace('"image.jpg"', repr(str(image)))
        for block in SNIPPET.findall(card)
    ]
