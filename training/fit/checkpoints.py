"""Checkpoints that a killed run can trust: complete or passed over, and never the last one lost."""

import contextlib
import json
import os
import re
import shutil
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy

from hub_unets.training.errors import UserError

MARKER = "complete.json"


class CheckpointKeeper(TrainerCallback):
    """Saves after each validation, and at the end of an epoch not before it."""

    def on_evaluate(self, args, state, control, **kwargs):
        control.should_save = True  # the best epoch is always one that has a checkpoint

    def on_step_end(self, args, state, control, **kwargs):
        ends_epoch = state.epoch == int(state.epoch) or state.global_step >= state.max_steps
        if ends_epoch and args.eval_strategy == IntervalStrategy.EPOCH:
            control.should_save = False  # saved after the epoch's validation; a resume from here would skip that


def remove_older(output_dir, kept):
    """Remove the checkpoints before the newest of the steps `kept` that are not among them."""
    kept = kept - {None}
    for step, folder in checkpoints(output_dir):
        if step < max(kept) and step not in kept:
            shutil.rmtree(folder)


def mark_complete(folder):
    """Write the sizes of all the checkpoint's files beside them, atomically and after them."""
    partial = Path(folder) / f".{MARKER}"
    written = sorted(path for path in Path(folder).iterdir() if path.name not in (MARKER, partial.name))
    sizes = {path.name: path.stat().st_size for path in written}
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


def remove_passed_over(folders):
    """Remove half-written checkpoints, so that nothing of them is taken for a part of the one written next."""
    for folder in folders:
        shutil.rmtree(folder)


@contextlib.contextmanager
def naming_write_errors(path):
    """Turns what torch, safetensors and the file system raise for a full disk into an OSError that names `path`."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        last, _ = last_complete(Path(path).parent)
        kept = f"the last complete checkpoint, {last}, is kept" if last else "there is no complete checkpoint yet"
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise OSError(
            f"{path} can't be written ({reason}); {kept}: make room and repeat the command to resume."
        ) from error


class RunFolder:
    """The output folder of one run: held by one process at a time, with the settings that it was started with.

    Args:
        path: the folder.
        settings: names to what must stay as it is.
        called: what the command calls the folder.

    Raises:
        UserError: the folder holds a run with other settings; names the first that differs.
        OSError: it can't be written, or another run is writing it.
    """

    def __init__(self, path, settings, called="output_dir"):
        self.path, self.settings, self.called = Path(path), settings, called

    def __enter__(self):
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock = FileLock(self.path / ".lock")
            self.lock.acquire(timeout=0)
            self._check_settings()
        except Timeout:
            raise OSError(
                f"{self.called} {self.path} is in use by another run: wait for it, or choose another."
            ) from None
        except OSError as error:
            raise OSError(f"{self.called} {self.path} can't be written ({error.strerror}): choose another.") from error
        except ValueError:
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
            old, new = before.get(name), self.settings.get(name)
            if old != new:
                raise UserError(
                    f"{self.called} {self.path} holds a run with {name}={old}, not {new}: "
                    f"choose another {self.called}, or repeat that run's command to resume it."
                )
