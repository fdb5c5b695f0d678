"""Train every cell of a grid, or search a space: `accelerate launch training/sweep.py RECIPE.yaml [--field value]`.

RECIPE is a recipe with `grid:` or `space:`. A trial is one run of training/run.py in a process of its own, and an
Optuna trial; both can be stopped at any moment. Every process that names the same study works on it: a trial is taken
by one of them, and one whose worker died is taken up again, from its last checkpoint, by a worker on the same folder.
"""

import sys
from pathlib import Path

# a script's own folder comes first on the path, and this one's evaluate.py would hide the package `evaluate`
sys.path[0] = str(Path(__file__).resolve().parents[1])

import contextlib  # noqa: E402
import csv  # noqa: E402
import itertools  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import re  # noqa: E402
import shlex  # noqa: E402
import subprocess  # noqa: E402
import time  # noqa: E402
import uuid  # noqa: E402
from dataclasses import dataclass, field  # noqa: E402
from functools import partial  # noqa: E402

import optuna  # noqa: E402
import transformers  # noqa: E402
from filelock import FileLock, Timeout  # noqa: E402
from optuna.trial import TrialState  # noqa: E402
from tqdm import tqdm  # noqa: E402

from modeling.variants import find_variant  # noqa: E402
from training.arguments import find_recipe, pairs, parse, read_recipe, texts_of, value_of  # noqa: E402
from training.cost import cpu_milliseconds  # noqa: E402
from training.evaluate import load_model  # noqa: E402
from training.leaderboard import Entry, group_of, ranked, write_leaderboard  # noqa: E402
from training.results import cpu_name, read_results  # noqa: E402

RUN = Path(__file__).with_name("run.py")
DISTRIBUTED = re.compile(r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)|TORCHELASTIC_\w+")
SECONDS_TO_SET_OUT = 60  # between a trial's being taken and its worker's saying so
POLL_SECONDS = 2


@dataclass
class Sweep:
    """What is swept.

    Attributes:
        recipe: as given on the command line.
        overrides: command-line texts that every trial gets.
        choices: {name: {label: {setting: texts}}}, the dimensions of a grid.
        space: {name: what Optuna is asked to suggest}.
        trials: how many a space gets.
        rank_within: settings whose values are not compared with one another.
        output_dir: the study's folder.
        storage: Optuna's URL.
        seed: of the search.
    """

    recipe: str
    overrides: list
    choices: dict
    space: dict
    trials: int
    rank_within: list
    output_dir: Path
    storage: str
    seed: int = 0
    cells: dict = field(init=False)  # {trial's name: {dimension: label}}

    def __post_init__(self):
        labels = itertools.product(*self.choices.values())
        chosen = [dict(zip(self.choices, cell, strict=True)) for cell in labels]
        if self.space:
            self.cells = {f"trial-{number:03d}": {} for number in range(self.trials)}
        else:
            self.cells = {_slug("-".join(cell.values())): cell for cell in chosen}

    def folder(self, name):
        return self.output_dir / "trials" / name

    def arguments(self, settings, output_dir):
        """The command line of one run."""
        given = [text for name, texts in settings.items() for text in (f"--{name}", *texts)]
        return [self.recipe, *self.overrides, *given, "--output_dir", str(output_dir)]


def parse_sweep(argv):
    """The command line to a Sweep.

    Raises:
        ValueError: no recipe, no grid and no space or both, or one that no run can be started with.
        SystemExit: a field that a run does not have, as training/run.py says it.
    """
    if not argv or argv[0].startswith("-"):
        raise ValueError("a recipe with grid: or space: comes first, as in `training/sweep.py family`.")
    given = pairs(argv[1:])
    own = {name: given.pop(f"--{name}", [None])[-1] for name in ("storage", "output_dir", "trials")}
    recipe = read_recipe(find_recipe(argv[0]))
    dimensions = {name: value for name, value in recipe.items() if name.startswith(("grid.", "space."))}
    for name in [name for name in given if name.startswith(("--grid.", "--space."))]:
        values = [value_of(text) for text in given.pop(name)]
        dimensions[name[2:]] = values[0] if len(values) == 1 and isinstance(values[0], (list, dict)) else values
    grid, space = (
        {name.partition(".")[2]: dimensions[name] for name in dimensions if name.startswith(kind)}
        for kind in ("grid.", "space.")
    )
    if bool(grid) == bool(space):
        raise ValueError(f"{argv[0]}: a sweep needs a grid or a space, and not both, got {sorted(dimensions)}.")
    output_dir = Path(own["output_dir"] or f"runs/{Path(argv[0]).stem}").absolute()
    sweep = Sweep(
        recipe=argv[0],
        overrides=[text for name, texts in given.items() for text in (name, *texts)],
        choices={name: _choices(name, values) for name, values in grid.items()},
        space=space,
        trials=int(own["trials"] or recipe.get("trials", 20)),
        rank_within=recipe.get("rank_within", []),
        output_dir=output_dir,
        storage=own["storage"] or f"sqlite:///{output_dir / 'study.db'}",
    )
    _require_runnable(sweep)
    return sweep


