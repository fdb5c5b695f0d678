"""Checks that a built repository's figures agree: every image's row, results.json and the card."""

import collections
import itertools
import math
import re

import numpy as np
from jinja2 import TemplateError

from hub_unets.hub_repos.checks.untrusted import read_json, read_text
from hub_unets.hub_repos.repository.card import render_card
from hub_unets.modeling.variants import find_variant
from hub_unets.training.errors import UserError, about_input
from hub_unets.training.measure import boundaries, false_alarms, polyps, reliability
from hub_unets.training.measure.metrics import WITH_BACKGROUND
from hub_unets.training.records.results import check_results, read_per_image
from hub_unets.training.settings.texts import value_of

TOLERANCE = 1e-6
CONTROL = r"\x00-\x1f\x7f-\x9f\u2028\u2029`"
MARKUP = re.compile(rf"[{CONTROL}~<>|\[\]]")  # a card would render these as more than text
CODE_MARKUP = re.compile(rf"[{CONTROL}]")
SNIPPET = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LOADED = re.compile(
    r'^segment = pipeline\("image-segmentation", model='
    r'(?P<arguments>MODEL|"(?P<repo_id>[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96})"'
    r'(, revision="(?P<revision>[\w.-]{1,100})")?)'
    r", trust_remote_code=True\)$",
    re.ASCII | re.MULTILINE,
)
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
NOT_FROM_ROWS = {"label", "calibration"}  # other checks judge these metrics
DEFINITIONS = {  # patterns, because the outline's rule names the version of MONAI that computed it
    "with_background": re.escape(WITH_BACKGROUND),
    "polyps": re.escape(polyps.DEFINITION),
    "boundary": re.escape(boundaries.RULE) + r"[0-9][\w.+-]{0,30}\.",
    "calibration": re.escape(reliability.DEFINITION),
    "false_alarms": re.escape(false_alarms.DEFINITION),
}
MOST_SETTING = 10_000  # letters


def check_results_file(folder):
    """results.json fits its schema and this model, and the texts that the card shows are plain."""
    results, config = read_json(folder / "results.json"), read_json(folder / "config.json")
    check_results(results)
    model_type, run_model_type = config.get("model_type"), results["run"]["model_type"]
    if run_model_type != model_type:
        raise UserError(f"results.json: run.model_type is {run_model_type!r}, the config's {model_type!r}")
    if not isinstance(results["run"].get("command"), str):
        raise UserError("results.json: run.command must be one line of text without backticks")
    _require_lines(results, "")
    _require_plain(results)
    _check_definitions(results)
    _check_settings(results)
    for part, metrics in results["metrics"].items():
        _check_classes(part, metrics.get("per_class", ()), config)
    if "calibration" in results:
        _check_calibration(results, read_json(folder / "preprocessor_config.json"))
    return _check_labels(results["run"]["settings"], config)


def _require_plain(results):
    """Raise UserError unless the texts that the card shows outside of code are plain."""
    run, data = results["run"], results["data"]
    texts = {"run.name": run["name"], "data.source": data["source"], "data.split": data["split"]}
    for extra in data.get("extra", ()):
        texts |= {f"data.extra.{name}": extra[name] for name in ("source", "split")}
    texts |= {f"sweep.{name}": value for name, value in results.get("sweep", {}).items() if value is not None}
    texts |= {f"environment.{name}": value for name, value in results["environment"].items()}
    for field, value in texts.items():
        if not isinstance(value, (str, int, float)) or MARKUP.search(str(value)):
            raise UserError(f"results.json: {field} must be plain text, got {str(value)[:80]!r}")


def _check_definitions(results):
    """Every figure with its own rule has a definition, which is this release's text."""
    texts = results.get("definitions", {})
    for part, metrics in results["metrics"].items():
        for name in sorted(DEFINITIONS.keys() & metrics.keys() - texts.keys()):
            raise UserError(f"results.json: metrics.{part}.{name} has no text in definitions")
    for name, text in texts.items():
        if not re.fullmatch(DEFINITIONS.get(name, "(?!)"), text):
            raise UserError(f"results.json: definitions.{name[:80]} is not this release's text: {text[:80]!r}")


def _check_settings(results):
    """The settings that checks and card read have a form that they can read."""
    settings = results["run"]["settings"]
    for name, value in settings.items():
        if isinstance(value, str) and len(value) > MOST_SETTING:
            raise UserError(f"results.json: run.settings.{name[:80]} has more than {MOST_SETTING} letters")
    max_samples = settings.get("max_samples")
    if max_samples is not None and not re.fullmatch(r"[0-9]{1,9}", str(max_samples)):
        raise UserError(
            f"results.json: run.settings.max_samples must be a whole number, got {str(max_samples)[:80]!r}"
        )


