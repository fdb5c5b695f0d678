"""Polyps found, missed and invented: connected regions of the true mask against those of the predicted one."""

import numpy as np

from hub_unets.modeling.regions import connected_components
from hub_unets.training.measure.metrics import ratio_with_interval

POLYP_COLUMNS = ("polyps", "found", "touched", "false_polyps")
SPECK = 16  # pixels; Kvasir-SEG's JPEG masks hold specks of 1 to 3, and no polyp below 500
DEFINITION = (
    "A polyp is a connected region (8 neighbours) of the true mask; regions of fewer than 16 pixels are specks of the "
    "mask's compression and are left out. It is found where a predicted region has an IoU of at least .5 with it, and "
    "touched where the prediction has one of its pixels. Every other predicted region, of any size, is a false polyp. "
    "Recall is the share of polyps found, precision the share of predicted regions that are a polyp found, over all "
    "images; both are 1 where there is neither a polyp nor a region, and 0 where there is only one of the two."
)


def count_polyps(prediction, truth):
    """Counts of one image, int64 (polyps, found, touched, false polyps), from two masks, bool H x W; see DEFINITION.

    No matching has to be chosen: regions of one mask are apart, so that two of them can't each fill half of one
    region, and a region has at most one partner with an IoU of .5 or more.
    """
    true_ids, polyps = connected_components(truth)
    ids, regions = connected_components(prediction)
    pairs = true_ids.astype(np.int64) * (regions + 1) + ids
    common = np.bincount(pairs.ravel(), minlength=(polyps + 1) * (regions + 1)).reshape(polyps + 1, regions + 1)
    areas, predicted_areas = common.sum(axis=1)[1:], common.sum(axis=0)[1:]
    kept = areas >= SPECK
    common, areas = common[1:, 1:][kept], areas[kept]
    matched = 2 * common >= areas[:, None] + predicted_areas - common
    found = np.count_nonzero(matched)
    touched = np.count_nonzero(common.any(axis=1))
    return np.array((len(areas), found, touched, regions - found), np.int64)


def summarize_polyps(counts):
    """Counts images x 4 to their sums, and recall, precision and the share touched with intervals over images."""
    counts = np.asarray(counts, np.int64)
    polyps, found, touched, false_polyps = counts.T
    sums = dict(zip(POLYP_COLUMNS, counts.sum(axis=0).tolist(), strict=True))
    regions = found + false_polyps
    figures = {"recall": (found, polyps), "precision": (found, regions), "touched_share": (touched, polyps)}
    return sums | {name: ratio_with_interval(*pair, polyps + regions) for name, pair in figures.items()}
