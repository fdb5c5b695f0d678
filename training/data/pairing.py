"""Folders of images and of masks to pairs of files with the same names; files that are not used are reported."""

import os
from pathlib import Path

import datasets

from hub_unets.training.data.files import (
    IMAGE_SUFFIXES,
    files_by_kind,
    first_few,
    image_files,
    is_debris,
    say_left_out,
)
from hub_unets.training.data.rows import FEATURES, PARTS
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
            any(sub.name.lower() in known and _holds_images(sub) for sub in siblings)
            for known in (IMAGE_FOLDERS, MASK_FOLDERS)
        )
        for siblings in map(subfolders, (folder, *subfolders(folder)))
    )


def paired_parts(folder: Path, images: str | None, masks: str | None) -> dict[str, datasets.Dataset]:
    """The pairs of a folder, or of its folders of parts, by part; `images` and `masks` name the sub-folders.

    Raises UserError where a file has no partner, two have the same name, or the kinds of folders are not clear.
    """
    if folders := _images_and_masks(folder, images, masks):
        _say_unused(folder, folders)
        return {"train": _pairs(*folders)}
    parts, taken = {}, []
    for sub in subfolders(folder):
        part = PARTS.get(sub.name.lower())
        pair = part and _images_and_masks(sub, images, masks)
        if pair and part in parts:
            raise UserError(f"{folder}: two folders for the part {part}: merge {sub.name} into the other one")
        if pair:
            parts[part] = pair
            taken.append(sub)
            _say_unused(sub, pair)
    if parts:
        _say_unused(folder, taken)
    return {part: _pairs(*pair) for part, pair in parts.items()}


def _holds_images(folder: Path) -> bool:
    return any(Path(name).suffix.lower() in IMAGE_SUFFIXES for _, _, names in os.walk(folder) for name in names)


def _say_unused(folder: Path, used_folders: list[Path] | tuple[Path, ...]) -> None:
    """Names the images that lie beside the folders that are used."""
    counts = {sub.name: len(image_files(sub)[0]) for sub in subfolders(folder) if sub not in used_folders}
    left_out = [f"{name} ({count} images)" for name, count in counts.items() if count]
    left_out += [
        file.name
        for file in folder.iterdir()
        if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file() and not is_debris(file.name)
    ]
    say_left_out(folder, left_out, f"beside {', '.join(sub.name for sub in used_folders)}")


def _images_and_masks(folder: Path, images: str | None, masks: str | None) -> tuple[Path, Path] | None:
    folders = _subfolder(folder, images, IMAGE_FOLDERS, "image"), _subfolder(folder, masks, MASK_FOLDERS, "mask")
    if None not in folders:
        return folders
    if folders == (None, None):
        return None
    kind, known = ("image", IMAGE_FOLDERS) if folders[0] is None else ("mask", MASK_FOLDERS)
    other = (folders[0] or folders[1]).name
    raise UserError(f"{folder}: no {kind}s beside {other}/: call them {'|'.join(known)}, or name {kind}_column")


def _subfolder(folder: Path, name: str | None, known: tuple[str, ...], kind: str) -> Path | None:
    if name:
        return folder / name if (folder / name).is_dir() else None
    matches = [sub for sub in subfolders(folder) if sub.name.lower() in known]
    if len(matches) > 1:
        names = first_few(sub.name for sub in matches)
        raise UserError(f"{folder}: two folders may hold the {kind}s ({names}): name one as {kind}_column")
    return matches[0] if matches else None


def _pairs(images_folder: Path, masks_folder: Path) -> datasets.Dataset:
    masks = _by_name(masks_folder)
    images = _by_name(images_folder, masks)
    for files, partners, folder in (images, masks, masks_folder), (masks, images, images_folder):
        if alone := [f"{Path(name).parent / file.name}" for name, file in files.items() if name not in partners]:
            cure = "add what is missing or take these away"
            raise UserError(f"{folder}: no file has the stem of {first_few(alone)} ({len(alone)} in all): {cure}")
    names = sorted(images)
    columns = {"name": names}
    for column, files in ("image", images), ("annotation", masks):
        columns[column] = [{"bytes": None, "path": str(files[name])} for name in names]
    return datasets.Dataset.from_dict(columns, features=FEATURES)


def _by_name(folder: Path, masks: dict[str, Path] | None = None) -> dict[str, Path]:
    """The image files below a folder by their paths from there, without suffixes.

    Of images, whose `masks` are given, a NumPy or DICOM file beside pictures is one only where it has a mask, and no
    picture has its name.
    """
    pictures, values, others = files_by_kind(folder)
    if pictures and masks is not None:
        wanted = masks.keys() - {_name(file, folder) for file in pictures}
        beside = [file.relative_to(folder).as_posix() for file in values if _name(file, folder) not in wanted]
        say_left_out(folder, beside, "NumPy or DICOM files beside pictures")
        values = [file for file in values if _name(file, folder) in wanted]
    say_left_out(folder, [path.relative_to(folder).as_posix() for path in others], "that are no image files")
    files = {}
    for file in sorted(pictures + values):
        name = _name(file, folder)
        if name in files:
            raise UserError(f"{folder}: {files[name].name} and {file.name} have the same stem: keep one")
        files[name] = file.absolute()
    if not files:
        raise UserError(f"{folder}: holds no image files ({', '.join(sorted(IMAGE_SUFFIXES))}): give another folder")
    return files


def _name(file: Path, folder: Path) -> str:
    return file.relative_to(folder).with_suffix("").as_posix()
