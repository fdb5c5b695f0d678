"""The folder of predictions: masks, overlays and one record an image.

An image is done when its record is written, after its files; each file is moved into place whole. So a killed process
leaves no half-written file, and the next one knows where to continue.
"""

import json
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from hub_unets.hub_repos.inference.records import WORK, Records
from hub_unets.modeling.intensities import picture
from hub_unets.training.data.coco_masks import mask_api
from hub_unets.training.records.drawing import CLASS_COLOURS
from hub_unets.training.records.pictures import outlined

BAND = 256  # rows: a large image's temporary arrays would take gigabytes
POSSIBLE = 0.05  # probability from which a pixel counts in the uncertainty
OVERLAY_QUALITY = 90  # of the JPEG


class Prediction(NamedTuple):
    """Of one image: mask uint8 H x W (class indices), segments int32 H x W with their info, and uncertainty.

    `disagreement` is float32 H x W, 0 to .5, if the image was predicted with flips (`training.measure.flips`).
    """

    mask: np.ndarray
    segmentation: np.ndarray
    segments: list[dict]
    uncertainty: float
    disagreement: np.ndarray | None = None


def uncertainty(logits):
    """The uncertainty, 0 to 1, of logits C x H x W at the image's size.

    It is the mean entropy, divided by its largest value, of the pixels whose probability of any class but the
    background is above POSSIBLE; 0 without such pixels. A mean over the whole image would follow the polyps' size.
    """
    sums, counts = zip(*map(_entropy, logits.split(BAND, dim=1)), strict=True)
    return sum(sums) / max(1, sum(counts))


def _entropy(logits):
    """The sum of the entropies of the pixels that may be foreground, and their number."""
    if logits.shape[0] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits])
    probabilities = logits.softmax(dim=0)
    entropy = torch.special.entr(probabilities).sum(dim=0) / np.log(len(logits))
    possible = probabilities[0] < 1 - POSSIBLE
    return float(entropy[possible].double().sum()), int(possible.sum())


class Predictions:
    """The output folder, as one process writes it.

    Args:
        folder: the output folder.
        id2label: the model's labels; of two, masks are 0 and 255, of more, class indices with a palette.
        process: the number of the process.
    """

    def __init__(self, folder, id2label, process=0):
        self.folder, self.id2label, self.process = Path(folder), id2label, process
        (self.folder / WORK).mkdir(parents=True, exist_ok=True)
        self.records = _whole_lines(self.folder / WORK / f"records-{process}.jsonl")

    def done(self):
        """The stamp of every image that is done, by its name."""
        return {entry.name: entry.stamp for entry in Records(self.folder).entries}

    def write(self, item, stored, image, prediction):
        """Write an image's mask, overlay, map of uncertainty and record; a frame or row also gets a file in frames/.

        Args:
            item: the Item.
            stored: {"bytes", "path"}, its encoded file.
            image: as the model got it.
            prediction: the Prediction.
        """
        self._save(f"masks/{item.name}.png", lambda file: self._coloured(prediction.mask).save(file, format="PNG"))
        overlay = Image.fromarray(outlined(picture(image), prediction.mask))
        options = {"format": "JPEG", "quality": OVERLAY_QUALITY}
        self._save(f"overlays/{item.name}.jpg", lambda file: overlay.save(file, **options))
        if prediction.disagreement is not None:
            grey = Image.fromarray(np.rint(prediction.disagreement * 510).astype(np.uint8))  # 255 is .5
            self._save(f"uncertainty/{item.name}.png", lambda file: grey.save(file, format="PNG"))
        location = self._location(item, stored)
        record = _record(item, location, prediction)
        self.records.write(json.dumps(record) + "\n")
        self.records.flush()

    def _coloured(self, mask):
        if len(self.id2label) == 2:
            return Image.fromarray(mask * np.uint8(255))
        picture = Image.fromarray(mask)
        colours = CLASS_COLOURS[np.arange(len(self.id2label) - 1) % len(CLASS_COLOURS)]
        picture.putpalette(bytes(3) + colours.tobytes())
        return picture

    def _location(self, item, stored):
        """The image's location: COCO's file_name and coco_url."""
        if stored["bytes"] is None:
            path = Path(stored["path"])
            return {"file_name": item.name + path.suffix, "coco_url": path.absolute().as_uri()}
        suffix = Path(stored["path"] or "").suffix or ".jpg"
        self._save(f"frames/{item.name}{suffix}", lambda file: file.write(stored["bytes"]))
        return {"file_name": f"frames/{item.name}{suffix}"}

    def _save(self, name, write):
        partial = self.folder / WORK / f"partial-{self.process}"
        with partial.open("wb") as file:
            write(file)
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.replace(target)


def _whole_lines(path):
    """The file, open to append, without a half-written last line."""
    file = path.open("a+b")
    file.seek(0)
    file.truncate(file.read().rfind(b"\n") + 1)
    file.close()
    return path.open("a", encoding="utf-8")


def _record(item, location, prediction):
    height, width = prediction.mask.shape
    polyps = [_polyp(prediction.segmentation, segment) for segment in prediction.segments]
    return {
        "name": item.name,
        **({} if item.place is None else item.place._asdict()),
        "stamp": item.stamp,
        "written": time.time(),
        "image": {**location, "width": width, "height": height},
        "area": int(np.count_nonzero(prediction.mask)),
        "uncertainty": round(prediction.uncertainty, 6),
        "polyps": polyps,
    }


def _polyp(segmentation, segment):
    """One entry as a COCO annotation, without its ids."""
    return {
        "category_id": segment["label_id"],
        "segmentation": {"size": list(segmentation.shape), "counts": _run_lengths(segmentation, segment)},
        "bbox": [float(value) for value in segment["bbox"]],
        "area": segment["area"],
        "iscrowd": 0,
        "score": round(segment["score"], 6),
    }


def _run_lengths(segmentation, segment):
    """COCO's text of an entry's run lengths, column by column; only the columns of its box are searched."""
    height, width = segmentation.shape
    left, _, columns, _ = segment["bbox"]
    inside = (segmentation[:, left : left + columns] == segment["id"]).ravel(order="F")
    edges = np.flatnonzero(np.diff(inside.view(np.int8), prepend=0, append=0)) + left * height
    counts = np.diff([0, *edges.tolist(), height * width])
    counts = counts if counts[-1] else counts[:-1]
    packed = mask_api().frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
    return packed["counts"].decode()
