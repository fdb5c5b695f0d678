"""COCO instances to rows: every annotation of an image, polygon or run lengths, becomes one mask of class indices.

The format is that of Lin et al. 2014 ("Microsoft COCO"), as annotation tools export it: ids may be texts, one polygon
may stand in place of a list of them, and paths may be those of Windows or of another machine.
"""

import io
import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import datasets
import numpy as np
from PIL import Image

from hub_unets.training.data.coco_masks import annotation_pixels, mask_api, whole_number
from hub_unets.training.data.files import first_few, say_left_out, upright_size
from hub_unets.training.data.rows import FEATURES
from hub_unets.training.errors import UserError

LISTS = "images", "annotations", "categories"
BACKGROUNDS = {"background", "bg"}
NAME_KEYS = "file_name", "path", "coco_url", "flickr_url"
LONGEST_TAIL = 8  # last parts of another machine's path that are looked for here


class _Image(NamedTuple):
    key: str
    name: str  # as the file says it, with slashes
    file: Path
    entry: dict


def is_coco(path: Path) -> bool:
    """Whether a .json file holds COCO instances."""
    return _content(path) is not None


def coco_rows(path: Path, images: str | None = None, id2label: dict[int, str] | None = None) -> datasets.Dataset:
    """The images of a COCO file with their masks: columns name, image and annotation (a PNG of class indices).

    Polygons, compressed and uncompressed run lengths are drawn in the file's order, the later over the earlier, crowds
    too (tools mark brushed masks as such); an image without annotations has an empty mask. A category is the label of
    its name, or of its supercategory's, whatever the case; one called background marks nothing. With two labels other
    categories are left out and reported.

    Args:
        path: the .json file.
        images: the folder of the images, from the file's folder, where it can't be found by itself.
        id2label: the model's labels; None is background and polyp, and where no category is called polyp, all are.

    Raises:
        UserError: no pycocotools, no COCO instances, an image that is not there, ids that are of two images, an
            annotation that is no mask, no category of the labels' names.
    """
    content = _content(path)
    if content is None:
        raise UserError(f"{path}: not COCO instances, which have {', '.join(LISTS)}: export it as COCO instances")
    mask_api()
    coco_images = _images(path, content["images"], _image_folders(path, images))
    label_of = _labels(path, content, id2label)
    annotations, empty, rows = _by_image(path, content["annotations"], coco_images, label_of), [], []
    for image, name in zip(coco_images, _names(coco_images), strict=True):
        mask = _mask(path, image, annotations[image.key], label_of, empty)
        picture = {"bytes": None, "path": str(image.file)}
        rows.append({"name": name, "image": picture, "annotation": {"bytes": _png(mask), "path": None}})
    say_left_out(path, empty, "annotations that mark no pixel")
    return datasets.Dataset.from_list(rows, features=FEATURES)


def _content(path: Path) -> dict | None:
    """What a COCO file holds, whatever its encoding of Unicode; None for any other file."""
    try:
        content = json.loads(path.read_bytes()) if path.is_file() else None
    except (ValueError, RecursionError):
        return None
    has_lists = isinstance(content, dict) and all(isinstance(content.get(name), list) for name in LISTS)
    return content if has_lists else None


def _key(value: object) -> str | None:
    """An id as text: 1, 1.0 and "1" are the same one. None where there is none."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if isinstance(value, int | float | str) and value != "" else None


def _objects(path: Path, entries: list, kind: str) -> Iterable[tuple[int, dict]]:
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise UserError(f"{path}: {kind}[{number}] is {repr(entry)[:60]}, not an object: export it again")
        yield number, entry


def _image_folders(path: Path, given: str | None) -> list[Path]:
    """Where the file's images may lie: instances_X.json of CVAT and COCO names a folder X."""
    if given:
        return [path.parent / given]
    root = path.parent.parent if path.parent.name == "annotations" else path.parent
    subset = path.stem.removeprefix("instances_")
    return [root, root / "images", root / "images" / subset, root / subset]


