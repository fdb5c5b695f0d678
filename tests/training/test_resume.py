"""A run killed with SIGKILL and started again ends with the same bits as one that was never interrupted."""

import functools
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from hub_unets.training.records.results import read_history
from tests.training.runs import run, run_in_two_processes, scratch

# 20 images: 3 steps an epoch, the last of 4 images; checkpoints at 2, 4 and after each validation (3, 6)
SETTINGS = {
    "ema_decay": 0.5,
    "save_strategy": "steps",
    "save_steps": 2,
    "encoder_learning_rate": 0.005,
    "lr_scheduler_type": "cosine",
    "augmentation": "[{HorizontalFlip: {p: 0.5}}, {RandomBrightnessContrast: {p: 0.8}}]",
    "logging_steps": 3,
}
BATCHES = {
    "1x8": {"per_device_train_batch_size": 8},
    "4x2": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
}
# moment: (where the process kills itself, the checkpoint resumed from, the one passed over)
MOMENTS = {
    "mid-epoch": (("after_step", 5), 4, None),
    "last batch": (("after_step", 3), 2, None),
    "before validation": (("before_validation", 6), 4, None),  # step 6 is one to save at, too
    "epoch end": (("before_save", 3), 2, None),
    "in a file": (("inside_write", 6), 4, 6),
    "before the marker": (("before_marker", 4), 3, 4),
    "before scoring": (("before_scoring", 0), 6, None),
}
OFTEN = ("last batch", "in a file")
COMBINATIONS = [("1x8", 0), ("4x2", 2), ("4x2", 0), ("1x8", 2)]


@functools.cache
def uninterrupted(batches):
    """The folder of the run that nothing disturbs."""
    folder = scratch() / f"uninterrupted {batches}"
    assert run(folder, **SETTINGS, **BATCHES[batches]).code == 0
    return folder


def combinations():
    """Each moment with one combination of accumulation and workers, each in turn; two of them in every run."""
    for number, moment in enumerate(MOMENTS):
        for position, (batches, workers) in enumerate(COMBINATIONS):
            in_turn = number % len(COMBINATIONS) == position
            marks = [] if in_turn and moment in OFTEN else [pytest.mark.long if in_turn else pytest.mark.slow]
            yield pytest.param(moment, batches, workers, marks=marks, id=f"{moment}-{batches}-{workers} workers")


@pytest.mark.parametrize(("moment", "batches", "workers"), list(combinations()))
def test_killed_run_ends_bit_for_bit_as_the_uninterrupted_one(tmp_path, moment, batches, workers):
    kill, resumed_from, passed_over = MOMENTS[moment]
    options = {**SETTINGS, **BATCHES[batches], "dataloader_num_workers": workers}
    killed = run(tmp_path / "run", kill, **options)
    assert killed.code == -9, killed.stderr
    ended = run(tmp_path / "run", **options)
    assert ended.code == 0, ended.stderr
    assert f"Resumed from {tmp_path}/run/checkpoint-{resumed_from}." in ended.stdout
    assert re.findall(r"Passed over .*checkpoint-(\d+):", ended.stdout) == ([str(passed_over)] if passed_over else [])
    assert_same_end(tmp_path / "run", uninterrupted(batches))


def test_resumption_is_said_before_training_goes_on(tmp_path):
    run(tmp_path / "run", ("after_step", 3), **SETTINGS)
    killed_again = run(tmp_path / "run", ("after_step", 5), **SETTINGS)
    assert killed_again.code == -9
    assert "Resumed from" in killed_again.stdout
    run(tmp_path / "run", **SETTINGS)
    assert_same_end(tmp_path / "run", uninterrupted("1x8"))


def test_killed_before_the_first_checkpoint_starts_again(tmp_path):
    run(tmp_path / "run", ("inside_write", 2), **SETTINGS)
    ended = run(tmp_path / "run", **SETTINGS)
    assert "Passed over" in ended.stdout and "Resumed from" not in ended.stdout
    assert_same_end(tmp_path / "run", uninterrupted("1x8"))


def test_damaged_checkpoint_is_passed_over(tmp_path):
    run(tmp_path / "run", ("after_step", 5), **SETTINGS)
    (tmp_path / "run/checkpoint-4/model.safetensors").write_bytes(b"damaged")
    ended = run(tmp_path / "run", **SETTINGS)
    assert "Passed over" in ended.stdout and "checkpoint-3." in ended.stdout
    assert_same_end(tmp_path / "run", uninterrupted("1x8"))


def test_checkpoint_of_zeros_at_the_right_size_is_passed_over(tmp_path):
    run(tmp_path / "run", ("after_step", 5), **SETTINGS)
    for name in ("optimizer.pt", "ema.safetensors"):
        file = tmp_path / "run/checkpoint-4" / name
        file.write_bytes(bytes(file.stat().st_size))
    ended = run(tmp_path / "run", **SETTINGS)
    assert "checkpoint-4: it is half written or damaged" in ended.stdout and "checkpoint-3." in ended.stdout
    assert_same_end(tmp_path / "run", uninterrupted("1x8"))


def test_stop_in_the_middle_of_an_epoch_trains_no_further_step(tmp_path):
    options = {**SETTINGS, "max_steps": 5}
    run(tmp_path / "killed", ("before_scoring", 0), **options)
    run(tmp_path / "whole", **options)
    assert run(tmp_path / "killed", **options).code == 0
    assert_same_end(tmp_path / "killed", tmp_path / "whole", step=5)


