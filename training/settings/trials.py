"""What a sweep is made of: the cells of a grid or the trials of a space, and the command line of each one's run."""

import itertools
import re
from dataclasses import dataclass, field
from pathlib import Path

import optuna

from hub_unets.modeling.variants import find_variant
from hub_unets.training.errors import UserError
from hub_unets.training.settings.arguments import find_recipe, parse, read_recipe, run_fields
from hub_unets.training.settings.texts import pairs, texts_of, value_of

LONGEST = 120  # characters of a trial's name: a file's has 255 bytes at most


@dataclass
class Sweep:
    """A sweep: its dimensions, and what all of its trials share.

    Attributes:
        recipe: as given on the command line.
        overrides: command-line texts that every trial gets.
        choices: {name: {label: {setting: texts}}}, the dimensions of a grid.
        space: {name: what Optuna is asked to suggest}.
        trials: how many a space gets.
        rank_within: settings whose values are not compared with one another.
        output_dir: the study's folder; its last name is the study's.
        storage: Optuna's URL.
        settings: what must stay as it is while the study lasts.
        folds: of a cross-validation, in each of which every choice is trained; None without.
    """

    recipe: str
    overrides: list
    choices: dict
    space: dict
    trials: int
    rank_within: list
    output_dir: Path
    storage: str
    settings: dict
    folds: int | None = None
    cells: dict = field(init=False)  # {trial's name: {dimension: label}}

    def __post_init__(self):
        labels = itertools.product(*self.choices.values())
        grid = [dict(zip(self.choices, cell, strict=True)) for cell in labels]
        if self.space:
            self.cells = {f"trial-{number:03d}": {} for number in range(self.trials)}
        else:
            self.cells = dict(zip(_names(["-".join(cell.values()) for cell in grid]), grid, strict=True))

    def folds_of_choices(self):
        """The trials of each choice, one a fold: {name of the choice: names}."""
        trials_by_choice = {}
        for name, cell in self.cells.items():
            choice = "-".join(label for dimension, label in cell.items() if dimension != "split")
            trials_by_choice.setdefault(choice or Path(self.recipe).stem, []).append(name)
        return dict(zip(_names(list(trials_by_choice)), trials_by_choice.values(), strict=True))

    def arguments_of(self, name):
        """The command line of a grid's cell."""
        cell = self.cells[name].items()
        settings = {key: texts for dimension, label in cell for key, texts in self.choices[dimension][label].items()}
        return self.arguments(settings, self.folder(name))

    def folder(self, name):
        return self.output_dir / "trials" / name

    def beside(self, name, suffix):
        """A trial's file beside its folder; a name may hold dots."""
        return self.output_dir / "trials" / f"{name}{suffix}"

    def arguments(self, settings, output_dir):
        """The command line of one run."""
        options = [text for name, texts in settings.items() for text in (f"--{name}", *texts)]
        return [self.recipe, *self.overrides, *options, "--output_dir", str(output_dir)]


def parse_sweep(argv):
    """The command line to a Sweep.

    Raises:
        UserError: no recipe, no grid and no space or both, or one that no run can be started with.
        SystemExit: a field that a run does not have, as training/run.py says it.
    """
    if not argv or argv[0].startswith("-"):
        raise UserError(
            "a recipe with grid: or space:, or with --folds, comes first, as in `training/sweep.py family`."
        )
    overrides = pairs(argv[1:])
    study = {name: overrides.pop(f"--{name}", [None])[-1] for name in ("storage", "output_dir", "trials", "folds")}
    recipe = read_recipe(find_recipe(argv[0]))
    dimensions = {name: value for name, value in recipe.items() if name.startswith(("grid.", "space."))}
    for name in [name for name in overrides if name.startswith(("--grid.", "--space."))]:
        values = [value_of(text) for text in overrides.pop(name)]
        dimensions[name[2:]] = values[0] if len(values) == 1 and isinstance(values[0], (list, dict)) else values
    grid, space = (
        {name.partition(".")[2]: dimensions[name] for name in dimensions if name.startswith(kind)}
        for kind in ("grid.", "space.")
    )
    folds = None if study["folds"] is None else _whole("folds", study["folds"], 2)
    if folds:
        grid["split"] = [f"fold-{number}-of-{folds}" for number in range(1, folds + 1)]
    if bool(grid) == bool(space):
        raise UserError(
            f"{argv[0]}: a sweep needs a grid (or folds) or a space, and not both, got {sorted(dimensions)}."
        )
    output_dir = Path(study["output_dir"] or f"runs/{Path(argv[0]).stem}").absolute()
    sweep = Sweep(
        recipe=argv[0],
        overrides=[text for name, texts in overrides.items() for text in (name, *texts)],
        choices={name: _choices(name, values) for name, values in grid.items()},
        space=space,
        trials=_whole("trials", study["trials"] or recipe.get("trials", 20), 1),
        rank_within=recipe.get("rank_within", []),
        output_dir=output_dir,
        storage=study["storage"] or f"sqlite:///{output_dir / 'study.db'}",
        settings={"recipe": run_fields(recipe), "overrides": overrides, "grid": grid, "space": space},
        folds=folds,
    )
    _require_runnable(sweep)
    return sweep