def _choices(name, values):
    """A dimension's values as {label: {setting: texts}}; a value that is a mapping sets several settings at once."""
    if not isinstance(values, list) or not values:
        raise ValueError(f"grid.{name} must list its values, got {values!r}.")
    choices = {}
    for value in values:
        settings = value if isinstance(value, dict) else {name: value}
        texts = {key: ["null"] if one is None else texts_of(one, "." in key) for key, one in settings.items()}
        choices["-".join(Path(text).name for text in next(iter(texts.values())))] = texts
    if len(choices) < len(values):
        raise ValueError(f"grid.{name}: the values, or the first settings of mappings, must differ, got {values}.")
    return choices


def _require_runnable(sweep):
    """Parse every cell's command line and build its config, so that no typing error waits for hours."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for name, cell in sweep.cells.items():
        study.enqueue_trial(cell)
        settings = settings_of(sweep, study.ask())
        arguments, model, _, _ = parse(sweep.arguments(settings, sweep.folder(name)))
        find_variant(arguments.variant)[0](**model)


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
        whole = isinstance(limits["low"], int) and isinstance(limits["high"], int)
        return (trial.suggest_int if whole else trial.suggest_float)(name, **limits)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"space.{name} must be a list, or low and high (and log: true, or step), got {spec!r}: {error}"
        ) from error


class Worker:
    """One process's part in a study: takes trials, runs them, and tells their figures.

    Two locks guard a trial's folder: the worker's, beside it, and the run's, in it. A trial that the storage calls
    running has been given up where neither is held.
    """

    def __init__(self, sweep):
        self.sweep = sweep
        sweep.output_dir.joinpath("trials").mkdir(parents=True, exist_ok=True)
        with FileLock(sweep.output_dir / ".lock"):
            self.storage = _open_storage(sweep.storage)
            self.folder_id = _folder_id(sweep.output_dir)
            self.study = optuna.create_study(
                storage=self.storage, study_name=Path(sweep.recipe).stem, direction="maximize", load_if_exists=True
            )
            self._require_same_study()
            self._enqueue_missing()

    def _require_same_study(self):
        settings = {
            "overrides": shlex.join(self.sweep.overrides),
            "choices": self.sweep.choices,
            "space": self.sweep.space,
        }
        before = self.study.user_attrs
        for name, value in json.loads(json.dumps(settings)).items():
            if name in before and before[name] != value:
                raise ValueError(
                    f"the study in {self.sweep.output_dir} has {name} {before[name]}, not {value}: repeat its command "
                    "to go on with it, or choose another output_dir (and another database for --storage)."
                )
            self.study.set_user_attr(name, value)

    def _enqueue_missing(self):
        """A waiting trial for each cell that has none, or only failed ones: a repeated command tries those again."""
        alive = {trial.user_attrs["name"] for trial in self.trials() if trial.state != TrialState.FAIL}
        failed = {trial.user_attrs["name"]: trial.params for trial in self.trials() if trial.state == TrialState.FAIL}
        for name, cell in self.sweep.cells.items():
            if name not in alive:
                self.study.enqueue_trial(failed.get(name) or cell, user_attrs={"name": name})

    def trials(self, *states):
        return self.study.get_trials(deepcopy=False, states=states or None)

    def work(self):
        """Run trials until none is left to take."""
        total, quiet = len(self.sweep.cells), int(os.environ.get("WORKER", 0)) > 0
        bar = tqdm(total=total, desc=self.study.study_name, unit="trial", disable=quiet, smoothing=0)
        while True:
            taken, given_up_soon = self.take()
            bar.n = len(self.trials(TrialState.COMPLETE, TrialState.FAIL))
            bar.refresh()
            if taken is not None:
                trial, lock = taken
                bar.set_postfix_str(trial.user_attrs["name"])
                with lock:
                    tqdm.write(self.run(trial))
            elif not given_up_soon:
                bar.close()
                return
            else:  # a run outlived its worker
                time.sleep(POLL_SECONDS)

    def take(self):
        """A trial and the lock that is held on it, or None; and whether one is likely to become free here."""
        soon = False
        for one in self.trials(TrialState.WAITING, TrialState.RUNNING):
            lock = FileLock(self.sweep.folder(one.user_attrs["name"]).with_suffix(".lock"))
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue  # another worker's
            now = self.storage.get_trial(one._trial_id)
            if now.state == TrialState.WAITING and self.storage.set_trial_state_values(
                now._trial_id, TrialState.RUNNING
            ):
                return (self._trial(now), lock), False
            if now.state == TrialState.RUNNING and self._is_of_this_folder(now):
                if not self._is_running(now):
                    return (self._trial(now), lock), False
                soon = True
            lock.release()
        return None, soon

    def _trial(self, frozen):
        self.study.sampler = optuna.samplers.TPESampler(seed=self.sweep.seed + frozen.number, constant_liar=True)
        trial = optuna.trial.Trial(self.study, frozen._trial_id)
        trial.set_user_attr("folder", self.folder_id)
        return trial

    def _is_of_this_folder(self, trial):
        """Whether a running trial was taken by a worker on this folder, or by one that died before it said so."""
        silent = "folder" not in trial.user_attrs
        age = time.time() - trial.datetime_start.timestamp()
        return age > SECONDS_TO_SET_OUT if silent else trial.user_attrs["folder"] == self.folder_id

    def _is_running(self, trial):
        folder = self.sweep.folder(trial.user_attrs["name"])
        if not folder.exists():
            return False
        try:
            with FileLock(folder / ".lock", timeout=0):
                return False
        except Timeout:
            return True

    def run(self, trial):
        """Train one trial; its line for the screen."""
        name, started = trial.user_attrs["name"], time.perf_counter()
        folder = self.sweep.folder(name)
        command = [sys.executable, str(RUN), *self.sweep.arguments(settings_of(self.sweep, trial), folder)]
        log = folder.with_suffix(".log")
        with log.open("a", encoding="utf-8") as file:
            done = subprocess.run([*command, "--disable_tqdm", "true"], stdout=file, stderr=file, check=False)
        if done.returncode:
            reason = _reason(log, done.returncode)
            trial.set_user_attr("error", reason)
            self.study.tell(trial, state=TrialState.FAIL)
            return f"{name}: FAILED: {reason} (log: {log})"
        results = read_results(folder / "results.json")
        results["run"].pop("history")
        trial.set_user_attr("results", results)
        trial.set_user_attr("test_dice", _test_dice(folder / "per_image.csv"))
        dice = results["metrics"]["validation"]["per_image"]["dice"]["value"]
        self.study.tell(trial, dice)
        return f"{name}: validation Dice {dice:.4f} ({time.perf_counter() - started:.0f} s)"

    def finish(self):
        """Where every trial has ended: the leaderboard, and the first of each group as a Hub repository."""
        failures = self._failures()
        for name, reason in failures:
            print(f"Failed: {name}: {reason}")
        if left := self.trials(TrialState.WAITING, TrialState.RUNNING):
            names = ", ".join(trial.user_attrs["name"] for trial in left)
            print(f"Still run by other workers: {names}; the last of them writes the leaderboard.")
            return
        entries = self._entries()
        if not entries:
            raise ValueError(f"every trial failed: read the logs in {self.sweep.output_dir / 'trials'}.")
        with FileLock(self.sweep.output_dir / ".lock"):
            write_leaderboard(self.sweep.output_dir, entries, self._title(), self._conditions(entries), failures)
        print(f"Leaderboard: {self.sweep.output_dir / 'leaderboard.md'}, .csv and .png")
        for row in ranked(entries):
            if row["place"] == 1:
                self._build(row)

    def _entries(self):
        done = {trial.user_attrs["name"]: trial.user_attrs for trial in self.trials(TrialState.COMPLETE)}
        here = [name for name in done if (self.sweep.folder(name) / "model.safetensors").exists()]
        load = {name: partial(_network, self.sweep.folder(name)) for name in here}
        size = {name: _side(self.sweep.folder(name)) for name in here}
        milliseconds = cpu_milliseconds(load, size)
        return [
            Entry(
                name, of["results"], of["test_dice"],
                group_of(of["results"], self.sweep.rank_within), milliseconds.get(name),
            )
            for name, of in done.items()
        ]  # fmt: skip

    def _failures(self):
        ended = {trial.user_attrs["name"] for trial in self.trials(TrialState.COMPLETE)}
        failed = {
            trial.user_attrs["name"]: trial.user_attrs.get("error", "no reason was kept")
            for trial in self.trials(TrialState.FAIL)
        }
        return [(name, reason) for name, reason in failed.items() if name not in ended]

    def _title(self):
        return f"{self.study.study_name}: {len(self.sweep.cells)} trials"

    def _conditions(self, entries):
        results = entries[0].results
        data, environment = results["data"], results["environment"]
        sizes = ", ".join(f"{count} {part}" for part, count in data["sizes"].items())
        return [
            f"- Data: {data['source']}, split {data['split']} ({sizes}; sha256 {data['sha256'][:12]}).",
            f"- Command: `{command_line()}`",
            f"- Trained on {environment['device']}, {environment['cores']} cores; CPU milliseconds: one image, "
            f"float32, eager, all threads, median, on {cpu_name()}.",
            "- Ranked by validation Dice; all other columns are of the test images at their original size. "
            "Dice per image is the mean over images with a 95 % bootstrap interval over images.",
            "- **Bold**: really behind the first of its table, by a paired bootstrap over test images "
            "(Bonferroni: 95 % for the whole table). One seed says nothing of the spread between seeds.",
        ]

    def _build(self, row):
        folder = self.sweep.folder(row["name"])
        command = [sys.executable, "-m", "hub_repos.build", str(folder), str(folder / "repository")]
        if not folder.exists():
            print(f"First of {row['group']}: {row['name']}; build it where it was trained: hub_repos.build")
            return
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
        built = f"its repository: {folder / 'repository'}" if not done.returncode else done.stderr.strip()
        print(f"First of {row['group']}: {row['name']}; {built}")


def _open_storage(url):
    try:
        return optuna.storages.get_storage(url)
    except Exception as error:  # each database has its own
        raise ValueError(f"storage {url!r} can't be opened: {str(error).splitlines()[0]}") from error


def _network(folder):
    return load_model(folder)[0]


def _side(folder):
    processor = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    return processor["size"]["height"] + 2 * processor["mirror_margin"]


def _folder_id(folder):
    path = folder / ".id"
    if not path.exists():
        path.write_text(uuid.uuid4().hex, encoding="utf-8")
    return path.read_text(encoding="utf-8")


def _test_dice(path):
    with path.open(newline="", encoding="utf-8") as file:
        return {row["name"]: float(row["dice"]) for row in csv.DictReader(file) if row["part"] == "test"}


def _reason(log, code):
    """What a run said last; the signal that ended it, if one did."""
    if code < 0:
        return f"ended by signal {-code}" + (" (out of memory?)" if code == -9 else "")
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    said = [line for line in lines if line.startswith("error: ")] or lines or [f"exit code {code}"]
    return said[-1].removeprefix("error: ").strip()[:500]


def _slug(text):
    return re.sub(r"[^\w.+-]+", "_", text)


def command_line():
    """The command, machine-bound folders shortened to their last names."""
    texts = [Path(text).name if Path(text).is_absolute() else text for text in sys.argv[1:]]
    return shlex.join(["accelerate", "launch", "training/sweep.py", *texts])


def become_worker():
    """Each process that accelerate launches is a worker by itself, with one GPU where there are some."""
    number = os.environ.get("LOCAL_RANK", "0")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and "CUDA_VISIBLE_DEVICES" not in os.environ:
        os.environ["CUDA_VISIBLE_DEVICES"] = number
    for name in [name for name in os.environ if DISTRIBUTED.fullmatch(name)]:
        del os.environ[name]
    os.environ["WORKER"] = number


def main(argv=None):
    become_worker()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    worker = Worker(parse_sweep(sys.argv[1:] if argv is None else argv))
    worker.work()
    worker.finish()


if __name__ == "__main__":
    try:
        with contextlib.suppress(KeyboardInterrupt):
            main()
            sys.exit()
        sys.exit("stopped: repeat the command to go on.")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