def _check_labels(settings, config):
    """The labels have the names in the run's settings, or the variant's own names; returns them."""
    names = {int(label): name for label, name in config.get("id2label", {}).items()}
    labels = ", ".join(f"{label} {name}" for label, name in names.items())
    if "start_from" in settings and "model.id2label" not in settings:
        return f"labels {labels}, as of the checkpoint that the run started from"
    with about_input():
        id2label = value_of(str(settings["model.id2label"])) if "model.id2label" in settings else None
        config_class, _ = find_variant(config["model_type"])
        expected = config_class(num_labels=len(names), id2label=id2label).id2label
    if names != expected:
        raise UserError(f"config.json: id2label is {names}, the settings in results.json give {str(expected)[:300]}")
    return f"labels {labels}"


def _check_calibration(results, processor):
    """The values fitted on validation are those of the processor and of the validation's figures."""
    fitted, validation = results["calibration"], results["metrics"].get("validation")
    if validation is None:
        raise UserError("results.json: calibration without metrics.validation")
    expected = {
        "threshold": processor.get("mask_threshold"),
        "score_threshold": processor.get("score_threshold"),
        "images": validation["images"],
        "loss_after": validation["loss"]["value"],
        "ece_after": validation.get("calibration", {}).get("ece"),
        "dice_after": validation["per_image"]["dice"]["value"],
    }
    for name, value in expected.items():
        if value is None or abs(fitted[name] - value) > TOLERANCE:
            raise UserError(
                f"results.json: calibration.{name} is {fitted[name]}, the processor and metrics.validation say {value}"
            )
    if "by_size" in fitted:
        rows = [_size_row(row, row["dice_after"], row["recall_after"]) for row in fitted["by_size"]]
        expected_rows = [
            _size_row(row, row["dice"]["value"], row["recall"]["value"]) for row in validation.get("by_size", ())
        ]
        if np.shape(rows) != np.shape(expected_rows) or not np.allclose(rows, expected_rows, rtol=0, atol=TOLERANCE):
            raise UserError(
                f"results.json: calibration.by_size is {str(rows)[:300]}, "
                f"metrics.validation.by_size {str(expected_rows)[:300]}"
            )


def _size_row(row, dice, recall):
    return [row["above"], row["up_to"], row["images"], dice, recall]


def _require_lines(value, field):
    """Raise UserError for any text with a line end or a backtick: it could become a snippet, and snippets are run."""
    if isinstance(value, str) and CODE_MARKUP.search(value):
        raise UserError(f"results.json: {field[:100]} must be one line of text without backticks")
    for name, item in value.items() if isinstance(value, dict) else ():
        _require_lines(name, f"a name in {field or 'it'}")
        _require_lines(item, f"{field}.{name}".removeprefix("."))
    for item in value if isinstance(value, list) else ():
        _require_lines(item, field)


def _check_classes(part, per_class, config):
    """The figures of several classes carry the config's label names, without the background."""
    names, labels = [row["label"] for row in per_class], config.get("id2label", {})
    if names and names != [labels.get(str(label)) for label in range(1, len(labels))]:
        raise UserError(f"results.json: metrics.{part}.per_class has {str(names)[:300]}, the config {labels}")


def check_per_image(folder):
    """Compute the figures of results.json, with intervals, again from the pixel counts in every image's row."""
    results, (parts, twins) = read_json(folder / "results.json"), read_per_image(folder / "per_image.csv")
    if unknown := parts.keys() - {"validation", "test"}:
        raise UserError(f"per_image.csv: part must be validation or test, got {min(unknown)[:80]!r}")
    names = [name for scores in parts.values() for name in scores.names]
    for name, count in collections.Counter(names).most_common(1):
        if count > 1:
            raise UserError(f"per_image.csv: {name[:80]} is in two rows")
    for part in ("validation", "test"):
        _check_count(part, len(parts[part].names) if part in parts else 0, results)
    tested = parts["test"].names if "test" in parts else []
    if twins != set(results["data"]["twins"]) & set(tested):
        raise UserError("per_image.csv: the column twin does not agree with data.twins in results.json")
    for scores in parts.values():
        _check_rows(scores)
    recomputed = {part: scores.summary() for part, scores in parts.items()}
    if 0 < len(twins) < len(tested):
        recomputed["test_without_twins"] = parts["test"].summary({name for name in tested if name not in twins})
    _compare_metrics(recomputed, results["metrics"], parts, twins)


