"""The endoscope's view in a frame. What lies beside it, black margins and other pictures, holds no polyp."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from hub_unets.modeling.regions import connected_components

SIDE = 128  # pixels of the longer side at which the view is looked for
DARK = 24  # a pixel whose brightest channel is no brighter belongs to no picture
LEAST = 0.1  # share of the frame that a view covers at least
MARGIN = 2  # pixels, at SIDE, around the view that count as view too


def view_of(image, size=None):
    """Where the endoscope's view is: the convex hull of the largest connected bright region, and a small margin.

    The hull keeps what is dark in the view, the lumen and shadows at its edge. A picture that touches the view counts
    as view.

    Args:
        image: RGB, uint8 H x W x 3.
        size: (height, width) of the result; None is the image's.

    Returns:
        bool height x width; all True where no bright region covers a tenth of the frame.
    """
    height, width = image.shape[:2]
    target_size = image.shape[:2] if size is None else tuple(size)
    scale = min(1, SIDE / max(height, width))
    small = Image.fromarray(image).resize((max(1, round(width * scale)), max(1, round(height * scale))), Image.BOX)
    dark = np.maximum.reduce(np.moveaxis(np.asarray(small), 2, 0)) <= DARK
    widened = F.max_pool2d(torch.from_numpy(dark.astype(np.float32))[None], 3, stride=1, padding=1)[0]
    regions, count = connected_components(widened.numpy() == 0)  # lines of text, a pixel wide, join nothing
    sizes = np.bincount(regions.ravel(), minlength=2)
    sizes[0] = 0
    if not count or sizes.max() < LEAST * regions.size:
        return np.ones(target_size, bool)
    hull = Image.fromarray(_hull(regions == sizes.argmax(), MARGIN + 1)).convert("L")  # 1: the widened dark
    return np.asarray(hull.resize(target_size[::-1], Image.NEAREST)) > 0


def without_marks_outside(mask, view):
    """The mask without its connected regions (8 neighbours) that lie wholly outside the view.

    Args:
        mask: class indices, a tensor H x W of whole numbers or bool.
        view: bool H x W, from `view_of`.

    Returns:
        a tensor of the same type, on the mask's device. No pixel of a region that touches the view is changed.
    """
    if view.all() or not mask.any():
        return mask
    regions, count = connected_components(mask.cpu().numpy() > 0)
    inside = np.zeros(count + 1, bool)
    inside[np.unique(regions[view])] = True
    return torch.where(torch.from_numpy(inside[regions]).to(mask.device), mask, torch.zeros_like(mask))


def _hull(region, margin):
    """The convex hull of one connected region, bool H x W, and `margin` pixels around it."""
    rows = np.flatnonzero(region.any(axis=1))
    first = region[rows].argmax(axis=1)
    last = region.shape[1] - 1 - region[rows, ::-1].argmax(axis=1)
    hull_rows = np.clip(np.arange(rows[0] - margin, rows[-1] + margin + 1), 0, len(region) - 1)
    inner = np.clip(hull_rows, rows[0], rows[-1])
    left = np.interp(inner, *_lower_envelope(rows, first)) - margin
    right = -np.interp(inner, *_lower_envelope(rows, -last)) + margin
    columns = np.arange(region.shape[1])
    hull = np.zeros_like(region)
    hull[hull_rows] = (columns >= np.floor(left)[:, None]) & (columns <= np.ceil(right)[:, None])
    return hull


def _lower_envelope(x, y):
    """The corners (x, y) of the largest convex function that is nowhere above the points (Andrew 1979)."""
    corners = []
    for point in zip(x.tolist(), y.tolist(), strict=True):
        while len(corners) > 1 and _turns_down(*corners[-2:], point):
            corners.pop()
        corners.append(point)
    return np.array(corners).T


def _turns_down(a, b, c):
    """Whether the way from point one over two to three does not turn upwards."""
    return (b[0] - a[0]) * (c[1] - a[1]) <= (b[1] - a[1]) * (c[0] - a[0])
