"""Polyps larger and smaller than a data set's own: close-ups around one, and one shrunk in its place."""

import albumentations
import cv2
import numpy as np
from albumentations.core.type_definitions import Targets

from hub_unets.training.data.polyp_free import DARK, PaintOut, enlarged
from hub_unets.training.errors import UserError


class CloseUp(albumentations.DualTransform):
    """A part of the frame around one of its polyps, resized to the frame's size, so that the polyp covers much of it.

    Beside `PolypFreeCrop`, which magnifies mucosa alone, it keeps a network from learning that a magnified frame
    holds no polyp. Frames without a polyp are left, as are those whose polyp covers the drawn share already.

    Args:
        area: least and greatest share of the crop that the polyp covers, about; drawn evenly in its logarithm.
        min_side: each side of the crop is at least this share of the frame's.
        p: share of the samples that it is tried on.
    """

    _targets = (Targets.IMAGE, Targets.MASK)

    class InitSchema(albumentations.DualTransform.InitSchema):
        area: tuple[float, float]
        min_side: float

    def __init__(self, area=(0.15, 0.7), min_side=0.2, p=0.2):
        super().__init__(p=p)
        _require_shares(area)
        if not 0 < min_side <= 1:
            raise UserError(f"min_side must lie in 0..1, got {min_side}.")
        self.area, self.min_side = area, min_side

    def get_params_dependent_on_data(self, params, data):
        draw = self.random_generator
        polyp = _random_polyp(draw, data["mask"])
        if polyp is None:
            return {"box": None}
        side = np.sqrt(polyp.mean() / _log_uniform(draw, self.area))
        if side >= 1:
            return {"box": None}
        size = np.array(polyp.shape)
        extent = np.maximum(np.rint(size * max(side, self.min_side)), 1).astype(int)
        center = np.argwhere(polyp).mean(axis=0) + draw.uniform(-0.2, 0.2, 2) * extent
        top, left = np.clip(np.rint(center - extent / 2), 0, size - extent).astype(int)
        return {"box": np.s_[top : top + extent[0], left : left + extent[1]]}

    def apply(self, img, box, **params):
        return img if box is None else enlarged(img[box], img.shape)

    def apply_to_mask(self, mask, box, **params):
        return mask if box is None else cv2.resize(mask[box], mask.shape[::-1], interpolation=cv2.INTER_NEAREST)


class ShrinkPolyp(PaintOut):
    """The frame as `PaintOut` makes it, with one of its polyps, smaller, set into it at a random place.

    The small polyp takes the brightness and colour of the mucosa around its new place. Frames that `PaintOut` leaves,
    and polyps that the frame's border or black margin cuts, are left as they are.

    Args:
        area: least and greatest share of the frame that the polyp covers; drawn evenly in its logarithm.
        max_area, margin, p: as in `PaintOut`.
    """

    class InitSchema(PaintOut.InitSchema):
        area: tuple[float, float]

    def __init__(self, area=(0.003, 0.03), max_area=0.25, margin=0.03, p=0.2):
        super().__init__(max_area=max_area, margin=margin, p=p)
        _require_shares(area)
        self.area = area

    def get_params_dependent_on_data(self, params, data):
        draw, mask = self.random_generator, data["mask"]
        polyp = _random_polyp(draw, mask)
        scale = 1 if polyp is None else np.sqrt(_log_uniform(draw, self.area) / polyp.mean())
        reach = round(max(self.margin * max(mask.shape), 3 / scale))  # 3 pixels around the small polyp
        if scale >= 1 or not _is_whole(data["image"], polyp, reach):
            return {"painted": None}
        painted = super().get_params_dependent_on_data(params, data)["painted"]
        if painted is None:
            return {"painted": None}
        labels = np.zeros_like(mask)
        self._set_in(painted, labels, *_shrunk(data["image"], mask * polyp, reach, scale))
        return {"painted": painted if labels.any() else None, "labels": labels}

    def _set_in(self, image, labels, patch, small):
        """Paint the patch and its labels at the brightest of 8 places; nothing where each of them is dark."""
        extent = np.array(small.shape)
        corners = self.random_generator.integers(0, np.array(labels.shape) - extent + 1, (8, 2))
        boxes = [np.s_[top : top + extent[0], left : left + extent[1]] for top, left in corners]
        box = max(boxes, key=lambda candidate: (image[candidate].max(axis=2) >= DARK).mean())
        if (image[box].max(axis=2) < DARK).mean() > 0.05:
            return
        polyp = (small > 0).astype(np.float32)
        alpha = np.minimum(2 * cv2.GaussianBlur(polyp, (0, 0), max(0.7, min(extent) / 24)), 1)[..., None]
        margin = cv2.dilate(polyp, np.ones((3, 3))) == 0
        shift = image[box][margin].mean(axis=0) - patch[margin].mean(axis=0)
        blended = alpha * (patch + shift) + (1 - alpha) * image[box]
        image[box] = np.clip(np.rint(blended), 0, 255).astype(np.uint8)
        labels[box] = small

    def apply_to_mask(self, mask, painted, labels=None, **params):
        return mask if painted is None else labels


def _require_shares(area):
    if not 0 < area[0] <= area[1] <= 1:
        raise UserError(f"area must be two shares in 0..1, the lower first, got {list(area)}.")


def _log_uniform(draw, limits):
    """A number between two limits, evenly in its logarithm."""
    return float(np.exp(draw.uniform(*np.log(limits))))


def _random_polyp(draw, mask):
    """One connected region of the mask, bool H x W, each as likely; None where there is none."""
    count, regions = cv2.connectedComponents((mask > 0).astype(np.uint8))
    return None if count == 1 else regions == draw.integers(1, count)


def _is_whole(image, polyp, reach):
    """Whether neither the frame's border nor a black margin is within `reach` pixels of the polyp."""
    framed = np.pad(polyp, reach)
    region = cv2.dilate(framed.astype(np.uint8), np.ones((2 * reach + 1,) * 2, np.uint8)) > 0
    inside = region[reach:-reach, reach:-reach]
    return np.count_nonzero(inside) == np.count_nonzero(region) and (image[inside].max(axis=1) < DARK).mean() < 0.02


def _shrunk(image, labels, reach, scale):
    """The part of the image within `reach` pixels of the labels' box, and its labels, both resized by `scale`."""
    rows, columns = (np.flatnonzero(labels.any(axis=axis)) for axis in (1, 0))
    box = np.s_[rows[0] - reach : rows[-1] + reach + 1, columns[0] - reach : columns[-1] + reach + 1]
    size = [max(3, round(side * scale)) for side in labels[box].shape[::-1]]
    small = cv2.resize(labels[box], size, interpolation=cv2.INTER_NEAREST)
    return cv2.resize(image[box], size, interpolation=cv2.INTER_AREA), small
