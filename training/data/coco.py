"""COCO instances to rows: every annotation of an image, polygon or run lengths, becomes one mask of class indices.

The format is that of Lin et al. 2014 ("Microsoft COCO"), as annotation tools export it.
"""

import io
import json
from pathlib import Path
from urllib.parse import unquote, urlsplit

import datasets
import numpy as np
from PIL import Image

from hub_unets.training.data.rows import FEATURES, first_few
from hub_unets.training.errors import UserError

LISTS = "images", "annotations", "categories"


def mask_api():
    """pycocotools.mask. Raises UserError, naming the extra, where it is not installed."""
    try:
        from pycocotools import mask
    except ImportError as error:
        raise UserError("COCO files need pycocotools: pip install 'hub-unets[coco]'") from error
    return mask


def is_coco(path: Path) -> bool:
    """Whether a .json file holds COCO instances."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(content, dict) and all(isinstance(content.get(name), list) for name in LISTS)


def coco_rows(path: Path, images: str | None = None, id2label: dict[int, str] | None = None) -> datasets.Dataset:
    """The images of a COCO file with their masks: columns name, image and annotation (a PNG of class indices).

    Polygons, compressed and uncompressed run lengths are drawn in the file's order, the later over the earlier, crowds
    too (tools mark brushed masks as such); an image without annotations has an empty mask. With two labels every
    category is label 1; with more, a category is the label of its name.

    Args:
        path: the .json file.
        images: the folder of the images, from the file's folder, where it can't be found by itself.
        id2label: the model's labels; None is two.

    Raises:
        UserError: no pycocotools, no COCO instances, an image that is not there, an annotation that is no mask.
    """
    if not is_coco(path):
        raise UserError(f"{path}: not COCO instances, which have {', '.join(LISTS)}: export it as COCO instances")
    mask_api()
    content = json.loads(path.read_text(encoding="utf-8"))
    folders = _image_folders(path, images)
    label_of = _labels(path, content, id2label)
    annotations = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        if annotation["image_id"] not in annotations:
            raise UserError(f"{_where(path, annotation)} is of image {annotation['image_id']}, which is not listed")
        annotations[annotation["image_id"]].append(annotation)
    rows = [
        {
            "name": name,
            "image": {"bytes": None, "path": str(_image_file(path, image, folders))},
            "annotation": {"bytes": _png(_mask(path, image, annotations[image["id"]], label_of)), "path": None},
        }
        for image, name in zip(content["images"], _names(content["images"]), strict=True)
    ]
    return datasets.Dataset.from_list(rows, features=FEATURES)


def _image_folders(path: Path, given: str | None) -> list[Path]:
    """Where the file's images may lie: instances_X.json of CVAT and COCO names a folder X."""
    if given:
        return [path.parent / given]
    root = path.parent.parent if path.parent.name == "annotations" else path.parent
    subset = path.stem.removeprefix("instances_")
    return [root, root / "images", root / "images" / subset, root / subset]


def _image_file(path: Path, image: dict, folders: list[Path]) -> Path:
    url = urlsplit(image.get("coco_url") or "")
    files = [folder / image["file_name"] for folder in folders]
    files += [Path(unquote(url.path))] if url.scheme == "file" else []
    found = next((file.absolute() for file in files if file.is_file()), None)
    if found is None:
        places = first_few(map(str, dict.fromkeys(file.parent for file in files)), 5)
        raise UserError(f"{path}: no {image['file_name']} in {places}: name the images' folder as image_column")
    return found


def _names(images: list[dict]) -> list[str]:
    """The stems, or where two are alike the whole file names without their suffixes."""
    files = [Path(image["file_name"]) for image in images]
    stems = [file.stem for file in files]
    return stems if len(set(stems)) == len(stems) else [file.with_suffix("").as_posix() for file in files]


def _labels(path: Path, content: dict, id2label: dict[int, str] | None) -> dict[int, int]:
    """The label of each category that occurs."""
    names = {category["id"]: category["name"] for category in content["categories"]}
    used = {annotation["category_id"] for annotation in content["annotations"]}
    if unlisted := used - names.keys():
        raise UserError(f"{path}: annotations are of category {min(unlisted)}, which is not listed")
    if id2label is None or len(id2label) == 2:
        return dict.fromkeys(used, 1)
    labels = {name.lower(): int(label) for label, name in id2label.items()}
    if unknown := sorted(names[category] for category in used if names[category].lower() not in labels):
        raise UserError(
            f"{path}: no label is called {first_few(unknown)}; the model's are {', '.join(id2label.values())}: "
            "name the categories in model.id2label"
        )
    return {category: labels[names[category].lower()] for category in used}


def _mask(path: Path, image: dict, annotations: list[dict], label_of: dict[int, int]) -> np.ndarray:
    """Class indices, uint8 H x W."""
    height, width = (image.get(side) for side in ("height", "width"))
    if not height or not width:
        raise UserError(f"{path}: {image['file_name']} has no height and width: export it again")
    mask = np.zeros((height, width), np.uint8)
    for annotation in annotations:
        inside = _decoded(_where(path, annotation), annotation.get("segmentation"), height, width)
        mask[inside] = label_of[annotation["category_id"]]
    return mask


def _decoded(where: str, segmentation: list | dict | None, height: int, width: int) -> np.ndarray:
    """One annotation's pixels, bool H x W."""
    api = mask_api()
    if not segmentation:
        raise UserError(f"{where} has no segmentation, a box is no mask: annotate with polygons or a brush")
    if isinstance(segmentation, list):
        if any(len(polygon) < 6 or len(polygon) % 2 for polygon in segmentation):
            raise UserError(f"{where} has a polygon of fewer than three points, or of half a point: mend or remove it")
        run_lengths = api.merge(api.frPyObjects(segmentation, height, width))
    else:
        counts = segmentation.get("counts")
        runs = counts if isinstance(counts, list) else _run_lengths(counts or "")
        if segmentation.get("size") != [height, width] or sum(runs) != height * width or min(runs) < 0:
            raise UserError(
                f"{where} has run lengths of {sum(runs)} pixels and size {segmentation.get('size')}, its image is of "
                f"size [{height}, {width}]: export it again"
            )
        run_lengths = api.frPyObjects({"size": [height, width], "counts": runs}, height, width)
    return api.decode(run_lengths).astype(bool)


def _run_lengths(text: str) -> list[int]:
    """Compressed counts as numbers: digits of 5 bits and a sign, from the third on the change since the last but one.

    pycocotools would take a text that is cut off, and leave the rest of the mask to chance.
    """
    runs, value, shift = [], 0, 0
    for digit in (ord(letter) - 48 for letter in text):
        value |= (digit & 31) << shift
        shift += 5
        if digit & 32:
            continue
        value -= (digit & 16) << (shift - 4)
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return runs


def _where(path: Path, annotation: dict) -> str:
    return f"{path}: annotation {annotation.get('id')}"


def _png(mask: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(mask).save(file, format="PNG")
    return file.getvalue()
