"""Checkpoints that a killed run can trust: complete or passed over, and never the last one lost."""

import json
import os
import re
import shutil
from pathlib import Path

from filelock import FileLock, Timeout
from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy

MARKER = "complete.json"


class CheckpointKeeper(TrainerCallback):
    """Marks each checkpoint complete once all of it is written, then removes all but the newest and the best.

    Args:
        save_extra: called with the checkpoint's folder before it is marked; writes what the Trainer does not.
        wait_for_everyone: returns when every process has written its share.
    """

    def __init__(self, save_extra, wait_for_everyone):
        self.save_extra, self.wait_for_everyone = save_extra, wait_for_everyone

    def on_evaluate(self, args, state, control, **kwargs):
        control.should_save = True  # the best epoch is always one that has a checkpoint

    def on_step_end(self, args, state, control, **kwargs):
        ends_epoch = state.epoch == int(state.epoch) or state.global_step >= state.max_steps
        if ends_epoch and args.eval_strategy == IntervalStrategy.EPOCH:
            control.should_save = False  # saved after the epoch's validation; a resume from here would skip that

    def on_save(self, args, state, control, **kwargs):
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if args.should_save:
            self.save_extra(folder)
        self.wait_for_everyone()
        if args.should_save:
            mark_complete(folder)
            kept = {state.global_step, state.best_global_step}
            for step, older in checkpoints(args.output_dir):
                if step not in kept and step < state.global_step:
                    shutil.rmtree(older)


def mark_complete(folder):
    """Write the sizes of all the checkpoint's files beside them, atomically and after them."""
    sizes = {path.name: path.stat().st_size for path in sorted(Path(folder).iterdir()) if path.name != MARKER}
    partial = Path(folder) / f".{MARKER}"
    with partial.open("w", encoding="utf-8") as file:
        json.dump(sizes, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(Path(folder) / MARKER)


def is_complete(folder):
    """Whether every file is there at the size it had when the checkpoint was marked."""
    try:
        sizes = json.loads((Path(folder) / MARKER).read_text(encoding="utf-8"))
        return all((Path(folder) / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def checkpoints(output_dir):
    """(step, folder) of every checkpoint, complete or not, oldest first."""
    found = []
    for folder in Path(output_dir).glob("checkpoint-*"):
        match = re.fullmatch(r"checkpoint-(\d+)", folder.name)
        if match and folder.is_dir():
            found.append((int(match[1]), folder))
    return sorted(found)


def last_complete(output_dir):
    """The newest complete checkpoint, or None, and the half-written ones newer than it."""
    passed_over = []
    for _, folder in reversed(checkpoints(output_dir)):
        if is_complete(folder):
            return folder, passed_over
        passed_over.append(folder)
    return None, passed_over


class RunFolder:
    """The output folder of one run: held by one process at a time, with the settings that it was started with.

    Raises:
        ValueError: the folder holds a run with other settings; names the first that differs.
        OSError: it can't be written, or another run is writing it.
    """

    def __init__(self, path, settings):
        self.path, self.settings = Path(path), settings

    def __enter__(self):
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock = FileLock(self.path / ".lock")
            self.lock.acquire(timeout=0)
        except Timeout:
            raise OSError(
                f"output_dir {self.path} is in use by another run: wait for it, or choose another."
            ) from None
        except OSError as error:
            raise OSError(f"output_dir {self.path} can't be written ({error.strerror}): choose another.") from error
        try:
            self._check_settings()
        except BaseException:
            self.lock.release()
            raise
        return self

    def __exit__(self, *exception):
        self.lock.release()

    def _check_settings(self):
        stored = self.path / "settings.json"
        if not stored.exists():
            partial = stored.with_suffix(".partial")
            partial.write_text(json.dumps(self.settings, indent=2), encoding="utf-8")
            partial.replace(stored)
            return
        before = json.loads(stored.read_text(encoding="utf-8"))
        for name in sorted({*before, *self.settings}):
            if before.get(name) != self.settings.get(name):
                raise ValueError(
                    f"output_dir {self.path} holds a run with {name}={before.get(name)}, not {self.settings.get(name)}: "
                    "choose another output_dir, or repeat that run's command to resume it."
                )
