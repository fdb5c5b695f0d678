"""Train every cell of a grid, or search a space: `accelerate launch training/sweep.py RECIPE.yaml [--field value]`.

RECIPE is a recipe with `grid:` or `space:`, or any with `--folds 5` for a cross-validation. A trial is one run of
training/run.py in a process of its own, and an Optuna trial; both can be stopped at any moment. All processes that
name the same study share its trials. If a worker dies, another worker on the same folder continues its trial from the
last checkpoint.
"""

import contextlib
import csv
import json
import os
import re
import subprocess
import sys
import time
import uuid
from functools import partial
from pathlib import Path

try:
    import optuna
except ModuleNotFoundError:
    sys.exit("error: a sweep needs Optuna: pip install -e '.[sweep]'")
import torch
import transformers
from filelock import FileLock, Timeout
from optuna.trial import TrialState
from tqdm import tqdm

from hub_unets.modeling.variants import find_variant
from hub_unets.training.data.sources import load_source
from hub_unets.training.errors import UserError, run_command
from hub_unets.training.fit.threads import use_all_cores
from hub_unets.training.measure.cost import cpu_milliseconds
from hub_unets.training.measure.metrics import ranking_dice
from hub_unets.training.measure.models import load_model
from hub_unets.training.records.folds import write_out_of_fold
from hub_unets.training.records.leaderboard import Entry, group_of, ranked, write_leaderboard
from hub_unets.training.records.results import cpu_name, read_results, scored_part
from hub_unets.training.settings.arguments import parse
from hub_unets.training.settings.publishable import command_of, without_folders
from hub_unets.training.settings.storage import open_storage, quiet_optuna
from hub_unets.training.settings.trials import parse_sweep, settings_of

