"""The items of each INPUT: files, folders, globs, videos, and all that training/data/sources.py can load.

An item's outputs carry its name: the path below the folder that all inputs share, without its suffix; a row's name;
a video's name and the frame's index.
"""

import glob
import os
from pathlib import Path
from typing import NamedTuple

from hub_unets.hub_repos.inference.items import Item
from hub_unets.hub_repos.inference.video import Video
from hub_unets.training.data.files import PICTURE_SUFFIXES, VALUE_SUFFIXES
from hub_unets.training.data.zips import unzipped
from hub_unets.training.errors import UserError

VIDEO_SUFFIXES = {".mp4", ".avi", ".mov", ".mkv", ".m4v", ".mpg", ".mpeg", ".wmv", ".webm"}


class _Input(NamedTuple):
    """The items of one INPUT, with names relative to `base`; a table has a label and no base."""

    base: Path | None
    label: str
    items: list[Item | Video]
    left_out: tuple[Path, ...] = ()


class Collected(NamedTuple):
    """The place of the inputs in words, all their items, and the files in folders that are no items."""

    location: str
    items: list[Item | Video]
    left_out: list[str]


def collect(inputs: list[str], output: Path, every: int = 1, takes_values: bool = False) -> Collected:
    """All items of the inputs, without those in `output`.

    Args:
        inputs: files, folders, globs and data sets.
        output: where predictions go.
        every: of a video's frames each so many.
        takes_values: whether a folder's NumPy and DICOM files are images too, as a network of values takes them.

    Raises:
        UserError: an input is empty or missing, two files would share a name, or a video needs PyAV.
    """
    suffixes = PICTURE_SUFFIXES | VIDEO_SUFFIXES | (VALUE_SUFFIXES if takes_values else set())
    sources = [_open(text, output.absolute(), every, suffixes) for text in inputs]
    bases = [source.base for source in sources if source.base is not None]
    root = Path(os.path.commonpath(bases)) if bases else None
    by_name = {}
    for source in sources:
        prefix = source.base.relative_to(root) if source.base else Path(source.label if len(sources) > 1 else "")
        for item in source.items:
            item = item._replace(name=(prefix / item.name).as_posix())
            if by_name.setdefault(item.name, item).file != item.file:
                raise UserError(
                    f"{by_name[item.name].file} and {item.file} would both be called {item.name}: rename one, or "
                    "predict them into two folders"
                )
    items = list(by_name.values())
    _check_videos(items)
    tables = sorted(source.label for source in sources if not source.base)
    location = "; ".join([str(root), *tables] if root else tables)
    left_out = {str(file) for source in sources for file in source.left_out}
    return Collected(location, items, sorted(left_out - {item.file for item in items}))


def _check_videos(items: list[Item | Video]) -> None:
    videos = {item.name: item for item in items if isinstance(item, Video)}
    if videos:
        _require_av()
    for item in items:
        if inside := videos.keys() & set(map(str, Path(item.name).parents)):
            raise UserError(f"{item.file} may be called as a frame of {videos[inside.pop()].file}: rename one of them")


def _open(text: str, output: Path, every: int, suffixes: set[str]) -> _Input:
    path = Path(text).expanduser()
    if path.is_dir():
        return _from_folder(path.absolute(), output, every, suffixes)
    if path.is_file() and path.suffix.lower() == ".zip":
        return _from_folder(unzipped(path).absolute(), output, every, suffixes)
    if path.is_file() and path.suffix.lower() == ".json":
        return _Input(path.absolute().parent, text, _from_rows(_sources().load_source(text), path))
    if path.is_file() and path.suffix.lower() != ".parquet":
        return _Input(path.absolute().parent, text, [_from_file(path.absolute(), path.stem, every)])
    if not path.exists() and glob.has_magic(text) and text.partition("?")[0] != "phantoms":
        return _from_glob(path.absolute(), output, every)
    if path.exists() or text.partition("?")[0] == "phantoms" or _sources().HUB_ID.fullmatch(text):
        return _Input(None, text, _from_rows(_sources().load_images(text), path))
    raise UserError(
        f"{text}: no such file or folder, and not a Hub id; give images, videos, a glob, or: {_sources().FORMS}"
    )


