"""Polyps found and invented, counted by hand."""

import numpy as np
import pytest

from hub_unets.training.measure.polyps import SPECK, count_polyps, summarize_polyps


def boxes(*places, shape=(60, 80)):
    """A mask of boxes (top, left, height, width)."""
    mask = np.zeros(shape, bool)
    for top, left, height, width in places:
        mask[top : top + height, left : left + width] = True
    return mask


TWO = (5, 5, 10, 10), (5, 30, 10, 10)


@pytest.mark.parametrize(
    ("prediction", "truth", "counts"),
    [
        ((), (), (0, 0, 0, 0)),
        ((), TWO, (2, 0, 0, 0)),
        (TWO, (), (0, 0, 0, 2)),
        (TWO, TWO, (2, 2, 2, 0)),
        (((5, 8, 10, 10),), ((5, 5, 10, 10),), (1, 1, 1, 0)),  # IoU 70 / 130
        (((5, 9, 10, 10),), ((5, 5, 10, 10),), (1, 0, 1, 1)),  # IoU 60 / 140
        (((5, 5, 10, 5),), ((5, 5, 10, 10),), (1, 1, 1, 0)),  # IoU .5
        (((5, 5, 10, 10), (5, 10, 10, 11)), ((5, 5, 10, 8),), (1, 1, 1, 0)),  # one region of 160, IoU .5
        (((5, 5, 10, 35),), TWO, (2, 0, 2, 1)),  # two polyps merged into one
        (((5, 5, 10, 26),), ((5, 5, 10, 20), (5, 27, 10, 5)), (2, 1, 2, 0)),  # merged, the larger is found
        (((5, 5, 10, 4), (5, 11, 10, 4)), ((5, 5, 10, 10),), (1, 0, 1, 2)),  # one polyp split into two
        (((5, 5, 10, 6), (5, 12, 10, 3)), ((5, 5, 10, 10),), (1, 1, 1, 1)),  # split, the larger finds it
        (((5, 5, 10, 10), (15, 15, 10, 10)), ((5, 5, 10, 10), (15, 15, 10, 10)), (1, 1, 1, 0)),  # corners touch
        ((), ((5, 5, 3, 5),), (0, 0, 0, 0)),  # a speck of 15 pixels
        (((5, 5, 3, 5),), ((5, 5, 3, 5),), (0, 0, 0, 1)),
        (((5, 5, 4, 4),), ((5, 5, 4, 4),), (1, 1, 1, 0)),  # 16 pixels
    ],
)
def test_counts(prediction, truth, counts):
    assert tuple(count_polyps(boxes(*prediction), boxes(*truth))) == counts


def test_a_speck_is_what_the_definition_says():
    assert SPECK == 16


def test_sums_and_shares():
    summary = summarize_polyps([(2, 1, 2, 0), (1, 1, 1, 2), (0, 0, 0, 0)])
    sums = {name: summary[name] for name in ("polyps", "found", "touched", "false_polyps")}
    assert sums == {"polyps": 3, "found": 2, "touched": 3, "false_polyps": 2}
    values = {name: summary[name]["value"] for name in ("recall", "precision", "touched_share")}
    assert values == pytest.approx({"recall": 2 / 3, "precision": 2 / 4, "touched_share": 1})
    assert (summary["recall"]["low"], summary["recall"]["high"]) == (
        0.5,
        1,
    )  # 1 also where the empty image is drawn alone


@pytest.mark.parametrize(
    ("counts", "recall", "precision"),
    [((0, 0, 0, 0), 1, 1), ((0, 0, 0, 3), 0, 0), ((3, 0, 0, 0), 0, 0)],
)
def test_nothing_there_or_nothing_found(counts, recall, precision):
    summary = summarize_polyps([counts, counts])
    assert summary["recall"] == {"value": recall, "low": recall, "high": recall}
    assert summary["precision"] == {"value": precision, "low": precision, "high": precision}
