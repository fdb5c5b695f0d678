"""Folders that a command writes as a whole, and never over what is not its own."""

import contextlib
import shutil
import tempfile
from pathlib import Path

from hub_unets.training.errors import UserError


def refuse_foreign_folder(folder, is_earlier, what):
    """Raise UserError unless `folder` is absent, empty, or an earlier `what`, which `is_earlier(folder)` tells."""
    if folder.exists() and not (folder.is_dir() and (is_earlier(folder) or not any(folder.iterdir()))):
        raise UserError(f"{folder} is not empty and not an earlier {what}: choose another folder.")


@contextlib.contextmanager
def replaced(folder, is_earlier, what):
    """An empty folder that takes the place of `folder` once all went well; arguments as `refuse_foreign_folder`.

    Raises:
        UserError: `folder` holds something else.
    """
    folder = Path(folder)
    refuse_foreign_folder(folder, is_earlier, what)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        staged = Path(scratch) / "staged"
        staged.mkdir()
        yield staged
        if folder.exists():
            shutil.rmtree(folder)
        staged.rename(folder)