def _from_folder(folder: Path, output: Path, every: int, suffixes: set[str]) -> _Input:
    """`suffixes` are those of images and videos."""
    below = _below(folder, output)
    if _sources().holds_masks(folder):
        parts = _sources().load_source(str(folder))
        masks = {rows[index]["annotation"]["path"] for rows in parts.values() for index in range(len(rows))}
        items = _from_rows(parts, folder)
        known = {item.file for item in items} | masks
        unpaired = (file for file in below if file.suffix.lower() in suffixes and str(file) not in known)
        return _Input(folder, str(folder), items, tuple(unpaired))
    files = [file for file in below if file.is_file() and file.suffix.lower() in suffixes]
    if files:
        return _from_files(folder, files, every)._replace(left_out=tuple(set(below) - set(files)))
    if any(folder.rglob("*.parquet")):
        return _Input(None, str(folder), _from_rows(_sources().load_images(str(folder)), folder))
    raise UserError(f"{folder}: holds no image, video or parquet file: give another folder")


def _from_glob(pattern: Path, output: Path, every: int) -> _Input:
    magic = next(number for number, part in enumerate(pattern.parts) if glob.has_magic(part))
    base = Path(*pattern.parts[:magic])
    paths = [path for path in sorted(base.glob(str(Path(*pattern.parts[magic:])))) if not path.is_relative_to(output)]
    paths = [path for path in paths if not any(map(_is_hidden, path.relative_to(base).parts))]
    files = [path for path in paths if path.is_file()]
    if not files:
        raise UserError(f"{pattern}: no file matches: give another pattern, in quotes")
    folders = () if "**" in pattern.parts else tuple(set(paths) - set(files))
    return _from_files(base, files, every)._replace(left_out=folders)


def _below(folder: Path, output: Path) -> list[Path]:
    """All files in a folder at any depth, sorted, without hidden ones and those in `output`.

    Links to folders are followed, once each.
    """
    files, seen = [], set()
    for root, folders, names in os.walk(folder, followlinks=True):
        current = Path(root)
        if current.resolve() in seen or current.is_relative_to(output):
            folders.clear()
            continue
        seen.add(current.resolve())
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        files += [current / name for name in names if not _is_hidden(name)]
    return sorted(files)


def _is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or holds macOS's own notes in a zip."""
    return name.startswith(".") or name == "__MACOSX"


def _from_files(base: Path, files: list[Path], every: int) -> _Input:
    names = [file.relative_to(base).with_suffix("").as_posix() for file in files]
    return _Input(base, str(base), [_from_file(file, name, every) for file, name in zip(files, names, strict=True)])


def _from_file(file: Path, name: str, every: int) -> Item | Video:
    state = file.stat()
    stamp = f"{state.st_size}-{state.st_mtime_ns}"
    if file.suffix.lower() in VIDEO_SUFFIXES:
        return Video(name, str(file), stamp, every)
    return Item(name, str(file), stamp, lambda: {"bytes": None, "path": str(file)})


def _from_rows(parts: dict, path: Path) -> list[Item]:
    """The rows of all parts; if there are several parts, names begin with the part."""
    items = []
    for part, rows in parts.items():
        for index, name in enumerate(rows["name"][:]):
            stored = None if path.suffix.lower() == ".parquet" or not path.exists() else rows[index]["image"]
            if stored and stored["bytes"] is None:
                item = _from_file(Path(stored["path"]), name, 1)
            else:
                item = Item(name, f"{path}: {name}", "", lambda rows=rows, index=index: rows[index]["image"])
            items.append(item if len(parts) == 1 else item._replace(name=f"{part}/{name}"))
    return items


def _sources():
    """training.data.sources, imported where an input may be a data set: its libraries take a second."""
    import datasets

    from hub_unets.training.data import sources

    datasets.disable_progress_bars()
    return sources


def _require_av() -> None:
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise UserError("a video needs PyAV: pip install 'hub-unets[video]'") from error
