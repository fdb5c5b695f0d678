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

    def value(self, part, *place):
        """A figure of a part; None where it was not measured."""
        found = self.metrics(part)
        for name in place:
            found = None if found is None else found.get(name)
        return found["value"] if isinstance(found, dict) else found

    @cached_property
    def rows(self):
        with (self.folder / "per_image.csv").open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def dices(self, part):
        """Dice of each of the part's images by name."""
        wanted = "test" if part == "test_without_twins" else part
        return {
            row["name"]: float(row["dice"])
            for row in self.rows
            if row["part"] == wanted and not (part == "test_without_twins" and int(row["twin"]))
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

    def of_seeds(self, part, *place):
        """A figure of each run, or [] where one has none."""
        values = [run.value(part, *place) for run in self.runs]
        return [] if None in values else values

    def dice_with_interval(self, part):
        """Mean over images of the seeds' mean Dice, with its bootstrap interval over images."""
        return mean_with_interval(list(mean_dices([run.dices(part) for run in self.runs]).values()))

    @property
    def published(self):
        """The run whose checkpoint the folder holds; None where it holds none."""
        if not (self.folder / "model.safetensors").exists():
            return None
        own = Record(self.folder)
        return next(run for run in self.runs if run.results["metrics"] == own.results["metrics"])

    def external(self):
        """{data: the evaluations of the runs on it}, of data that no run was trained on."""
        return self._evaluations(lambda one: one.results["data"]["split"] == "all", lambda one: one.name)

    def flipped(self):
        """The runs' evaluations with flips."""
        found = self._evaluations(lambda one: one.results["run"]["settings"].get("flips"), lambda one: "flips")
        return found.get("flips", [])

    def _evaluations(self, wanted, key):
        found = {}
        for run in self.runs:
            for one in run.evaluations():
                if wanted(one):
                    found.setdefault(key(one), []).append(one)
        return found

    def ablations(self):
        """The trials, the baseline first, the others by validation Dice."""
        trials = [Record(path.parent) for path in self.folder.glob("ablations/*/results.json")]
        return sorted(trials, key=lambda one: (one.name != BASELINE, -one.value("validation", "per_image", "dice")))


def mean_dices(dices):
    """The mean of several dictionaries of the same names."""
    return {name: float(np.mean([one[name] for one in dices])) for name in dices[0]}


def load(folder):
    """Every recipe with records, the one with most runs first."""
    names = {path.parent.parent.parent for path in folder.glob("*/seeds/*/results.json")}
    names |= {path.parent for path in folder.glob("*/results.json")}
    if not names:
        raise UserError(f"{folder} holds no records: hub-unets keep puts them there.")
    return sorted(map(Recipe, names), key=lambda one: (-len(one.runs), one.name))
