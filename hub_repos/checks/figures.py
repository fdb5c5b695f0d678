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
from hub_unets.training.records.results import check_results, read_per_image
from hub_unets.training.settings.texts import value_of

TOLERANCE = 1e-6
CONTROL = r"\x00-\x1f\x7f-\x9f\u2028\u2029`"
MARKUP = re.compile(rf"[{CONTROL}~<>|\[\]]")  # with which a text could be more than a text in a card
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
NOT_OF_ROWS = {"label", "calibration"}  # of the metrics; other checks see to them
DEFINITIONS = {  # as patterns: MONAI's version is of where the figures were computed
    "polyps": re.escape(polyps.DEFINITION),
    "boundary": re.escape(boundaries.RULE) + r"[0-9][\w.+-]{0,30}\.",
    "calibration": re.escape(reliability.DEFINITION),
    "false_alarms": re.escape(false_alarms.DEFINITION),
}
MOST_SETTING = 10_000  # letters


def check_results_file(folder):
    """results.json fits its schema, is of this model, and what the card shows of it is plain text."""
    results, config = read_json(folder / "results.json"), read_json(folder / "config.json")
    check_results(results)
    if "test" not in results["metrics"]:
        raise UserError("results.json: metrics has no test part, which a card needs")
    model_type, said = config.get("model_type"), results["run"]["model_type"]
    if said != model_type:
        raise UserError(f"results.json: run.model_type is {said!r}, the config's {model_type!r}")
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
    """Raise UserError unless what stands in the card outside of code is plain text."""
    run, data = results["run"], results["data"]
    shown = {"run.name": run["name"], "data.source": data["source"], "data.split": data["split"]}
    shown |= {f"sweep.{name}": value for name, value in results.get("sweep", {}).items() if value is not None}
    shown |= {f"environment.{name}": value for name, value in results["environment"].items()}
    for place, value in shown.items():
        if not isinstance(value, (str, int, float)) or MARKUP.search(str(value)):
            raise UserError(f"results.json: {place} must be plain text, got {str(value)[:80]!r}")


def _check_definitions(results):
    """Every figure with a rule of its own is defined, in the release's words."""
    texts = results.get("definitions", {})
    for part, metrics in results["metrics"].items():
        for name in sorted(DEFINITIONS.keys() & metrics.keys() - texts.keys()):
            raise UserError(f"results.json: metrics.{part}.{name} has no text in definitions")
    for name, text in texts.items():
        if not re.fullmatch(DEFINITIONS.get(name, "(?!)"), text):
            raise UserError(f"results.json: definitions.{name[:80]} is not this release's text: {text[:80]!r}")


def _check_settings(results):
    """Those whose values the checks and the card read have a form that they can read."""
    settings = results["run"]["settings"]
    for name, value in settings.items():
        if isinstance(value, str) and len(value) > MOST_SETTING:
            raise UserError(f"results.json: run.settings.{name[:80]} has more than {MOST_SETTING} letters")
    kept = settings.get("max_samples")
    if kept is not None and not re.fullmatch(r"[0-9]{1,9}", str(kept)):
        raise UserError(f"results.json: run.settings.max_samples must be a whole number, got {str(kept)[:80]!r}")


def _check_labels(settings, config):
    """The labels are called as the run's settings say, or by the variant's own names; those are returned."""
    names = {int(label): name for label, name in config.get("id2label", {}).items()}
    listed = ", ".join(f"{label} {name}" for label, name in names.items())
    if "start_from" in settings and "model.id2label" not in settings:
        return f"labels {listed}, as of the checkpoint that the run started from"
    with about_input():
        said = value_of(str(settings["model.id2label"])) if "model.id2label" in settings else None
        config_class, _ = find_variant(config["model_type"])
        wanted = config_class(num_labels=len(names), id2label=said).id2label
    if names != wanted:
        raise UserError(f"config.json: id2label is {names}, the settings in results.json give {str(wanted)[:300]}")
    return f"labels {listed}"


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
            raise UserError(
                f"results.json: calibration.by_size is {str(after)[:300]}, metrics.validation.by_size {str(own)[:300]}"
            )


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


def _check_classes(part, per_class, config):
    """Several classes are called as the config calls its labels, the background left out."""
    names, labels = [one["label"] for one in per_class], config.get("id2label", {})
    if names and names != [labels.get(str(label)) for label in range(1, len(labels))]:
        raise UserError(f"results.json: metrics.{part}.per_class has {str(names)[:300]}, the config {labels}")


