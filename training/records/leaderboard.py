"""From finished trials to a ranking that says which differences are real: Markdown, CSV and a picture."""

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hub_unets.training.measure.metrics import ranking_dice
from hub_unets.training.records import curves
from hub_unets.training.records.markdown import table
from hub_unets.training.records.results import scored_part

RESAMPLES = 20_000
LEVEL = 0.05
COLUMNS = {
    "validation_dice": "Dice, validation",
    "dice": "Dice (95 % interval)",
    "difference": "behind the first (interval)",
    "iou": "IoU",
    "pooled_dice": "Dice, pooled",
    "precision": "precision",
    "recall": "recall",
    "accuracy": "accuracy",
    "loss": "loss",
    "parameters": "parameters, M",
    "gmacs": "GMACs",
    "cpu_ms": "CPU, ms",
}


@dataclass
class Entry:
    """One finished trial.

    Attributes:
        name: the trial's.
        results: its `results.json`, without the history.
        dice: Dice of each image of `part`, by stem.
        group: what it is ranked within; two groups are not compared.
        cpu_ms: milliseconds of one forward pass on the CPU; None where the weights are not on this machine.
    """

    name: str
    results: dict
    dice: dict
    group: str = ""
    cpu_ms: float | None = None

    @property
    def part(self):
        """The part that all but the ranking is about: test, or validation where the trials left the test unseen."""
        return scored_part(self.results)

    @property
    def validation_dice(self):
        return ranking_dice(self.results["metrics"]["validation"])


def is_pretrained(results):
    """Whether a run's encoder started from other than random weights."""
    settings = results["run"]["settings"]
    return settings.get("model.backbone", "null") != "null" and settings.get("backbone_weights", "timm") != "none"


def group_of(results, rank_within=()):
    """What two runs must share to be compared: the split, what weights they started from, and the settings named."""
    settings = results["run"]["settings"]
    values = [settings.get(name, "default") for name in rank_within]
    weights = "pretrained encoder" if is_pretrained(results) else "from scratch"
    if "start_from" in settings:
        weights = f"started from {settings['start_from']}"
    return ", ".join([*values, weights, f"split {results['data']['sha256'][:8]}"])


def ranked(entries):
    """Rows for every entry, group by group, the highest validation Dice first.

    The first of a group is compared with each of the others by a paired bootstrap over test images (over those of
    validation, where the test was left unseen); `real` says that the interval of the difference, Bonferroni's for as
    many comparisons as the group has, leaves out 0.
    """
    groups = {}
    for entry in sorted(entries, key=lambda trial: (-_or_worst(trial.validation_dice), trial.name)):
        groups.setdefault(entry.group, []).append(entry)
    return [row for group in sorted(groups) for row in _ranked_group(groups[group])]


def _is_missing(value):
    return value is None or (isinstance(value, float) and math.isnan(value))


def _or_worst(value):
    return -1.0 if _is_missing(value) else value


def _ranked_group(entries):
    first, *others = entries
    rows = [_row(first, 1, None)]
    for place, entry in enumerate(others, start=2):
        rows.append(_row(entry, place, paired_difference(first.dice, entry.dice, len(others))))
    return rows


def paired_difference(first, second, comparisons=1):
    """Mean of first minus second over the images that both have: dict of value, low, high and `real`; None of none."""
    names = sorted(
        name for name in first.keys() & second.keys() if not (_is_missing(first[name]) or _is_missing(second[name]))
    )
    if not names:
        return None
    differences = np.array([first[name] - second[name] for name in names])
    count, rng = len(names), np.random.default_rng(0)
    means = np.concatenate(
        [rng.multinomial(count, np.full(count, 1 / count), size=500) @ differences for _ in range(RESAMPLES // 500)]
    )
    tail = LEVEL / comparisons / 2
    low, high = np.quantile(means / count, (tail, 1 - tail))
    return {
        "value": float(differences.mean()),
        "low": float(low),
        "high": float(high),
        "real": bool(low > 0 or high < 0),
    }


def _row(entry, place, difference):
    metrics, run = entry.results["metrics"][entry.part], entry.results["run"]
    per_image = metrics["per_image"]
    return {
        "name": entry.name,
        "group": entry.group,
        "place": place,
        "validation_dice": entry.validation_dice,
        "dice": per_image["dice"],
        "difference": difference,
        **{name: per_image[name]["value"] for name in ("iou", "precision", "recall", "accuracy")},
        "pooled_dice": metrics["pooled"]["dice"]["value"],
        "loss": metrics["loss"]["value"],
        "parameters": run["parameters"] / 1e6,
        "gmacs": run["gmacs"],
        "cpu_ms": entry.cpu_ms,
    }


def write_leaderboard(folder, entries, title, conditions, failures=()):
    """Write leaderboard.md, .csv and .png, and PART_dice.csv: the Dice of every image, to check the intervals by.

    PART is test, or validation where the trials left the test unseen.

    Args:
        folder: where.
        entries: finished trials.
        title: of page and picture.
        conditions: lines that say what was run, on what.
        failures: (name, reason) of the trials that failed.
    """
    folder, rows = Path(folder), ranked(entries)
    folder.mkdir(parents=True, exist_ok=True)
    part = entries[0].part if entries else "test"
    (folder / "leaderboard.md").write_text(_markdown(rows, title, conditions, failures, part), encoding="utf-8")
    _write_csv(folder / "leaderboard.csv", rows)
    _write_dice(folder / f"{part}_dice.csv", entries)
    if rows:
        curves.leaderboard(rows, folder / "leaderboard.png", title, part)


def _markdown(rows, title, conditions, failures, part):
    lines = [f"# {title}", "", *conditions, ""]
    for group in dict.fromkeys(row["group"] for row in rows):
        lines += [f"## {group}", "", _table([row for row in rows if row["group"] == group]), ""]
    if rows:
        lines += [f"![Dice on the {part} images](leaderboard.png)", ""]
    if failures:
        lines += ["## Failed", "", *(f"- {name}: {reason}" for name, reason in failures), ""]
    return "\n".join(lines)


def _table(rows):
    heads = ["", "model", *COLUMNS.values()]
    cells = [[row["place"], row["name"], *(_cell(name, row[name]) for name in COLUMNS)] for row in rows]
    return table(heads, cells)


def _cell(name, value):
    if _is_missing(value) or (isinstance(value, dict) and _is_missing(value["value"])):
        return "–"
    if name == "dice":
        return f"{value['value']:.4f} ({value['low']:.4f}–{value['high']:.4f})"
    if name == "difference":
        text = f"{value['value']:+.4f} ({value['low']:+.4f} to {value['high']:+.4f})".replace("-", "−")
        return f"**{text}**" if value["real"] else text
    return (
        f"{value:.1f}" if name in ("parameters", "cpu_ms") else f"{value:.2f}" if name == "gmacs" else f"{value:.4f}"
    )


def _write_csv(path, rows):
    flat = [
        {
            f"{name}{suffix}": number
            for name, value in row.items()
            for suffix, number in (
                {f"_{key}": value[key] for key in value} if isinstance(value, dict) else {"": value}
            ).items()
        }
        for row in rows
    ]
    names = list(dict.fromkeys(name for row in flat for name in row if name != "difference"))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(flat)


def _write_dice(path, entries):
    names = sorted({name for entry in entries for name in entry.dice})
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["name", *(entry.name for entry in entries)])
        for name in names:
            dices = (entry.dice.get(name) for entry in entries)
            writer.writerow([name, *("" if _is_missing(dice) else f"{dice:.6f}" for dice in dices)])
