"""From JPEG bytes to a mask at the original size: the usual way and the fast modes."""

import io
import statistics
from functools import partial
from pathlib import Path

import albumentations
import numpy as np
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from PIL import Image

from hub_unets.benchmarks.timing import compared, interleaved
from hub_unets.hub_repos.inference.fast import MODES, FastSegmenter
from hub_unets.hub_repos.repository.int8 import INT8
from hub_unets.training.data.reading import read_labels
from hub_unets.training.measure.models import load_model

USUAL, PLAIN = "usual (smp, float32)", "ours, plain"
SMP_ENCODER = {
    "mobilenetv2_100": "tu-mobilenetv2_100",
    "resnet18": "resnet18",
    "tf_efficientnet_lite0": "tu-tf_efficientnet_lite0",
    "tf_efficientnet_lite2": "tu-tf_efficientnet_lite2",
}


def measure(folder, scored_rows, rounds, batches=(1, 16)):
    """Milliseconds an image of every path at every batch size, and the accuracy of the fast modes' masks.

    Args:
        folder: a run or repository with a backbone of SMP_ENCODER; int8 is measured where it has model_int8.onnx.
        scored_rows: all are scored, and the rounds take them in turn.
    """
    files, truths = encoded(scored_rows), [read_labels(row["annotation"], row["name"]) == 1 for row in scored_rows]
    model, processor = load_model(folder)
    sides = {
        USUAL: Usual(model.config, processor),
        PLAIN: partial(plain, model, processor),
        **{mode: FastSegmenter(folder, mode) for mode in MODES if mode != "int8" or (Path(folder) / INT8).is_file()},
    }
    masks = {name: [as_bool(side([file])[0]) for file in files] for name, side in sides.items() if name != USUAL}
    return {
        "backbone": model.config.backbone,
        "size": processor.size,
        "images": len(files),
        "masks": {
            name: {
                "dice": round(mean_dice(side_masks, truths), 5),
                "dice_with_plain": round(mean_dice(side_masks, masks[PLAIN]), 5),
                "least_dice_with_plain": round(min(map(dice, side_masks, masks[PLAIN])), 5),
            }
            for name, side_masks in masks.items()
        },
        "milliseconds": {str(batch): timed(sides, files, batch, rounds) for batch in batches},
    }


def timed(sides, files, batch, rounds):
    """Milliseconds an image; in each round every side gets the same next `batch` files."""
    turns = {name: iter(range(10**6)) for name in sides}

    def call(name):
        start = next(turns[name]) * batch
        sides[name]([files[(start + number) % len(files)] for number in range(batch)])

    return compared(interleaved({name: partial(call, name) for name in sides}, rounds, 1, {USUAL}), USUAL, batch)


class Usual:
    """segmentation-models-pytorch's Unet as its examples run it: Pillow, albumentations, float32, threshold .5.

    Its weights are random, as ours do not fit: its time does not depend on them.
    """

    def __init__(self, config, processor):
        self.model = smp.Unet(SMP_ENCODER[config.backbone], encoder_weights=None).eval()
        normalize = albumentations.Normalize(mean=processor.image_mean, std=processor.image_std)
        self.transform = albumentations.Compose([albumentations.Resize(*processor.size.values()), normalize])

    @torch.inference_mode()
    def __call__(self, files):
        images = [np.array(Image.open(io.BytesIO(file)).convert("RGB")) for file in files]
        pixels = np.stack([self.transform(image=image)["image"].transpose(2, 0, 1) for image in images])
        logits = self.model(torch.from_numpy(pixels))
        return [
            F.interpolate(image_logits[None], size=image.shape[:2], mode="bilinear")[0, 0] > 0
            for image_logits, image in zip(logits, images, strict=True)
        ]


@torch.inference_mode()
def plain(model, processor, files):
    """Our documented path: processor, model in float32, processor."""
    images = [Image.open(io.BytesIO(file)).convert("RGB") for file in files]
    sizes = [(image.height, image.width) for image in images]
    return processor.post_process_semantic_segmentation(model(**processor(images)), target_sizes=sizes)


def encoded(rows):
    """The rows' image files as bytes."""
    return [row["image"]["bytes"] or Path(row["image"]["path"]).read_bytes() for row in rows]


def as_bool(mask):
    return np.asarray(mask) == 1


def dice(mask, reference):
    """Dice of two masks; 1 where both are empty."""
    total = int(mask.sum() + reference.sum())
    return 2 * int((mask & reference).sum()) / total if total else 1.0


def mean_dice(masks, references):
    return statistics.mean(map(dice, masks, references))
