"""Folders that a command writes as a whole, never over another program's files."""

import contextlib
import shutil
import tempfile
from pathlib import Path

from hub_unets.training.errors import UserError


def refuse_foreign_folder(folder, is_earlier, kind):
    """Raise UserError unless `folder` is absent, empty, or an earlier `kind` according to `is_earlier(folder)`."""
    if folder.exists() and not (folder.is_dir() and (is_earlier(folder) or not any(folder.iterdir()))):
        raise UserError(f"{folder} is not empty and not an earlier {kind}: choose another folder.")


@contextlib.contextmanager
def replaced(folder, is_earlier, kind):
    """An empty folder that replaces `folder` if the block succeeds; arguments as `refuse_foreign_folder`.

    Raises:
        UserError: `folder` holds something else.
    """
    folder = Path(folder)
    refuse_foreign_folder(folder, is_earlier, kind)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        staged = Path(scratch) / "staged"
        staged.mkdir()
        yield staged
        if folder.exists():
            shutil.rmtree(folder)
        staged.rename(folder)