def _whole(name, text, least):
    if not re.fullmatch(r"\d+", str(text)) or int(text) < least:
        raise UserError(f"{name} must be a whole number of at least {least}, got {text!r}.")
    return int(text)


def _choices(name, values):
    """A dimension's values as {label: {setting: texts}}; a value that is a mapping sets several settings at once.

    A dimension that is itself a mapping gives each of its choices, a mapping of settings, a label.
    """
    if isinstance(values, dict) and values and all(isinstance(choice, dict) for choice in values.values()):
        return {str(label): _texts(settings) for label, settings in values.items()}
    if not isinstance(values, list) or not values:
        raise UserError(f"grid.{name} must list its values, got {values!r}.")
    choices = {}
    for value in values:
        texts = _texts(value if isinstance(value, dict) else {name: value})
        choices["-".join(Path(text).name for text in next(iter(texts.values())))] = texts
    if len(choices) < len(values):
        raise UserError(f"grid.{name}: the values, or the first settings of mappings, must differ, got {values}.")
    return choices


def _texts(settings):
    """Settings as a command line gives them."""
    return {name: ["null"] if value is None else texts_of(value, "." in name) for name, value in settings.items()}


def _require_runnable(sweep):
    """Parse every cell's command line and build its config, so that a typing error is found at once."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for name, cell in sweep.cells.items():
        study.enqueue_trial(cell)
        try:
            settings = settings_of(sweep, study.ask())
            arguments, model, _, _ = parse(sweep.arguments(settings, sweep.folder(name)))
            find_variant(arguments.variant)[0](**model)
        except ValueError as error:
            raise UserError(f"{name}: {error}") from error


def settings_of(sweep, trial):
    """What a trial sets: {name: texts}. A space is asked of the sampler, once; later calls give the same."""
    settings = {}
    for name, choices in sweep.choices.items():
        settings |= choices[trial.suggest_categorical(name, list(choices))]
    for name, spec in sweep.space.items():
        settings |= {name: texts_of(_suggest(trial, name, spec), "." in name)}
    return settings


def _suggest(trial, name, spec):
    """A value of `[a, b]`, `{low: 1, high: 8}` (whole numbers) or `{low: 1.0e-4, high: 1.0e-3, log: true}`."""
    try:
        if isinstance(spec, list):
            return trial.suggest_categorical(name, spec)
        limits = {key: value_of(str(value)) for key, value in spec.items()}
        are_integers = isinstance(limits["low"], int) and isinstance(limits["high"], int)
        return (trial.suggest_int if are_integers else trial.suggest_float)(name, **limits)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"space.{name} must be a list, or low and high (and log: true, or step), got {spec!r}: {error}"
        ) from error


def _names(texts):
    """A name for each text that can be a folder's, in order; of those alike the second gets -2, the third -3."""
    slugs = [re.sub(r"[^\w.+-]+", "_", text)[:LONGEST].strip(".") or "_" for text in texts]
    names = []
    for slug in slugs:
        alike = (f"{slug}-{number}" for number in itertools.count(2))
        is_free = slug not in names
        names.append(slug if is_free else next(name for name in alike if name not in names and name not in slugs))
    return names
