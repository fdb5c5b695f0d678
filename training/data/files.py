"""Which files are images, how they are listed, and how omissions are printed; of no library of data sets."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from hub_unets.modeling.images import TRANSPOSED, orientation

PICTURE_SUFFIXES = {  # what Pillow reads
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".jp2", ".j2k", ".jpx", ".png", ".apng", ".bmp", ".dib", ".gif", ".tif",
    ".tiff", ".webp", ".avif", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".tga", ".pcx", ".sgi", ".dds", ".qoi",
}  # fmt: skip
VALUE_SUFFIXES = {".npy", ".npz", ".dcm", ".dicom"}  # read where images do not become RGB
IMAGE_SUFFIXES = PICTURE_SUFFIXES | VALUE_SUFFIXES

DEBRIS = {"thumbs.db", "desktop.ini"}  # what systems leave in folders, besides hidden files


def first_few(names: Iterable[str], limit: int = 3) -> str:
    """The first `limit` names and how many more there are, for an error or a report."""
    names = list(names)
    suffix = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + suffix


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an image set upright, without decoding it."""
    return image.size[::-1] if orientation(image) >= TRANSPOSED else image.size


def image_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """The image files below a folder, sorted, and the other files there, without hidden and system files.

    NumPy and DICOM files are images only where no picture lies: beside pictures they hold something else of them, such
    as features. Others are as of `files_by_kind`.
    """
    pictures, values, others = files_by_kind(folder)
    return (pictures, sorted(values + others)) if pictures else (values, others)


def files_by_kind(folder: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """The pictures below a folder, the NumPy and DICOM files, and the others, all sorted, without hidden ones.

    Special files (a FIFO, a device) and links to folders are never opened; they are among the others, and so is a file
    whose name is not UTF-8, which no table can hold.
    """
    pictures, values, others = [], [], []
    for directory, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not is_debris(name))
        others += [path for path in (Path(directory, name) for name in folders) if path.is_symlink()]
        for path in (Path(directory, name) for name in names if not is_debris(name)):
            is_image = path.suffix.lower() in IMAGE_SUFFIXES and is_text(str(path)) and path.is_file()
            kind = values if path.suffix.lower() in VALUE_SUFFIXES else pictures
            (kind if is_image else others).append(path)
    return sorted(pictures), sorted(values), sorted(others)


def is_text(name: str) -> bool:
    """Whether a name can be written as UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_debris(name: str) -> bool:
    """Whether a file or folder is hidden or made by the system, and so not counted as left out."""
    return name.startswith((".", "__")) or name.lower() in DEBRIS


def say_left_out(source: object, names: Iterable[str], reason: str) -> None:
    """One line on stderr, of the first process alone, that counts and names what is not used; none without names."""
    names = sorted(names)
    if names and int(os.environ.get("LOCAL_RANK", 0)) == 0:
        print(f"{source}: left out {len(names)} {reason}: {first_few(names)}", file=sys.stderr, flush=True)
