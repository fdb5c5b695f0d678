"""The regions that a model marks in an image, as annotation tools draw them: outlines at the image's own size."""

import math
from typing import NamedTuple

import cv2
import numpy as np
import torch

from hub_unets.hub_repos.inference.predictions import uncertainty
from hub_unets.modeling.image_processing_unet import upsample
from hub_unets.modeling.images import height_and_width
from hub_unets.training.errors import UserError
from hub_unets.training.measure.models import load_model, pixel_values
from hub_unets.training.measure.segmenter import frames

TOLERANCE = 0.005  # of the box's diagonal, by which an outline may be off: a person drags tens of points, not hundreds
MOST_AREA = 0.1  # of the region's area, by which an outline's may differ: a thin region would become a line


class Region(NamedTuple):
    """A connected region: its label, its mean probability, its box, and its pixels.

    `box` is x, y, width and height in pixels; `mask` is bool height x width, the box's part of the image.
    """

    label: int
    score: float
    box: tuple[int, int, int, int]
    mask: np.ndarray


class Annotator:
    """A model of ours with its processor, asked for one image after another.

    Args:
        name: folder of a run or of a built repository, or Hub id.
        trust_remote_code: run the code that comes with the model.
        revision: commit, branch or tag on the Hub.

    Raises:
        UserError: another kind of model, whose processor scores no regions.
    """

    def __init__(self, name, trust_remote_code=False, revision=None):
        self.model, self.processor = load_model(name, trust_remote_code, revision)
        if not hasattr(self.model.config, "binary_head"):
            raise UserError(f"{name}: annotators take runs and repositories of hub-unets, not other models.")
        if torch.accelerator.is_available():
            self.model.to(torch.accelerator.current_accelerator())
        self.labels = {label: name for label, name in self.model.config.id2label.items() if label > 0}

    @torch.inference_mode()
    def __call__(self, image, threshold=None):
        """An image, as the processor reads it, to its Regions and uncertainty, 0 to 1 (`inference.predictions`).

        Regions that score below `threshold` are left out; None takes the processor's `score_threshold`.
        """
        logits = self.model(pixel_values(self.model, self.processor, [image])).logits
        logits = upsample(logits, [height_and_width(image)])[0]
        (result,) = self.processor.post_process_instance_segmentation(
            logits[None], threshold=threshold, **frames(self.processor, [image])
        )
        segmentation = result["segmentation"].numpy()
        return [_region(segmentation, segment) for segment in result["segments_info"]], uncertainty(logits)


def _region(segmentation, segment):
    x, y, width, height = segment["bbox"]
    mask = segmentation[y : y + height, x : x + width] == segment["id"]
    return Region(segment["label_id"], segment["score"], (x, y, width, height), mask)


def outline(region):
    """A Region's outer border as a simplified polygon, float64 points x 2, x and y; holes are filled.

    Points lie on the pixels' edges: a region of one pixel is a square of side 1. The border and the polygon are about
    TOLERANCE apart at most, and their areas differ by MOST_AREA at most.
    """
    tolerance = TOLERANCE * math.hypot(*region.box[2:])
    border = _border(region).astype(np.int32)[:, None]
    area = cv2.contourArea(border)
    points = cv2.approxPolyDP(border, tolerance, closed=True)
    while abs(cv2.contourArea(points) - area) > MOST_AREA * area:
        tolerance /= 2
        points = cv2.approxPolyDP(border, tolerance, closed=True)
    return points[:, 0].astype(np.float64)


def has_hole(region):
    """Whether background is enclosed by a Region; an outline can't say that."""
    return cv2.contourArea(_border(region).astype(np.float32)) > np.count_nonzero(region.mask)


def _border(region):
    """The outer border, int64 points x 2, along the edges of the pixels, so that it encloses them exactly.

    OpenCV's contours go through the pixels' centres: of pixels doubled in both directions, and rounded up to even.
    """
    doubled = region.mask.astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    (contour,), _ = cv2.findContours(doubled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return (contour[:, 0].astype(np.int64) + 1) // 2 + region.box[:2]
