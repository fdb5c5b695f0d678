"""Frames without a polyp, made from frames with one, for data sets in which every image holds a polyp.

Two transforms for a recipe's `augmentation` list, `PolypFreeCrop` and `PaintOut`, which leave a sample as it is where
they can't take its polyp away; and the crop on which false alarms are counted. Pixels of every label above 0 count as
polyp, those labelled 255 too.
"""

import albumentations
import cv2
import numpy as np
from albumentations.core.type_definitions import Targets

from hub_unets.training.data.reading import cropped
from hub_unets.training.errors import UserError

CANDIDATES = 64  # rectangles, or places to copy from, that are tried
CELLS = 64  # along the longer side of a frame, when its largest polyp-free part is searched
DARK = 40  # a pixel whose brightest channel is below this shows no mucosa


class PolypFreeCrop(albumentations.DualTransform):
    """A part of the frame that holds no polyp, resized to the frame's size: the largest of 64 random rectangles.

    Args:
        min_side: each side is at least this share of the frame's, in 0..1.
        p: share of the samples that it is tried on.
    """

    _targets = (Targets.IMAGE, Targets.MASK)

    class InitSchema(albumentations.DualTransform.InitSchema):
        min_side: float

    def __init__(self, min_side=0.4, p=0.5):
        super().__init__(p=p)
        if not 0 < min_side <= 1:
            raise UserError(f"min_side must lie in 0..1, got {min_side}.")
        self.min_side = min_side

    def get_params_dependent_on_data(self, params, data):
        height, width = data["mask"].shape
        sides = self.random_generator.uniform(self.min_side, 1, (CANDIDATES, 2))
        positions = self.random_generator.uniform(0, 1, (CANDIDATES, 2))
        extent = np.maximum(np.rint(sides * (height, width)).astype(int), 1)
        start = np.rint(positions * ((height, width) - extent)).astype(int)
        free = _pixels_inside(data["mask"] > 0, start, start + extent) == 0
        if not free.any():
            return {"box": None}
        best = np.argmax(free * extent.prod(axis=1))
        (top, left), (bottom, right) = start[best], start[best] + extent[best]
        return {"box": (slice(top, bottom), slice(left, right))}

    def apply(self, img, box, **params):
        return img if box is None else enlarged(img[box], img.shape)

    def apply_to_mask(self, mask, box, **params):
        return mask if box is None else np.zeros_like(mask)