def test_rate_that_falls_on_a_plateau_falls_alike_after_a_resume(tmp_path):
    """No epoch after the first raises the Dice by a half: the rate falls before the kills and after them."""
    plateau = {"factor": 0.5, "patience": 0, "threshold": 0.5, "threshold_mode": "abs"}
    options = {"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": json.dumps(plateau)}
    options = {**SETTINGS, **options, "num_train_epochs": 4, "logging_steps": 3}
    run(tmp_path / "whole", **options)
    for moment in (("after_step", 8), ("before_save", 9)):
        assert run(tmp_path / "run", moment, **options).code == -9
    assert run(tmp_path / "run", **options).code == 0
    assert_same_end(tmp_path / "run", tmp_path / "whole", step=12)
    for folder in ("run", "whole"):
        history = read_history(tmp_path / folder, {})
        rates = [entry["learning_rate"] for entry in history if "learning_rate" in entry]
        assert rates == [0.01, 0.01, 0.005, 0.0025]


def test_data_that_changed_under_a_run_is_refused(tmp_path):
    for kind in ("images", "masks"):
        (tmp_path / "set" / kind).mkdir(parents=True)
    rng = np.random.default_rng(0)

    def add(*numbers):
        for number in numbers:
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(tmp_path / f"set/images/{number}.png")
            Image.fromarray(np.eye(32, dtype=np.uint8)).save(tmp_path / f"set/masks/{number}.png")

    add(*range(20))
    options = {**SETTINGS, "data": tmp_path / "set", "split": "80/10/10"}
    assert run(tmp_path / "run", ("after_step", 2), **options).code == -9
    processes = run_in_two_processes(tmp_path / "run", **options)
    assert processes[0].code == 1 and "holds a run with processes=1, not 2: " in processes[0].stderr
    add(0)
    changed = run(tmp_path / "run", **options)
    assert changed.code == 1 and "holds a run with files_sha256=" in changed.stderr
    add(20, 21)
    larger = run(tmp_path / "run", **options)
    assert larger.code == 1 and "holds a run with " in larger.stderr and "Resumed" not in larger.stdout


def test_a_training_part_without_a_polyp_is_refused(tmp_path):
    for kind in ("images", "masks"):
        (tmp_path / "set" / kind).mkdir(parents=True)
        for number in range(20):
            Image.new("L", (32, 32 + number)).save(tmp_path / f"set/{kind}/{number}.png")
    ended = run(tmp_path / "run", data=tmp_path / "set", split="80/10/10")
    assert ended.code == 1 and "none of the 16 training masks has a foreground pixel" in ended.stderr


def test_mean_of_the_last_epochs_is_alike_after_a_resume(tmp_path):
    options = {**SETTINGS, "average_last": 2}
    run(tmp_path / "whole", **options)
    for moment in (("after_step", 5), ("before_scoring", 0)):
        assert run(tmp_path / "run", moment, **options).code == -9
    assert run(tmp_path / "run", **options).code == 0
    assert_same_end(tmp_path / "run", tmp_path / "whole")
    best = json.loads((tmp_path / "run/results.json").read_text())["run"]["best"]
    assert best["averaged"] == 2 and best["step"] == 6 and 0 <= best["dice"] <= 1


def test_two_processes_resume_bit_for_bit(tmp_path):
    options = {**SETTINGS, **BATCHES["4x2"]}
    killed = run_in_two_processes(tmp_path / "run", ("after_step", 2), num_train_epochs=1, **options)
    assert [process.code for process in killed] == [-9, -9]
    ended = run_in_two_processes(tmp_path / "run", num_train_epochs=1, **options)
    assert [process.code for process in ended] == [0, 0], ended
    whole = run_in_two_processes(tmp_path / "whole", num_train_epochs=1, **options)
    assert whole[0].code == 0
    assert_same_end(tmp_path / "run", tmp_path / "whole", step=2)


def assert_same_end(found, expected, step=6):
    checkpoint = f"checkpoint-{step}"
    for name in ("model.safetensors", f"{checkpoint}/model.safetensors", f"{checkpoint}/ema.safetensors"):
        one, other = load_file(found / name), load_file(expected / name)
        assert one.keys() == other.keys()
        assert [key for key in one if not torch.equal(one[key], other[key])] == [], name
    for name in ("optimizer.pt", "scheduler.pt"):
        one, other = (torch.load(folder / checkpoint / name) for folder in (found, expected))
        assert_equal(one, other)
    one, other = (json.loads((folder / checkpoint / "trainer_state.json").read_text()) for folder in (found, expected))
    for field in ("best_metric", "best_global_step", "global_step", "epoch"):
        assert one[field] == other[field], field
    one, other = (json.loads((folder / "results.json").read_text()) for folder in (found, expected))
    assert one["metrics"] == other["metrics"] and one["run"]["best"] == other["run"]["best"]
    assert losses_of(found / checkpoint) == losses_of(expected / checkpoint)


def losses_of(folder):
    """The training losses of the log, as the curves show them."""
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]


def assert_equal(value, expected):
    if isinstance(value, torch.Tensor):
        assert torch.equal(value, expected)
    elif isinstance(value, dict):
        assert value.keys() == expected.keys()
        for key in value:
            assert_equal(value[key], expected[key])
    elif isinstance(value, list):
        assert len(value) == len(expected)
        for pair in zip(value, expected, strict=True):
            assert_equal(*pair)
    else:
        assert value == expected
