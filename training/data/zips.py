"""A zip's files as a folder: unpacked once, and refused where it leads outside or unpacks to too many bytes."""

import errno
import re
import shutil
import stat
import tempfile
import zipfile
from hashlib import file_digest
from pathlib import Path, PureWindowsPath

from hub_unets.training.errors import UserError

MAX_UNZIPPED_BYTES = 20 * 2**30

MAX_UNZIPPED_RATIO = 100

CACHE_ERRORS = errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EMFILE  # not of the zip


def unzipped(path: Path) -> Path:
    """The folder of a zip's files: unpacked once, beside the cache of datasets, under the zip's sha256.

    Raises UserError, naming the zip, where it is damaged, encrypted or unsafe; OSError where the cache can't be
    written.
    """
    import datasets

    cache = Path(datasets.config.HF_DATASETS_CACHE) / "hub_unets"
    with path.open("rb") as file:
        target = cache / file_digest(file, "sha256").hexdigest()
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=cache))
    try:
        _unpack(path, unfinished)
        unfinished.rename(target)
    except OSError:
        if not target.is_dir():  # another process may have finished first
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return target


def _unpack(path: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _refuse_unsafe(path, entries)
            for entry in entries:
                entry.filename = entry.filename.replace("\\", "/")  # as some tools of Windows write it
                archive.extract(entry, folder)
    except UserError:
        raise
    except Exception as error:  # zlib, lzma, zipfile, struct and the file system each raise their own
        if isinstance(error, OSError) and error.errno in CACHE_ERRORS:
            raise OSError(f"{path}: can't be unpacked into {folder.parent} ({error.strerror}): make room") from error
        reason = str(error) or type(error).__name__
        raise UserError(f"{path}: not a readable zip ({reason}): download or pack it again") from error


def _refuse_unsafe(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    seen = set()
    for entry in entries:
        name = entry.filename
        outside = name.startswith(("/", "\\")) or PureWindowsPath(name).drive or ".." in re.split(r"[/\\]", name)
        if outside or stat.S_ISLNK(entry.external_attr >> 16):
            raise UserError(f"{path}: {name!r} is a link or leads outside the folder: pack plain files only")
        if name in seen and not entry.is_dir():
            raise UserError(f"{path}: holds {name!r} twice: keep one, and pack it again")
        seen.add(name)
    total = sum(entry.file_size for entry in entries)
    limit = min(MAX_UNZIPPED_BYTES, MAX_UNZIPPED_RATIO * path.stat().st_size)
    if total > limit:
        raise UserError(f"{path}: unpacks to {total:,} bytes, the limit is {limit:,}: unpack it yourself if sound")