def _compare_metrics(recomputed, metrics, parts, twins):
    """The parts' figures follow from the rows, and so do the pixels of each reliability table."""
    if recomputed.keys() != metrics.keys():
        raise UserError(f"results.json has metrics of {sorted(metrics)}, per_image.csv of {sorted(recomputed)}")
    _compare(recomputed, metrics, "metrics")
    for part, part_metrics in metrics.items():
        if "calibration" in part_metrics:
            scores = parts[part.removesuffix("_without_twins")]
            left_out = twins if part == "test_without_twins" else ()
            pairs = zip(scores.names, scores.counts, strict=True)
            counts = np.stack([counts for name, counts in pairs if name not in left_out])
            _check_reliability(part, part_metrics["calibration"], counts)


def _check_reliability(part, calibration, counts):
    """The table's pixels are those of the rows, and its ECE follows from it."""
    table, field = calibration["bins"], f"metrics.{part}.calibration"
    pixels, polyp_pixels = (sum(row[name] for row in table) for name in ("pixels", "polyp_pixels"))
    if (pixels, polyp_pixels) != (counts.sum(), counts[..., [0, 2]].sum()):
        raise UserError(f"results.json: {field}.bins has other pixels than per_image.csv")
    for row in table:
        mean = row["probability"]
        if (mean is None) != (row["pixels"] == 0) or (
            mean is not None and not row["above"] - TOLERANCE <= mean <= row["up_to"] + TOLERANCE
        ):
            raise UserError(f"results.json: {field}.bins has a probability of {mean} in the bin up to {row['up_to']}")
    if pixels:
        _compare(reliability.expected_calibration_error(table), calibration["ece"], f"{field}.ece")


def _check_rows(scores):
    """The other figures in an image's row are possible with its pixel counts."""
    for index, (name, counts) in enumerate(zip(scores.names, scores.counts, strict=True)):
        row, (height, width) = f"per_image.csv, image {name[:80]}", scores.sizes[index]
        if (counts.sum(axis=1) > height * width).any():
            raise UserError(f"{row}: more pixels are counted than {height} x {width}")
        if scores.background:
            _check_background(row, scores.background[index], counts)
        if scores.polyps:
            _check_polyps(row, *scores.polyps[index], counts[0])
        if scores.boundaries:
            _check_boundary(row, *scores.boundaries[index], counts[0], math.hypot(height, width))


def _check_background(row, background, counts):
    """Classes do not overlap: what is of any of them, truly or as predicted, is what is not background."""
    both_background, missed, false, both_classes = background  # the background's true positives, false positives, ...
    possible = (
        len(counts) > 1
        and (counts.sum(axis=1) == background.sum()).all()
        and counts[:, [0, 2]].sum() == missed + both_classes
        and counts[:, [0, 1]].sum() == false + both_classes
        and counts[:, 0].sum() <= both_classes
    )
    if not possible:
        raise UserError(f"{row}: the background counts other pixels than the classes")


def _check_polyps(row, polyps, found, touched, false_polyps, counts):
    """No more found than touched, no more touched than there are, and none without pixels."""
    true_positives, false_positives, false_negatives, _ = counts
    possible = (
        (polyps == 0 or true_positives + false_negatives > 0)
        and (touched == 0 or true_positives > 0)
        and (false_polyps == 0 or true_positives + false_positives > 0)
    )
    if not (found <= touched <= polyps and possible):
        raise UserError(f"{row}: the polyps can't be {polyps}, {found} found, {touched} touched, {false_polyps} false")


def _check_boundary(row, nsd, hd95, counts, diagonal):
    """nsd and hd95 lie in their ranges, and have the fixed values of empty masks and of equal ones."""
    true_positives, false_positives, false_negatives, _ = counts
    has_prediction, has_polyp = true_positives + false_positives > 0, true_positives + false_negatives > 0
    if has_prediction != has_polyp:
        possible = (nsd, round(hd95, 4)) == (0, round(diagonal, 4))
    elif false_positives == false_negatives == 0:
        possible = (nsd, hd95) == (1, 0)
    else:
        possible = 0 <= nsd <= 1 and hd95 <= diagonal
    if not possible:
        raise UserError(f"{row}: nsd {nsd} and hd95 {hd95} do not fit the row's counts")


def _check_count(part, count, results):
    """There are as many rows as the split has images, `max_samples` at most; none if the test part was not scored."""
    sizes, settings = results["data"]["sizes"], results["run"]["settings"]
    max_samples = settings.get("max_samples")
    expected = sizes.get(part, 0) if max_samples is None else min(sizes.get(part, 0), int(max_samples))
    if part == "test" and str(settings.get("score_test")).lower() == "false":
        expected = 0
    stated = results["metrics"].get(part, {"images": 0})["images"]
    if not count == stated == expected:
        raise UserError(f"{part}: per_image.csv has {count} images, results.json {stated}, the split {expected}")


