"""Real sweeps of real runs: two workers at once, a failing trial, kill -9, and a run that outlives its worker."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
import torch
from filelock import FileLock
from optuna.trial import TrialState

from hub_unets.training.errors import UserError
from hub_unets.training.records.results import read_results
from hub_unets.training.settings.trials import parse_sweep
from hub_unets.training.sweep import Worker, become_worker
from tests.training import runs

RECIPE = """
model: {base_channels: 4, depth: 2}
data: phantoms?count=12&size=64&seed=0
split: own
image_size: 32
precision: fp32
learning_rate: 0.01
num_train_epochs: 2
"""
SWEEP = [sys.executable, "training/sweep.py"]
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
TWO = [*LAUNCH, "--main_process_port", "0", "training/sweep.py"]


@pytest.fixture
def recipe(tmp_path):
    def write(text):
        path = tmp_path / "mine.yaml"
        path.write_text(RECIPE + text, encoding="utf-8")
        return str(path)

    return write


def start(command, *argv):
    return subprocess.Popen(
        [*command, *argv],
        cwd=runs.ROOT,
        env={**os.environ, **runs.SERVER_ENVIRONMENT},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def trials_of(folder):
    return optuna.load_study(study_name=folder.name, storage=f"sqlite:///{folder / 'study.db'}").get_trials()


def runs_in(log):
    return log.read_text(encoding="utf-8").count("Split own")


@pytest.mark.long
def test_two_workers_share_the_trials_and_one_that_fails_stops_none(recipe, tmp_path):
    folder = tmp_path / "study"
    small = "[{model.backbone: resnet18, model.decoder_channels: [8, 8, 8, 8, 8]}]"
    path = recipe(f"grid: {{variant: [unet, resunet], backbone_weights: [none, timm], encoder: {small}}}\n")
    sweep = start(TWO, path, "--output_dir", str(folder), "--max_samples", "4", "--num_train_epochs", "1")
    stdout, stderr = sweep.communicate(timeout=300)
    assert sweep.returncode == 0, stderr
    trials = {trial.user_attrs["name"]: trial for trial in trials_of(folder)}
    assert {name: trial.state for name, trial in trials.items()} == {
        "unet-none-resnet18": TrialState.COMPLETE,
        "unet-timm-resnet18": TrialState.FAIL,  # there is no Hub here
        "resunet-none-resnet18": TrialState.COMPLETE,
        "resunet-timm-resnet18": TrialState.FAIL,
    }
    assert len(trials_of(folder)) == 4
    assert [runs_in(folder / "trials" / f"{name}.log") for name in trials] == [1, 1, 1, 1]
    by_start = sorted(trials.values(), key=lambda trial: trial.datetime_start)
    assert by_start[1].datetime_start < by_start[0].datetime_complete, "one after the other"
    page = (folder / "leaderboard.md").read_text("utf-8")
    assert "- unet-timm-resnet18: " in page and "backbone_weights" in page
    assert page.count("| 1 |") == 1 and "from scratch" in page
    assert "FAILED" in stdout + stderr and "Traceback" not in stderr
    assert len(list(folder.glob("trials/*/repository/model.safetensors"))) == 1


@pytest.mark.long
def test_folds_end_in_figures_of_every_image(recipe, tmp_path):
    folder = tmp_path / "study"
    argv = [recipe(""), "--folds", "2", "--output_dir", str(folder), "--num_train_epochs", "1"]
    stdout, stderr = start(SWEEP, *argv).communicate(timeout=300)
    assert "mine, 2 folds: " in stdout and "17 images" in stdout, stderr
    results = read_results(folder / "out_of_fold/mine/results.json")
    assert results["metrics"]["test"]["images"] == 17 and results["data"]["split"] == "2 folds"
    tested = [read_results(path)["data"]["sizes"]["test"] for path in sorted(folder.glob("trials/*/results.json"))]
    assert tested == [9, 8] and not (folder / "leaderboard.md").exists()


@pytest.mark.long
def test_kill_9_in_the_middle_repeats_no_finished_trial(recipe, tmp_path):
    path = recipe("grid: {model.base_channels: [4, 6]}\nsave_steps: 1\nsave_strategy: steps\n")
    folder = tmp_path / "study"
    argv = [path, "--output_dir", str(folder), "--num_train_epochs", "6"]
    first = start(SWEEP, *argv)
    wait_for(lambda: (folder / "trials/4/results.json").exists(), first)
    wait_for(lambda: list(folder.glob("trials/6/checkpoint-*/complete.json")), first)
    os.killpg(first.pid, signal.SIGKILL)  # worker and run
    first.communicate()
    states = [trial.state for trial in trials_of(folder)]
    assert states == [TrialState.COMPLETE, TrialState.RUNNING]
    kept = (folder / "trials/4/results.json").stat().st_mtime_ns
    second = start(SWEEP, *argv)
    _, stderr = second.communicate(timeout=300)
    assert second.returncode == 0, stderr
    assert [trial.state for trial in trials_of(folder)] == [TrialState.COMPLETE] * 2
    assert (folder / "trials/4/results.json").stat().st_mtime_ns == kept
    assert runs_in(folder / "trials/4.log") == 1
    log = (folder / "trials/6.log").read_text("utf-8")
    assert runs_in(folder / "trials/6.log") == 2 and "Resumed from" in log
    assert "| 2 |" in (folder / "leaderboard.md").read_text("utf-8")
    other = start(SWEEP, *argv, "--learning_rate", "0.5")
    _, stderr = other.communicate(timeout=60)
    assert other.returncode == 1 and "has overrides" in stderr and "Traceback" not in stderr


def wait_for(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "too slow"
        time.sleep(0.05)


@pytest.fixture
def sweep(recipe, tmp_path):
    return parse_sweep([recipe("grid: {seed: [1, 2]}"), "--output_dir", str(tmp_path / "study")])


def release(lock):
    lock.release()


def test_two_workers_never_hold_the_same_trial(sweep):
    worker, other = Worker(sweep), Worker(sweep)
    (first, held, _), (second, also_held, _) = worker.take(), other.take()
    assert {first.user_attrs["name"], second.user_attrs["name"]} == {"1", "2"}
    assert worker.take() == (None, None, False), "both are other workers' now"
    release(held), release(also_held)


def test_a_trial_whose_worker_died_is_taken_up_again_by_its_folder_only(sweep, recipe, tmp_path):
    storage = ("--storage", sweep.storage)
    elsewhere = parse_sweep(
        [recipe("grid: {seed: [1, 2]}"), "--output_dir", str(tmp_path / "far" / "study"), *storage]
    )
    worker, distant = Worker(sweep), Worker(elsewhere)
    first, held, _ = worker.take()
    release(held)  # as when its process ends
    second, also_held, _ = distant.take()
    assert second.user_attrs["name"] == "2", "the first belongs to the other folder"
    again, held, _ = worker.take()
    assert again.number == first.number
    release(held), release(also_held)
    assert distant.take()[0].number == second.number


def test_a_run_that_outlives_its_worker_is_waited_for(sweep):
    worker = Worker(sweep)
    (_, kept, _), (trial, held, _) = worker.take(), worker.take()
    release(held)
    folder = Path(sweep.folder(trial.user_attrs["name"]))
    folder.mkdir()
    with FileLock(folder / ".lock"):
        assert worker.take() == (None, None, True)
    assert worker.take()[0].number == trial.number
    release(kept)


def test_a_repeated_command_tries_failed_trials_again_with_the_same_settings(recipe, tmp_path):
    space = parse_sweep([recipe("space: {seed: {low: 0, high: 99}}\ntrials: 2"), "--output_dir", str(tmp_path / "s")])
    worker = Worker(space)
    for number in range(2):
        trial, held, _ = worker.take()
        seed = trial.suggest_int("seed", 0, 99)
        trial.set_user_attr("error", "no reason")
        worker.study.tell(trial, state=TrialState.FAIL) if number else worker.study.tell(trial, 0.5)
        release(held)
    repeated = Worker(space)
    waiting = repeated.trials(TrialState.WAITING)
    assert [attempt.user_attrs["name"] for attempt in waiting] == [trial.user_attrs["name"]]
    retried, held, _ = repeated.take()
    assert retried.suggest_int("seed", 0, 99) == seed
    release(held)
    assert len(Worker(space).trials()) == 3


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        ("grid: {learning_rate: [0.01, 0.03]}", "has grid.learning_rate.1 0.02, not 0.03:"),
        ("grid: {learning_rate: [0.01]}", r"has grid.learning_rate \[0.01, 0.02\], not \[0.01\]:"),
        ("grid: {weight_decay: [0.01, 0.02]}", r"has grid.learning_rate \[0.01, 0.02\], not nothing:"),
    ],
)
def test_another_grid_in_the_same_folder_is_refused_by_what_differs(changed, difference, recipe, tmp_path):
    Worker(parse_sweep([recipe("grid: {learning_rate: [0.01, 0.02]}"), "--output_dir", str(tmp_path / "out")]))
    with pytest.raises(UserError, match=difference):
        Worker(parse_sweep([recipe(changed), "--output_dir", str(tmp_path / "out")]))


def test_trials_of_a_space_differ(recipe, tmp_path):
    text = "space: {learning_rate: {low: 1.0e-4, high: 1.0e-2}}\ntrials: 4"
    space = parse_sweep([recipe(text), "--output_dir", str(tmp_path / "s")])
    workers = [Worker(space) for _ in range(4)]
    taken = [worker.take() for worker in workers]
    rates = {trial.suggest_float("learning_rate", 1e-4, 1e-2) for trial, _, _ in taken}
    assert len(rates) == 4
    for _, held, _ in taken:
        release(held)


def test_a_storage_that_is_none(recipe, tmp_path):
    sweep = parse_sweep([recipe("grid: {seed: [1]}"), "--output_dir", str(tmp_path), "--storage", "nosuch://x"])
    with pytest.raises(ValueError, match="storage 'nosuch://x' can't be opened"):
        Worker(sweep)


def test_each_launched_process_is_a_worker_by_itself(monkeypatch):
    launched = dict.fromkeys(("RANK", "LOCAL_RANK", "GROUP_RANK"), "1")
    launched |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), "2")
    launched |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "x", "ROLE_NAME": "a"}
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert become_worker() == 1
    assert not launched.keys() & os.environ.keys()


@pytest.mark.parametrize(
    ("visible", "gpus", "number", "expected"),
    [
        (None, 2, "1", "1"),
        ("4,5", 8, "0", "4"),
        ("4,5", 8, "1", "5"),
        ("GPU-a, GPU-b", 8, "1", "GPU-b"),
        ("4,5", 8, "3", "5"),  # more workers than GPUs share them
        (None, 1, "1", "0"),
        ("", 8, "1", ""),
        (None, 0, "1", None),
    ],
)
def test_each_worker_takes_its_own_of_the_gpus(monkeypatch, visible, gpus, number, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    for name, value in (("WORLD_SIZE", "2"), ("LOCAL_RANK", number), ("CUDA_VISIBLE_DEVICES", visible or "")):
        monkeypatch.setenv(name, value)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    become_worker()
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == expected
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # which monkeypatch takes away


def test_names_with_dots_have_files_of_their_own(recipe, tmp_path):
    path = recipe("grid: {learning_rate: [0.0001, 0.001]}")
    sweep = parse_sweep([path, "--output_dir", str(tmp_path / "study")])
    worker, other = Worker(sweep), Worker(sweep)
    trials = [worker.take(), other.take()]
    assert {trial.user_attrs["name"] for trial, _, _ in trials} == {"0.0001", "0.001"}
    assert len({sweep.beside(name, ".log") for name in sweep.cells}) == 2
    for _, held, _ in trials:
        release(held)


def test_a_trial_that_was_just_taken_is_waited_for(sweep):
    """As when the server's answer to its worker was lost."""
    worker = Worker(sweep)
    for trial in worker.trials():
        worker.storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
    assert worker.take() == (None, None, True)