RUN = Path(__file__).with_name("run.py")
LAUNCHED = re.compile(  # environment variables that only a launcher sets
    r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)|TORCHELASTIC_\w+|ACCELERATE_MIXED_PRECISION"
)
CONDITIONS = ("image_size", "num_train_epochs", "seed", "max_samples")
QUIET = ("--disable_tqdm", "true")  # no progress bars in a log file
QUIET_ENVIRONMENT = {"TQDM_DISABLE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
SECONDS_TO_SET_OUT = 60  # for a worker to record its folder in a trial that it has taken
POLL_SECONDS = 2


class Worker:
    """One process's part in a study: takes trials, runs them, and reports their figures.

    Two locks guard a trial's folder: the worker's, beside it, and the run's, in it. A trial that is marked as running
    while neither lock is held has been abandoned.
    """

    def __init__(self, sweep, number=0):
        self.sweep, self.number = sweep, number
        (sweep.output_dir / "trials").mkdir(parents=True, exist_ok=True)
        with FileLock(sweep.output_dir / ".lock"):
            self.folder_id = _folder_id(sweep.output_dir)
            self.storage = open_storage(sweep.storage)
            self.study = optuna.create_study(
                storage=self.storage, study_name=sweep.output_dir.name, direction="maximize", load_if_exists=True
            )
            self._require_same_settings()
            self._enqueue_missing()

    def _require_same_settings(self):
        stored = self.study.user_attrs
        for name, value in json.loads(json.dumps(self.sweep.settings)).items():
            if stored.get(name, value) != value:
                raise UserError(
                    f"the study of {self.sweep.output_dir} has {_difference(name, stored[name], value)}: repeat its "
                    "command to go on with it, or choose another output_dir (and another database for --storage)."
                )
            self.study.set_user_attr(name, value)

    def _enqueue_missing(self):
        """A waiting trial for each cell that has none, or only failed ones: a repeated command tries those again."""
        alive = {trial.user_attrs["name"] for trial in self.trials() if trial.state != TrialState.FAIL}
        failed = {trial.user_attrs["name"]: trial.params for trial in self.trials(TrialState.FAIL)}
        for name, cell in self.sweep.cells.items():
            if name not in alive:
                self.study.enqueue_trial(failed.get(name, cell), user_attrs={"name": name})

    def trials(self, *states):
        return self.study.get_trials(deepcopy=False, states=states or None)

    def count_ended(self):
        unfinished = {trial.user_attrs["name"] for trial in self.trials(TrialState.WAITING, TrialState.RUNNING)}
        return len(self.sweep.cells) - len(unfinished)

    def work(self):
        """Run trials until none is left to take."""
        ended = self.count_ended()
        bar = {"total": len(self.sweep.cells), "initial": ended, "unit": "trial", "smoothing": 0}
        with tqdm(desc=self.study.study_name, disable=self.number > 0, **bar) as progress:
            while True:
                trial, lock, wait = self.take()
                if trial is not None:
                    progress.set_postfix_str(trial.user_attrs["name"])
                    try:
                        tqdm.write(self.run(trial))
                    finally:
                        lock.release()
                elif wait:  # a run outlived its worker
                    time.sleep(POLL_SECONDS)
                else:
                    return
                progress.update(self.count_ended() - progress.n)

    def take(self):
        """A trial and the lock that is held on it, or None twice; and whether one will become free here."""
        wait = False
        for trial in self.trials(TrialState.WAITING, TrialState.RUNNING):
            lock = FileLock(self.sweep.beside(trial.user_attrs["name"], ".lock"))
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue  # another worker's
            current = self.storage.get_trial(trial._trial_id)
            is_running = current.state == TrialState.RUNNING
            outlived = is_running and self._is_of_this_folder(current)
            if outlived and self._is_training(current):
                wait = True
            elif outlived or self._is_taken(current):
                return self._trial(current), lock, False
            elif not is_running or "folder" not in current.user_attrs:  # just taken, or its worker died at once
                wait = wait or current.state in (TrialState.WAITING, TrialState.RUNNING)
            lock.release()
        return None, None, wait

    def _is_taken(self, trial):
        """Take a waiting trial; False where it no longer waits."""
        if trial.state != TrialState.WAITING:
            return False
        return self.storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)

    def _trial(self, frozen):
        self.study.sampler = optuna.samplers.TPESampler(seed=frozen.number, constant_liar=True)
        trial = optuna.trial.Trial(self.study, frozen._trial_id)
        trial.set_user_attr("folder", self.folder_id)
        return trial

    def _is_of_this_folder(self, trial):
        """Whether a running trial was taken by a worker on this folder, or by one that died before recording it."""
        if "folder" in trial.user_attrs:
            return trial.user_attrs["folder"] == self.folder_id
        return time.time() - trial.datetime_start.timestamp() > SECONDS_TO_SET_OUT

    def _is_training(self, trial):
        lock = self.sweep.folder(trial.user_attrs["name"]) / ".lock"  # the run's own
        try:
            with FileLock(lock, timeout=0) if lock.exists() else contextlib.nullcontext():
                return False
        except Timeout:
            return True

    def run(self, trial):
        """Train one trial; returns a line for the screen."""
        name, started = trial.user_attrs["name"], time.perf_counter()
        folder = self.sweep.folder(name)
        log = self.sweep.beside(name, ".log")
        command = [sys.executable, str(RUN), *self.sweep.arguments(settings_of(self.sweep, trial), folder)]
        with log.open("a", encoding="utf-8") as file:
            process = subprocess.run([*command, *QUIET], stdout=file, stderr=file, env=os.environ | QUIET_ENVIRONMENT)
        if process.returncode:
            reason = _reason(log, process.returncode)
            trial.set_user_attr("error", reason)
            self.study.tell(trial, state=TrialState.FAIL)
            return f"{name}: FAILED: {reason} (log: {log})"
        results = read_results(folder / "results.json")
        results["run"].pop("history", None)  # of an earlier release
        trial.set_user_attr("results", results)
        trial.set_user_attr("dice", _dice(folder / "per_image.csv", scored_part(results)))
        dice = ranking_dice(results["metrics"]["validation"])
        self.study.tell(trial, dice)
        return f"{name}: validation Dice {dice:.4f} ({time.perf_counter() - started:.0f} s)"