def check_per_image(folder):
    """The figures of results.json, intervals too, computed again from the pixel counts of every image's row."""
    results, (parts, twins) = read_json(folder / "results.json"), read_per_image(folder / "per_image.csv")
    if other := parts.keys() - {"validation", "test"}:
        raise UserError(f"per_image.csv: part must be validation or test, got {min(other)[:80]!r}")
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
    """The parts' figures are those of the rows, and each reliability table is of their pixels."""
    if recomputed.keys() != metrics.keys():
        raise UserError(f"results.json has metrics of {sorted(metrics)}, per_image.csv of {sorted(recomputed)}")
    _compare(recomputed, metrics, "metrics")
    for part, of_part in metrics.items():
        if "calibration" in of_part:
            scores = parts[part.removesuffix("_without_twins")]
            left_out = twins if part == "test_without_twins" else ()
            pairs = zip(scores.names, scores.counts, strict=True)
            counts = np.stack([counts for name, counts in pairs if name not in left_out])
            _check_reliability(part, of_part["calibration"], counts)


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
    if pixels:
        _compare(reliability.expected_calibration_error(table), calibration["ece"], f"{place}.ece")


def _check_rows(scores):
    """What stands in an image's row beside its counts is possible with them."""
    for index, (name, counts) in enumerate(zip(scores.names, scores.counts, strict=True)):
        where, (height, width) = f"per_image.csv, image {name[:80]}", scores.sizes[index]
        if (counts.sum(axis=1) > height * width).any():
            raise UserError(f"{where}: more pixels are counted than {height} x {width}")
        if scores.polyps:
            _check_polyps(where, *scores.polyps[index], counts[0])
        if scores.boundaries:
            _check_boundary(where, *scores.boundaries[index], counts[0], math.hypot(height, width))


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
    wanted = sizes.get(part, 0) if kept is None else min(sizes.get(part, 0), int(kept))
    if part == "test" and str(settings.get("score_test")).lower() == "false":
        wanted = 0
    said = results["metrics"].get(part, {"images": 0})["images"]
    if not count == said == wanted:
        raise UserError(f"{part}: per_image.csv has {count} images, results.json {said}, the split {wanted}")


def _compare(wanted, got, place):
    """Raise UserError unless `got` has every number of `wanted`, and no more."""
    if isinstance(wanted, (dict, list)):
        if type(got) is not type(wanted) or len(got) < len(wanted):
            raise UserError(f"results.json: {place} is incomplete")
        keys, theirs = (_places(values) for values in (wanted, got))
        if len(theirs) > len(keys):
            raise UserError(f"results.json: {place} holds more than follows from the rows of per_image.csv")
        for key in keys:
            if isinstance(wanted, dict) and key not in got:
                raise UserError(f"results.json: {place}.{key} is missing")
            _compare(wanted[key], got[key], f"{place}.{key}")
    elif None in (wanted, got):
        if wanted is not got:
            raise UserError(f"results.json: {place} is {str(got)[:80]}, the rows of per_image.csv give {wanted}")
    elif not isinstance(got, (int, float)) or abs(got - wanted) > TOLERANCE:
        raise UserError(f"results.json: {place} is {str(got)[:80]}, the rows of per_image.csv give {wanted:.6f}")


def _places(values):
    """The keys of a dictionary that follow from the rows, or the indices of a list."""
    return [key for key in values if key not in NOT_OF_ROWS] if isinstance(values, dict) else range(len(values))


def check_card(folder):
    """The card is, to the byte, what our template makes of results.json, config and pictures."""
    card, results = read_text(folder / "README.md"), read_json(folder / "results.json")
    repo_id, revision = loaded_repository(card)
    space = repo_id is not None and f"https://huggingface.co/spaces/{repo_id}." in card  # the Hub's to tell
    try:
        ours = render_card(folder, results, repo_id, revision, space)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, TemplateError) as error:
        raise UserError(f"results.json makes no card: {type(error).__name__}: {str(error)[:200]}") from error
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
        return f"says {their_number[:80]} where results.json gives {our_number[:80]}"
    return f"is {theirs[:120]!r}, the template gives {ours[:120]!r}"


def loaded_repository(card):
    """(repo_id, revision) that the card's snippets load; None where it names no repository."""
    match = LOADED.search(card)
    if not match:
        raise UserError('README.md: the first snippet must load MODEL or "owner/name", revision="..."')
    return match["repo_id"], match["revision"]


def check_named(folder, repo_id, revision=None):
    """The card's snippets load MODEL, or the repository that it stands in, by no other revision than `revision`."""
    named, at = loaded_repository(read_text(folder / "README.md"))
    if named is not None and repo_id is None:
        option = f" --revision {at}" if at else ""
        raise UserError(
            f"README.md: the snippets load {named}, and a folder can't tell whether that is this model: if it is, add "
            f"--repo_id {named}{option}"
        )
    if named not in (None, repo_id):
        raise UserError(f"README.md: the snippets load {named}, and this is {repo_id}")
    if at not in (None, revision):
        raise UserError(f"README.md: the snippets load revision {at!r}, and this is {revision or 'none'}")
    return f"the snippets load {named or 'MODEL'}{f', revision {at}' if at else ''}"


def snippets(folder, image):
    """The Python of the card's snippets, loading from the folder and reading the file `image`."""
    card = read_text(folder / "README.md")
    arguments = LOADED.search(card)["arguments"]
    return [
        block.replace(arguments, repr(str(folder))).replace('"image.jpg"', repr(str(image)))
        for block in SNIPPET.findall(card)
    ]
