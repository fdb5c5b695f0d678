"""The committed records of runs, by recipe."""

import csv
from functools import cached_property

import numpy as np

from hub_unets.training.errors import UserError
from hub_unets.training.measure.metrics import mean_with_interval
from hub_unets.training.records.results import read_results

BASELINE = "as_chosen"  # the trial that ablations are compared with


class Record:
    """A folder with the results.json and per_image.csv of one run or evaluation."""

    def __init__(self, folder):
        self.folder, self.name = folder, folder.name
        self.results = read_results(folder / "results.json")

    def metrics(self, part):
        return self.results["metrics"].get(part)

    def value(self, part, *keys):
        """A figure of a part; None where it was not measured."""
        figure = self.metrics(part)
        for key in keys:
            figure = None if figure is None else figure.get(key)
        return figure["value"] if isinstance(figure, dict) else figure

    @cached_property
    def rows(self):
        with (self.folder / "per_image.csv").open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def dices(self, part):
        """Dice of each of the part's images by name."""
        scored_part = "test" if part == "test_without_twins" else part
        return {
            row["name"]: float(row["dice"])
            for row in self.rows
            if row["part"] == scored_part and not (part == "test_without_twins" and int(row["twin"]))
        }

    def evaluations(self):
        """Records of the evaluations of this run."""
        return [Record(path.parent) for path in sorted(self.folder.glob("*/results.json"))]


class Recipe:
    """The runs of one recipe that differ in their seeds."""

    def __init__(self, folder):
        self.folder, self.name = folder, folder.name
        paths = sorted(folder.glob("seeds/*/results.json")) or [folder / "results.json"]
        self.runs = [Record(path.parent) for path in paths]

    @property
    def settings(self):
        return self.runs[0].results["run"]["settings"]

    def seed_values(self, part, *keys):
        """A figure of each run; [] if a run lacks it."""
        values = [run.value(part, *keys) for run in self.runs]
        return [] if None in values else values

    def dice_with_interval(self, part):
        """Mean over images of the seeds' mean Dice, with its bootstrap interval over images."""
        return mean_with_interval(list(mean_dices([run.dices(part) for run in self.runs]).values()))

    @property
    def published(self):
        """The run whose checkpoint the folder holds; None where it holds none."""
        if not (self.folder / "model.safetensors").exists():
            return None
        record = Record(self.folder)
        return next(run for run in self.runs if run.results["metrics"] == record.results["metrics"])

    def external(self):
        """{data set: the runs' evaluations on it}, of data, or a held-out part, that no run was trained on."""
        held_out = {extra["split"] for run in self.runs for extra in run.results["data"].get("extra", ())}
        groups = {}
        for record in self._evaluations():
            if record.results["data"]["split"] in {"all", *held_out}:
                groups.setdefault(record.name, []).append(record)
        return groups

    def flipped(self):
        """The runs' evaluations with flips."""
        return [record for record in self._evaluations() if record.results["run"]["settings"].get("flips")]

    def _evaluations(self):
        return [record for run in self.runs for record in run.evaluations()]

    def cross_validations(self):
        """Records of the folds together."""
        return [Record(path.parent) for path in sorted(self.folder.glob("folds/*/results.json"))]

    def ablations(self):
        """The trials, the baseline first, the others by validation Dice."""
        trials = [Record(path.parent) for path in self.folder.glob("ablations/*/results.json")]
        trials.sort(key=lambda trial: -trial.value("validation", "per_image", "dice"))
        return sorted(trials, key=lambda trial: trial.name != BASELINE)


def mean_dices(dices):
    """The mean of several dictionaries of the same names."""
    return {name: float(np.mean([dices_of_seed[name] for dices_of_seed in dices])) for name in dices[0]}


def load(folder):
    """Every recipe with records, the one with most runs first."""
    names = {path.parent.parent.parent for path in folder.glob("*/seeds/*/results.json")}
    names |= {path.parent for path in folder.glob("*/results.json")}
    if not names:
        raise UserError(f"{folder} holds no records: hub-unets keep puts them there.")
    return sorted(map(Recipe, names), key=lambda recipe: (-len(recipe.runs), recipe.name))