def conclude(worker, argv):
    """When all trials have ended, write the leaderboard and build the first of each group as a Hub repository."""
    sweep = worker.sweep
    completed = list({trial.user_attrs["name"]: trial for trial in worker.trials(TrialState.COMPLETE)}.values())
    failures = _failures(worker)
    for name, reason in failures:
        print(f"Failed: {name}: {reason}")
    if unfinished := worker.trials(TrialState.WAITING, TrialState.RUNNING):
        names = ", ".join(trial.user_attrs["name"] for trial in unfinished)
        print(f"Still run by other workers: {names}; the last of them writes the leaderboard.")
        return
    if not completed:
        raise UserError(f"every trial failed: read the logs in {sweep.output_dir / 'trials'}.")
    if sweep.folds:
        print_folds(sweep, {trial.user_attrs["name"] for trial in completed})
        return
    title = f"{worker.study.study_name}: {len(sweep.cells)} trials"
    with FileLock(sweep.output_dir / ".lock"):
        entries = _entries(sweep, completed)
        write_leaderboard(sweep.output_dir, entries, title, _conditions(entries, command_of("sweep", argv)), failures)
        print(f"Leaderboard: {sweep.output_dir / 'leaderboard.md'}, .csv and .png")
        for row in ranked(entries):
            if row["place"] == 1:
                print(f"First of {row['group']}: {row['name']}; {_build(sweep.folder(row['name']))}")


def print_folds(sweep, completed):
    """The out-of-fold figures of each choice whose folds have all ended, left in out_of_fold/CHOICE."""
    for choice, names in sweep.folds_of_choices().items():
        if missing := [name for name in names if name not in completed]:
            print(f"{choice}: no out-of-fold figures without {', '.join(missing)}; repeat the command.")
            continue
        output = sweep.output_dir / "out_of_fold" / choice
        print(f"{choice}, {sweep.folds} folds: {output}")
        arguments, model_fields, *_ = parse(sweep.arguments_of(names[0]))
        id2label = find_variant(arguments.variant)[0](**model_fields).id2label
        source = load_source(arguments.data, arguments.image_column, arguments.mask_column, id2label)
        output.mkdir(parents=True, exist_ok=True)
        with FileLock(output / ".lock"):  # two workers may end at once: the second finds all done
            print(write_out_of_fold(choice, [sweep.folder(name) for name in names], source, output))
        print(f"Their mean is a model: hub-unets evaluate {output} DATA")


def _failures(worker):
    """(name, reason) of the trials that failed and were not run again with success."""
    ended = {trial.user_attrs["name"] for trial in worker.trials(TrialState.COMPLETE)}
    errors = {trial.user_attrs["name"]: trial.user_attrs["error"] for trial in worker.trials(TrialState.FAIL)}
    return [(name, without_folders(reason)) for name, reason in errors.items() if name not in ended]


def _entries(sweep, trials):
    folders = {trial.user_attrs["name"]: sweep.folder(trial.user_attrs["name"]) for trial in trials}
    local_folders = {name: folder for name, folder in folders.items() if (folder / "model.safetensors").exists()}
    load = {name: partial(_network, folder) for name, folder in local_folders.items()}
    milliseconds = cpu_milliseconds(load, {name: _side(folder) for name, folder in local_folders.items()})
    return [
        Entry(
            name=trial.user_attrs["name"],
            results=trial.user_attrs["results"],
            dice=trial.user_attrs["dice"],
            group=group_of(trial.user_attrs["results"], sweep.rank_within),
            cpu_ms=milliseconds.get(trial.user_attrs["name"]),
        )
        for trial in trials
    ]


def _conditions(entries, command):
    data, environment, part = entries[0].results["data"], entries[0].results["environment"], entries[0].part
    shared = [f"{name} {value}" for name, value in _shared_settings(entries).items() if name in CONDITIONS]
    sizes = ", ".join(f"{count} {part}" for part, count in data["sizes"].items())
    return [
        f"- Data: {data['source']}, split {data['split']} ({sizes}; sha256 {data['sha256'][:12]}).",
        f"- Each trial: {', '.join(shared)}.",
        f"- Command: `{command}`",
        f"- Trained on {environment['device']}, {environment['cores']} cores; CPU milliseconds: one image, "
        f"float32, eager, all threads, median, on {cpu_name()}.",
        "- Ranked by validation Dice, of several classes by the pooled one; all other "
        f"columns are of the {part} images at their original size. "
        "Dice per image is the mean over images with a 95 % bootstrap interval over images.",
        f"- **Bold**: a real difference from the first of its table, by a paired bootstrap over {part} images "
        "(Bonferroni: 95 % for the whole table). One seed says nothing of the spread between seeds.",
    ]