def _compare(expected, stated, field):
    """Raise UserError unless `stated` has every number of `expected`, and no more."""
    if isinstance(expected, (dict, list)):
        if type(stated) is not type(expected) or len(stated) < len(expected):
            raise UserError(f"results.json: {field} is incomplete")
        keys, stated_keys = (_comparable_keys(values) for values in (expected, stated))
        if len(stated_keys) > len(keys):
            raise UserError(f"results.json: {field} holds more than follows from the rows of per_image.csv")
        for key in keys:
            if isinstance(expected, dict) and key not in stated:
                raise UserError(f"results.json: {field}.{key} is missing")
            _compare(expected[key], stated[key], f"{field}.{key}")
    elif None in (expected, stated):
        if expected is not stated:
            raise UserError(f"results.json: {field} is {str(stated)[:80]}, the rows of per_image.csv give {expected}")
    elif not isinstance(stated, (int, float)) or abs(stated - expected) > TOLERANCE:
        raise UserError(f"results.json: {field} is {str(stated)[:80]}, the rows of per_image.csv give {expected:.6f}")


def _comparable_keys(values):
    """A dictionary's keys that follow from the rows, or a list's indices."""
    return [key for key in values if key not in NOT_FROM_ROWS] if isinstance(values, dict) else range(len(values))


def check_card(folder):
    """The card is, byte for byte, what our template makes of results.json, config and pictures."""
    card, results = read_text(folder / "README.md"), read_json(folder / "results.json")
    repo_id, revision = loaded_repository(card)
    space = repo_id is not None and f"https://huggingface.co/spaces/{repo_id}." in card  # the Hub's to tell
    try:
        rendered = render_card(folder, results, repo_id, revision, space)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, TemplateError) as error:
        raise UserError(f"results.json makes no card: {type(error).__name__}: {str(error)[:200]}") from error
    lines = itertools.zip_longest(card.split("\n"), rendered.split("\n"), fillvalue="")
    for number, (card_line, rendered_line) in enumerate(lines, start=1):
        if card_line != rendered_line:
            raise UserError(f"README.md, line {number}: {_difference(card_line, rendered_line)}")
    if card != rendered:
        raise UserError("README.md: the empty lines at its end are not the template's")


def _difference(card_line, rendered_line):
    """How two lines differ: in a number, or in their text."""
    if NUMBER.sub("#", card_line) == NUMBER.sub("#", rendered_line):
        pairs = zip(NUMBER.findall(card_line), NUMBER.findall(rendered_line), strict=True)
        card_number, rendered_number = next(pair for pair in pairs if pair[0] != pair[1])
        return f"says {card_number[:80]} where results.json gives {rendered_number[:80]}"
    return f"is {card_line[:120]!r}, the template gives {rendered_line[:120]!r}"


def loaded_repository(card):
    """(repo_id, revision) that the card's snippets load; None where it names no repository."""
    match = LOADED.search(card)
    if not match:
        raise UserError('README.md: the first snippet must load MODEL or "owner/name", revision="..."')
    return match["repo_id"], match["revision"]


def check_named(folder, repo_id, revision=None):
    """The card's snippets load MODEL or this repository, at no other revision than `revision`."""
    loaded_id, loaded_revision = loaded_repository(read_text(folder / "README.md"))
    if loaded_id is not None and repo_id is None:
        option = f" --revision {loaded_revision}" if loaded_revision else ""
        raise UserError(
            f"README.md: the snippets load {loaded_id}, and a folder can't tell whether that is this model: if it is, "
            f"add --repo_id {loaded_id}{option}"
        )
    if loaded_id not in (None, repo_id):
        raise UserError(f"README.md: the snippets load {loaded_id}, and this is {repo_id}")
    if loaded_revision not in (None, revision):
        raise UserError(f"README.md: the snippets load revision {loaded_revision!r}, and this is {revision or 'none'}")
    return f"the snippets load {loaded_id or 'MODEL'}{f', revision {loaded_revision}' if loaded_revision else ''}"


def snippets(folder, image):
    """The Python of the card's snippets, loading from the folder and reading the file `image`."""
    card = read_text(folder / "README.md")
    arguments = LOADED.search(card)["arguments"]
    return [
        block.replace(arguments, repr(str(folder))).replace('"image.jpg"', repr(str(image)))
        for block in SNIPPET.findall(card)
    ]