class PaintOut(albumentations.DualTransform):
    """The frame with its polyps covered by mucosa from elsewhere in it, blended without a seam (Perez et al. 2003).

    Of 64 places the one whose pixels around the copied region are most like those around the polyps is copied.

    Args:
        max_area: frames whose polyps cover more than this share are left as they are.
        margin: pixels around the polyps that are covered too, as a share of the frame's longer side.
        p: share of the samples that it is tried on.
    """

    _targets = (Targets.IMAGE, Targets.MASK)

    class InitSchema(albumentations.DualTransform.InitSchema):
        max_area: float
        margin: float

    def __init__(self, max_area=0.25, margin=0.03, p=0.5):
        super().__init__(p=p)
        if not (0 < max_area <= 1 and 0 < margin < 1):
            raise UserError(f"max_area and margin must lie in 0..1, got {max_area} and {margin}.")
        self.max_area, self.margin = max_area, margin

    def get_params_dependent_on_data(self, params, data):
        polyp = (data["mask"] > 0).astype(np.uint8)
        if not 0 < polyp.mean() <= self.max_area:
            return {"painted": None}
        reach = max(1, round(self.margin * max(polyp.shape)))
        covered = cv2.dilate(polyp, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1,) * 2))
        shift = self._best_shift(data["image"], covered, reach)
        if shift is None:
            return {"painted": None}
        return {"painted": _blend(data["image"], covered, shift)}

    def _best_shift(self, image, covered, reach):
        """(rows, columns) from the region to the one to copy, whose surroundings look most alike; None: no room."""
        rows, columns = np.nonzero(covered)
        low = -rows.min(), -columns.min()
        high = covered.shape[0] - rows.max(), covered.shape[1] - columns.max()
        shifts = self.random_generator.integers(low, np.maximum(high, np.add(low, 1)), (CANDIDATES, 2))
        ring = cv2.dilate(covered, np.ones((2 * reach + 1,) * 2, np.uint8)) - covered
        ring_pixels = np.argwhere(ring)[:: max(1, int(ring.sum()) // 500)]
        best, lowest_cost = None, np.inf
        for shift in shifts:
            if covered[rows + shift[0], columns + shift[1]].any():
                continue
            shifted = np.clip(ring_pixels + shift, 0, np.array(covered.shape) - 1)
            differences = image[tuple(ring_pixels.T)].astype(np.float32) - image[tuple(shifted.T)]
            if (cost := float(np.abs(differences).mean())) < lowest_cost:
                best, lowest_cost = shift, cost
        return best

    def apply(self, img, painted, **params):
        return img if painted is None else painted

    def apply_to_mask(self, mask, painted, **params):
        return mask if painted is None else np.zeros_like(mask)


def enlarged(part, shape):
    """A part of an image at the whole image's shape, H x W x C; OpenCV leaves out a dimension of 1."""
    return cv2.resize(part, shape[1::-1], interpolation=cv2.INTER_LINEAR).reshape(shape)


def largest_free_crop(image, labels, min_side=1 / 3):
    """The largest rectangle of an image that holds no polyp, at the image's own resolution.

    Corners lie on a grid of 64 cells along the longer side, so that polyps keep a small distance.

    Args:
        image: as `training.data.reading.read_image` gives it.
        labels: uint8 H x W.
        min_side: each side is at least this share of the image's.

    Returns:
        that part; None where no rectangle is large enough, or more than half of it is dark (the black border).
    """
    height, width = labels.shape
    cell = max(1, -(-max(height, width) // CELLS))
    rows, columns = -(-height // cell), -(-width // cell)
    padded = np.pad(labels > 0, ((0, rows * cell - height), (0, columns * cell - width)))
    occupied = padded.reshape(rows, cell, columns, cell).any((1, 3))
    top, left, bottom, right = (int(edge) * cell for edge in _largest_rectangle(~occupied))
    box = left, top, min(right, width), min(bottom, height)
    if box[2] - box[0] < min_side * width or box[3] - box[1] < min_side * height:
        return None
    crop = cropped(image, box)
    pixels = np.asarray(crop)
    dark = DARK if pixels.dtype == np.uint8 else DARK / 255
    return None if (pixels.max(axis=2) < dark).mean() > 0.5 else crop


def _largest_rectangle(free):
    """(top, left, bottom, right) of the largest rectangle of True in a boolean H x W; the upper left of equals."""
    best, area = (0, 0, 0, 0), 0
    heights = np.zeros(free.shape[1] + 1, int)  # of the column of True that ends in this row; 0 closes the last
    for row, cells in enumerate(free):
        heights[:-1] = (heights[:-1] + 1) * cells
        starts = []  # columns from which a rectangle still grows, lowest first
        for column, height in enumerate(heights.tolist()):
            start = column
            while starts and starts[-1][1] >= height:
                start, tall = starts.pop()
                if tall * (column - start) > area:
                    best, area = (row + 1 - tall, start, row + 1, column), tall * (column - start)
            starts.append((start, height))
    return best


def _blend(image, covered, shift, edge=8):
    """The image with the pixels `shift` away in place of the covered ones.

    The blend takes its colours from the pixels around, which at the frame's border are copied too, not the polyp's.
    """
    image, covered = np.pad(image, ((edge, edge), (edge, edge), (0, 0)), "edge"), np.pad(covered, edge, "edge")
    copied = np.roll(image, (-shift[0], -shift[1]), axis=(0, 1))
    outside = covered > 0
    outside[edge:-edge, edge:-edge] = False
    image[outside] = copied[outside]
    mask = cv2.dilate(covered, np.ones((7, 7), np.uint8))  # OpenCV shrinks it by 3 pixels
    mask[[0, -1]] = mask[:, [0, -1]] = 0
    rows, columns = np.nonzero(mask)
    top, left, bottom, right = rows.min() - 1, columns.min() - 1, rows.max() + 2, columns.max() + 2
    # OpenCV centres the box of the mask's pixels, which lies one pixel inside this one
    center = int(left + (right - left) // 2), int(top + (bottom - top) // 2)
    source, mask = np.ascontiguousarray(copied[top:bottom, left:right]), mask[top:bottom, left:right] * np.uint8(255)
    blended = cv2.seamlessClone(source, image, mask, center, cv2.NORMAL_CLONE)
    return np.ascontiguousarray(blended[edge:-edge, edge:-edge])


def _pixels_inside(mask, start, stop):
    """How many pixels of a boolean H x W are in each of N rectangles, given by N x 2 corners."""
    sums = np.pad(mask.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    (top, left), (bottom, right) = start.T, stop.T
    return sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
