"""How far a predicted outline lies from the true one, at the original size: NSD and HD95, computed by MONAI.

MONAI comes with the extra `report`; without it these figures are left out.
"""

import importlib.util
import math
import warnings
from importlib.metadata import version

import numpy as np
import torch

from hub_unets.training.measure.metrics import mean_with_interval

BOUNDARY_COLUMNS = ("nsd", "hd95")
TOLERANCE = 0.01  # of the image's diagonal
RULE = (
    "NSD is the share of both outlines' pixels that lie within 1 % of the image's diagonal of the other outline; HD95 "
    "the larger of the two 95 % quantiles of the distances from one outline to the other, in pixels of the original "
    "image and as a share of its diagonal. Where both masks are empty NSD is 1 and HD95 0; where only one is, NSD is "
    "0 and HD95 the diagonal. Means over images. Computed by MONAI "
)


def is_installed():
    """Whether MONAI is there to compute them."""
    return importlib.util.find_spec("monai") is not None


def definition():
    """What the two figures are, for results.json and card."""
    return f"{RULE}{version('monai')}."


def boundary_distances(prediction, truth):
    """NSD (Nikolov et al. 2021), 0..1, and HD95, in pixels, of two masks, bool H x W.

    An outline is the mask's pixels that have a neighbour (of 4) outside it, or that lie at the image's border; its
    length is the number of these pixels. NSD's tolerance is TOLERANCE of the diagonal. Where both masks are empty the
    two are 1 and 0; where only one is, 0 and the diagonal, sqrt(H^2 + W^2).
    """
    diagonal = math.hypot(*truth.shape)
    if not (prediction.any() and truth.any()):
        return (0.0, diagonal) if prediction.any() or truth.any() else (1.0, 0.0)
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    box = _bounding_box(prediction | truth)  # distances between outlines do not depend on what lies around them
    masks = [torch.from_numpy(np.ascontiguousarray(mask[box]))[None, None] for mask in (prediction, truth)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI calls functions of its own that it has deprecated
        nsd = compute_surface_dice(*masks, [TOLERANCE * diagonal], include_background=True)
        hd95 = compute_hausdorff_distance(*masks, include_background=True, percentile=95)
    return float(nsd), float(hd95)


def summarize_boundaries(values, sizes):
    """Means with intervals of NSD, HD95 in pixels, and HD95 as a share of the diagonal.

    Args:
        values: (NSD, HD95) of each image.
        sizes: (height, width) of each image.
    """
    nsd, hd95 = np.asarray(values, np.float64).T
    shares = hd95 / np.hypot(*np.asarray(sizes, np.float64).T)
    figures = {"nsd": nsd, "hd95": hd95, "hd95_share": shares}
    return {name: mean_with_interval(image_values) for name, image_values in figures.items()}


def _bounding_box(mask):
    """Slices of the rows and columns from the first to the last that the mask has a pixel in."""
    lines = [np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0)]
    return tuple(slice(indices[0], indices[-1] + 1) for indices in lines)
