"""Checkpoints that survive a kill: incomplete ones are passed over, and the last complete one is never lost."""

import contextlib
import errno
import hashlib
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

MARKER, SETTINGS = "complete.json", "settings.json"
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


class CheckpointKeeper(TrainerCallback):
    """Saves after each validation, and at the end of an epoch not before it."""

    def on_evaluate(self, args, state, control, **kwargs):
        control.should_save = True  # the best epoch is always one that has a checkpoint

    def on_step_end(self, args, state, control, **kwargs):
        ends_epoch = state.epoch == int(state.epoch) or state.global_step >= state.max_steps
        if ends_epoch and args.eval_strategy == IntervalStrategy.EPOCH:
            control.should_save = False  # saved after the epoch's validation; a resume from here would skip that


def remove_older(output_dir, kept_steps):
    """Remove the checkpoints before the newest of the steps `kept_steps` that are not among them."""
    kept_steps = kept_steps - {None}
    for step, folder in checkpoints(output_dir):
        if step < max(kept_steps) and step not in kept_steps:
            shutil.rmtree(folder)


def mark_complete(folder):
    """Write the size and sha256 of all the checkpoint's files beside them, atomically and after them."""
    written = sorted(path for path in Path(folder).iterdir() if path.name not in (MARKER, f".{MARKER}"))
    _write_json(
        Path(folder) / MARKER,
        {path.name: {"size": path.stat().st_size, "sha256": _sha256(path)} for path in written},
    )


def is_complete(folder):
    """Whether every file is there as it was when the checkpoint was marked."""
    try:
        files = json.loads((Path(folder) / MARKER).read_text(encoding="utf-8"))
        return all(_is_as_marked(Path(folder) / name, record) for name, record in files.items())
    except (OSError, ValueError, AttributeError, TypeError, KeyError):
        return False


def _is_as_marked(path, record):
    """Whether a file has its size and sha256; earlier markers hold the size alone."""
    if isinstance(record, int):
        return path.stat().st_size == record
    return path.stat().st_size == record["size"] and _sha256(path) == record["sha256"]


def _sha256(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_best(output_dir, step):
    """Raise UserError unless the checkpoint of the best validation is whole: the run ends with its weights."""
    folder = Path(output_dir) / f"checkpoint-{step}"
    if not is_complete(folder):
        raise UserError(
            f"{folder}, the checkpoint of the best validation so far, is damaged or gone: bring it back, or remove "
            f"{output_dir} to train again."
        )


def checkpoints(output_dir):
    """(step, folder) of every checkpoint, complete or not, oldest first."""
    numbered = []
    for folder in Path(output_dir).glob("checkpoint-*"):
        match = re.fullmatch(r"checkpoint-(\d+)", folder.name)
        if match and folder.is_dir():
            numbered.append((int(match[1]), folder))
    return sorted(numbered)


def last_complete(output_dir):
    """The newest complete checkpoint, or None, and the half-written or damaged ones newer than it."""
    passed_over = []
    for _, folder in reversed(checkpoints(output_dir)):
        if is_complete(folder):
            return folder, passed_over
        passed_over.append(folder)
    return None, passed_over


def remove_passed_over(folders):
    """Remove what was passed over, so that nothing of it is taken for a part of the checkpoint written next."""
    for folder in folders:
        shutil.rmtree(folder)


@contextlib.contextmanager
def naming_write_errors(path):
    """Turns what torch, safetensors and the file system raise for a full disk into an OSError that names `path`.

    Other errors, as of memory, of the network or of an image, pass as they are.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = _full_disk_reason(error)
        if reason is None:
            raise
        last, _ = last_complete(Path(path).parent)
        hint = f"the last complete checkpoint, {last}, is kept" if last else "there is no complete checkpoint yet"
        raise OSError(
            f"{path} can't be written ({reason}); {hint}: make room and repeat the command to resume."
        ) from error


def _full_disk_reason(error):
    """Why nothing more can be written; None of any other error."""
    text = str(error).partition("\n")[0]
    if isinstance(error, OSError):
        return error.strerror if error.errno in FULL else None
    writer = "while serializing" if isinstance(error, SafetensorError) else "inline_container.cc"  # torch.save's
    return text if writer in text and "Reader" not in text else None


def _write_json(path, content):
    """Write a JSON file whole or not at all, power cuts included."""
    partial = path.with_name(f".{path.name}")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


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
        except Timeout:
            raise OSError(
                f"{self.called} {self.path} is in use by another run: wait for it, or choose another."
            ) from None
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            self._check_settings()
        except BaseException:
            self.lock.release()
            raise
        return self

    def __exit__(self, *exception):
        self.lock.release()

    def _unwritable(self, error):
        return OSError(f"{self.called} {self.path} can't be written ({error.strerror}): choose another.")

    def _check_settings(self):
        try:
            stored = self._stored_settings()
            if stored is None:
                _write_json(self.path / SETTINGS, self.settings)
                return
        except OSError as error:
            raise self._unwritable(error) from error
        for name in sorted({*stored, *self.settings}):
            old, new = stored.get(name), self.settings.get(name)
            if old != new:
                raise UserError(
                    f"{self.called} {self.path} holds a run with {name}={old}, not {new}: "
                    f"choose another {self.called}, or repeat that run's command to resume it."
                )

    def _stored_settings(self):
        """The settings that the folder's run was started with; None in a new folder."""
        path = self.path / SETTINGS
        if not path.exists():
            return None
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:  # of JSON or UTF-8
            stored = None
        if not isinstance(stored, dict):
            raise UserError(
                f"{path} is damaged: it holds the settings that this run was started with. Remove it to go on with "
                f"those of this command, or choose another {self.called}."
            )
        return stored