def _shared_settings(entries):
    """What all trials set alike, and their seed."""
    settings = [entry.results["run"]["settings"] | {"seed": entry.results["run"]["seed"]} for entry in entries]
    return {name: value for name, value in settings[0].items() if all(other.get(name) == value for other in settings)}


def _build(folder):
    """The trial's Hub repository, built where its weights are; says how that went."""
    if not (folder / "model.safetensors").exists():
        return "build its repository on the machine that trained it: hub-unets build"
    command = [sys.executable, "-m", "hub_unets.hub_repos.build", str(folder), str(folder / "repository")]
    process = subprocess.run(command, capture_output=True, text=True)
    return f"its repository: {folder / 'repository'}" if process.returncode == 0 else process.stderr.strip()


def _network(folder):
    return load_model(folder)[0]


def _side(folder):
    processor = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    return processor["size"]["height"] + 2 * processor["mirror_margin"]


def _difference(name, stored, value):
    """Where two settings first differ, in a few words: `grid.choice.all.seed 1, not 2`."""
    both = [stored, value]
    if all(isinstance(side, list) for side in both) and len(stored) == len(value):
        both = [dict(enumerate(side)) for side in both]
    if all(isinstance(side, dict) for side in both):
        missing = object()
        pairs = {key: [side.get(key, missing) for side in both] for key in {**both[0], **both[1]}}
        key, values = next((key, pair) for key, pair in pairs.items() if pair[0] != pair[1])
        return _difference(f"{name}.{key}", *("nothing" if side is missing else side for side in values))
    return f"{name} {str(stored)[:120]}, not {str(value)[:120]}"


def _folder_id(folder):
    path = folder / ".id"
    if not path.exists():
        path.write_text(uuid.uuid4().hex, encoding="utf-8")
    return path.read_text(encoding="utf-8")


def _dice(path, part):
    with path.open(newline="", encoding="utf-8") as file:
        return {row["name"]: float(row["dice"]) for row in csv.DictReader(file) if row["part"] == part}


def _reason(log, code):
    """The last message of a failed run, or the signal that ended it."""
    if code < 0:
        return f"ended by signal {-code}" + (" (out of memory?)" if code == -9 else "")
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    messages = [line for line in lines if line.startswith("error: ")] or lines or [f"exit code {code}"]
    return messages[-1].removeprefix("error: ").strip()[:500]


def become_worker():
    """Make each process that accelerate launches a worker by itself, on a GPU of its own; its number."""
    number = os.environ.get("LOCAL_RANK", "0")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and (devices := _visible_devices()):
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[int(number) % len(devices)]
    os.environ["OMP_NUM_THREADS"] = str(use_all_cores())
    for name in [name for name in os.environ if LAUNCHED.fullmatch(name)]:
        del os.environ[name]
    return int(number)


def usage():
    """What `--help` says."""
    print(f"usage: hub-unets sweep RECIPE.yaml [--any.field value]\n\n{__doc__}")
    print("--grid.FIELD and --space.FIELD set a dimension, --trials how many a space gets, --storage the database,")
    print("--output_dir the study's folder. All other fields are those of `hub-unets train --help`.")


def _visible_devices():
    """The GPUs that this command may use, as CUDA_VISIBLE_DEVICES names them: numbers or UUIDs."""
    devices = os.environ.get("CUDA_VISIBLE_DEVICES")
    if devices is None:
        return [str(number) for number in range(torch.cuda.device_count())]
    return [device.strip() for device in devices.split(",") if device.strip()]


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(argv[:1]):
        usage()
        sys.exit(0)
    number = become_worker()
    quiet_optuna()
    transformers.utils.logging.disable_progress_bar()
    worker = Worker(parse_sweep(argv), number)
    worker.work()
    conclude(worker, argv)


if __name__ == "__main__":
    run_command(main)
