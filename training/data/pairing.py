"""Folders of images and of masks to pairs of files: who belongs together is told by the names.

What lies beside them and is not used is counted and named.
"""

import os
from pathlib import Path

import datasets

from hub_unets.training.data.rows import (
    FEATURES,
    IMAGE_SUFFIXES,
    PARTS,
    first_few,
    image_files,
    is_debris,
    say_left_out,
)
from hub_unets.training.errors import UserError

IMAGE_FOLDERS = "images", "image", "imgs"

MASK_FOLDERS = "masks", "mask", "labels", "annotations"


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted, hidden ones apart."""
    return sorted(sub for sub in folder.iterdir() if sub.is_dir() and not is_debris(sub.name))


def holds_pairs(folder: Path) -> bool:
    """Whether image files lie in a folder of images and in one of masks beside it, here or one folder down."""
    return any(
        all(
            any(sub.name.lower() in known and _holds_images(sub) for sub in beside)
            for known in (IMAGE_FOLDERS, MASK_FOLDERS)
        )
        for beside in map(subfolders, (folder, *subfolders(folder)))
    )


def paired_parts(folder: Path, images: str | None, masks: str | None) -> dict[str, datasets.Dataset]:
    """The pairs of a folder, or of its folders of parts, by part; `images` and `masks` name the sub-folders.

    Raises UserError where a file has no partner, two have one name, or which folder holds what can't be told.
    """
    if whole := _images_and_masks(folder, images, masks):
        _say_unused(folder, whole)
        return {"train": _pairs(*whole)}
    found, used = {}, []
    for sub in subfolders(folder):
        part = PARTS.get(sub.name.lower())
        two = part and _images_and_masks(sub, images, masks)
        if two and part in found:
            raise UserError(f"{folder}: two folders for the part {part}: merge {sub.name} into the other one")
        if two:
            found[part] = two
            used.append(sub)
            _say_unused(sub, two)
    if found:
        _say_unused(folder, used)
    return {part: _pairs(*two) for part, two in found.items()}


def _holds_images(folder: Path) -> bool:
    return any(Path(name).suffix.lower() in IMAGE_SUFFIXES for _, _, names in os.walk(folder) for name in names)


def _say_unused(folder: Path, used: list[Path] | tuple[Path, ...]) -> None:
    """Names the images that lie beside the folders that are used."""
    counts = {sub.name: len(image_files(sub)[0]) for sub in subfolders(folder) if sub not in used}
    said = [f"{name} ({count} images)" for name, count in counts.items() if count]
    said += [
        file.name
        for file in folder.iterdir()
        if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file() and not is_debris(file.name)
    ]
    say_left_out(folder, said, f"beside {', '.join(sub.name for sub in used)}")


def _images_and_masks(folder: Path, images: str | None, masks: str | None) -> tuple[Path, Path] | None:
    two = _subfolder(folder, images, IMAGE_FOLDERS, "image"), _subfolder(folder, masks, MASK_FOLDERS, "mask")
    if None not in two:
        return two
    if two == (None, None):
        return None
    kind, known = ("image", IMAGE_FOLDERS) if two[0] is None else ("mask", MASK_FOLDERS)
    beside = (two[0] or two[1]).name
    raise UserError(f"{folder}: no {kind}s beside {beside}/: call them {'|'.join(known)}, or name {kind}_column")


def _subfolder(folder: Path, given: str | None, known: tuple[str, ...], kind: str) -> Path | None:
    if given:
        return folder / given if (folder / given).is_dir() else None
    found = [sub for sub in subfolders(folder) if sub.name.lower() in known]
    if len(found) > 1:
        names = first_few(sub.name for sub in found)
        raise UserError(f"{folder}: two folders may hold the {kind}s ({names}): name one as {kind}_column")
    return found[0] if found else None


def _pairs(images_folder: Path, masks_folder: Path) -> datasets.Dataset:
    images, masks = _by_name(images_folder), _by_name(masks_folder)
    for files, others, folder in (images, masks, masks_folder), (masks, images, images_folder):
        if alone := [f"{Path(name).parent / file.name}" for name, file in files.items() if name not in others]:
            cure = "add what is missing or take these away"
            raise UserError(f"{folder}: no file has the stem of {first_few(alone)} ({len(alone)} in all): {cure}")
    names = sorted(images)
    columns = {"name": names}
    for column, files in ("image", images), ("annotation", masks):
        columns[column] = [{"bytes": None, "path": str(files[name])} for name in names]
    return datasets.Dataset.from_dict(columns, features=FEATURES)


def _by_name(folder: Path) -> dict[str, Path]:
    """The image files below a folder by their paths from there, without suffixes."""
    found, others = image_files(folder)
    say_left_out(folder, [path.relative_to(folder).as_posix() for path in others], "that are no image files")
    files = {}
    for file in found:
        name = file.relative_to(folder).with_suffix("").as_posix()
        if name in files:
            raise UserError(f"{folder}: {files[name].name} and {file.name} have the same stem: keep one")
        files[name] = file.absolute()
    if not files:
        raise UserError(f"{folder}: holds no image files ({', '.join(sorted(IMAGE_SUFFIXES))}): give another folder")
    return files