def _images(path: Path, entries: list, folders: list[Path]) -> list[_Image]:
    """Each image once. Raises UserError where an id is of two images, or two entries are of one file."""
    by_key, by_file = {}, {}
    for number, entry in _objects(path, entries, "images"):
        key, name = _key(entry.get("id")), _file_name(path, number, entry)
        if key is None:
            raise UserError(f"{path}: image {name!r} has no id: export it again")
        if key in by_key and by_key[key].name == name:
            continue
        if key in by_key:
            raise UserError(
                f"{path}: {by_key[key].name!r} and {name!r} both have the id {key}, as in files that were merged: "
                "give the images, and their annotations, ids of their own"
            )
        image = _Image(key, name, _image_file(path, name, entry, folders), entry)
        other = by_file.setdefault(image.file, image)
        if other is not image:
            raise UserError(
                f"{path}: images {other.key} ({other.name!r}) and {key} ({name!r}) are both {image.file}: keep one, "
                "or name the images' folder as image_column"
            )
        by_key[key] = image
    return list(by_key.values())


def _file_name(path: Path, number: int, entry: dict) -> str:
    candidates = (entry.get(key) for key in NAME_KEYS)
    name = next((text for text in candidates if isinstance(text, str) and text.strip()), None)
    if name is None:
        raise UserError(f"{path}: images[{number}] (id {entry.get('id')}) has no file_name: export it again")
    return name.replace("\\", "/")


def _image_file(path: Path, name: str, entry: dict, folders: list[Path]) -> Path:
    """The image here. A path from elsewhere is looked for by its last folders, then by its last name."""
    decoded = unquote(urlsplit(name).path) if "://" in name else name
    decoded = decoded.partition("?d=")[2] or decoded  # Label Studio's local files
    parts = [part for part in PurePosixPath(decoded).parts if part not in ("/", "..")][-LONGEST_TAIL:]
    tails = ["/".join(parts[start:]) for start in range(len(parts))]
    names = [unquote(parts[-1]), re.sub(r"^[0-9a-f]{8}-", "", parts[-1])] if parts else []  # Label Studio's uploads
    files = [folder / tail for tail in (decoded, *tails, *names) for folder in folders]
    url = entry.get("coco_url")
    if isinstance(url, str) and url.startswith("file://"):
        files.append(Path(unquote(url.removeprefix("file://"))))
    match = next((file.absolute() for file in files if _is_file(file)), None)
    if match is None:
        folder_names = first_few(map(str, dict.fromkeys(file.parent for file in files)), 5)
        raise UserError(f"{path}: no {name} in {folder_names}: name the images' folder as image_column")
    return match


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long, or of characters that no file has
        return False


def _names(images: list[_Image]) -> list[str]:
    """The stems, or where two are alike the whole file names without their suffixes."""
    stems = [image.file.stem for image in images]
    if len(set(stems)) == len(stems):
        return stems
    return [PurePosixPath(image.name).with_suffix("").as_posix() for image in images]


def _by_image(path: Path, entries: list, images: list[_Image], label_of: dict[str, int]) -> dict[str, list]:
    """The annotations of each image that have a label, with what they are called in an error."""
    annotations = {image.key: [] for image in images}
    for number, entry in _objects(path, entries, "annotations"):
        source = _source(path, number, entry)
        key = _key(entry.get("image_id"))
        if key not in annotations:
            raise UserError(f"{source} is of image {entry.get('image_id')}, which is not listed: list or remove it")
        if label_of[_key(entry.get("category_id"))]:
            annotations[key].append((source, entry))
    return annotations


def _labels(path: Path, content: dict, id2label: dict[int, str] | None) -> dict[str, int]:
    """The label of each category that occurs: 0 marks nothing."""
    names = _category_names(path, content["categories"])
    used = Counter()
    for number, entry in _objects(path, content["annotations"], "annotations"):
        key = _key(entry.get("category_id"))
        if key not in names:
            source, category = _source(path, number, entry), entry.get("category_id")
            raise UserError(f"{source} is of category {category}, which is not listed: list or remove it")
        used[key] += 1
    label_names = {0: "background", 1: "polyp"} if id2label is None else id2label
    label_of = {key: _label(names[key], label_names) for key in names}
    unknown = {names[key][0]: count for key, count in used.items() if label_of[key] is None}
    if not unknown:
        return label_of
    if 1 in label_of.values() and len(label_names) == 2:
        counts = [f"{name} ({count})" for name, count in unknown.items()]
        say_left_out(path, counts, f"categories that are not called {label_names[1]}, with so many annotations")
        return {key: label or 0 for key, label in label_of.items()}
    if id2label is None:
        return {key: 1 if label is None else label for key, label in label_of.items()}
    raise UserError(
        f"{path}: no label is called {first_few(sorted(unknown))}; the model's are {', '.join(id2label.values())}: "
        "name the categories in model.id2label, or rename them in the file"
    )


def _category_names(path: Path, entries: list) -> dict[str, tuple[str, str]]:
    """The name and the supercategory of each category, by its id."""
    names = {}
    for number, entry in _objects(path, entries, "categories"):
        key = _key(entry.get("id"))
        name = entry.get("name")
        if key is None or not isinstance(name, str | int | float):
            raise UserError(f"{path}: categories[{number}] needs an id and a name, got {repr(entry)[:80]}")
        both = str(name), str(entry.get("supercategory") or "")
        if names.setdefault(key, both)[0] != both[0]:
            raise UserError(
                f"{path}: categories {names[key][0]!r} and {name!r} both have the id {key}, as in files that were "
                "merged: give them, and their annotations, ids of their own"
            )
    return names


def _label(names: tuple[str, str], label_names: dict[int, str]) -> int | None:
    """The label that a category's name, or else its supercategory, is called; None for none."""
    labels = {_plain(name): int(label) for label, name in label_names.items()}
    labels |= {name.lower(): int(label) for label, name in label_names.items()}
    for name in names:
        for spelling in (name.lower(), _plain(name)):
            if spelling in labels:
                return labels[spelling]
            if spelling in BACKGROUNDS:
                return 0
    return None


def _plain(name: str) -> str:
    """Small letters and digits, in the singular: "Polyps " is called polyp."""
    letters = "".join(letter for letter in name.lower() if letter.isalnum())
    return letters.removesuffix("s") or name.lower()


def _mask(path: Path, image: _Image, annotations: list, label_of: dict[str, int], empty: list[str]) -> np.ndarray:
    """Class indices, uint8 H x W; names in `empty` the annotations that mark no pixel."""
    height, width = _size(path, image)
    mask = np.zeros((height, width), np.uint8)
    for source, annotation in annotations:
        pixels = annotation_pixels(source, annotation.get("segmentation"), height, width)
        mask[pixels] = label_of[_key(annotation["category_id"])]
        if not pixels.any():
            empty.append(f"{annotation.get('id')} of {image.name}")
    return mask


def _size(path: Path, image: _Image) -> tuple[int, int]:
    """Height and width as the file says, or where one is missing, of the upright image."""
    given = [image.entry.get(side) for side in ("height", "width")]
    sides = [whole_number(side) for side in given]
    if any(side in (None, 0, "") for side in given):
        try:
            with Image.open(image.file) as picture:
                sides = upright_size(picture)[::-1]
        except Exception as error:  # Pillow's decoders raise more than OSError
            raise UserError(f"{image.file}: {path.name} gives no size, and it is not a readable image") from error
    if None in sides or min(sides) < 1 or sides[0] * sides[1] > Image.MAX_IMAGE_PIXELS:
        raise UserError(
            f"{path}: {image.name} has the height {given[0]!r} and the width {given[1]!r}, which no image has: export "
            "it again, or leave both out"
        )
    return sides[0], sides[1]


def _source(path: Path, number: int, annotation: dict) -> str:
    key = _key(annotation.get("id"))
    return f"{path}: annotation {key}" if key else f"{path}: annotations[{number}]"


def _png(mask: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(mask).save(file, format="PNG")
    return file.getvalue()
