"""NSD and HD95 by hand, against MONAI on the whole image, and of empty masks."""

import math
import sys

import numpy as np
import pytest

from hub_unets.training.measure.boundaries import boundary_distances, definition, is_installed, summarize_boundaries

SIZE = 60, 80  # the diagonal is 100 pixels, the tolerance 1


def box(top, left, height, width):
    mask = np.zeros(SIZE, bool)
    mask[top : top + height, left : left + width] = True
    return mask


NOTHING = box(0, 0, 0, 0)


@pytest.mark.parametrize(
    ("prediction", "truth", "nsd", "hd95"),
    [
        (box(10, 10, 20, 20), box(10, 10, 20, 20), 1, 0),
        (box(11, 10, 1, 20), box(10, 10, 1, 20), 1, 1),
        (box(17, 10, 1, 20), box(10, 10, 1, 20), 0, 7),
        (box(10, 12, 1, 20), box(10, 10, 1, 20), 38 / 40, 1.05),  # each way 18 distances of 0, one of 1, one of 2
        (box(10, 10, 3, 3), box(11, 11, 1, 1), 5 / 9, math.sqrt(2)),  # 4 of the 8 outline pixels are at 1, and the dot
        (NOTHING, NOTHING, 1, 0),
        (box(0, 0, 2, 2), NOTHING, 0, 100),
        (NOTHING, box(0, 0, 60, 80), 0, 100),
    ],
)
def test_by_hand(prediction, truth, nsd, hd95):
    assert boundary_distances(prediction, truth) == pytest.approx((nsd, hd95), abs=1e-5)


@pytest.mark.parametrize("shift", [1, 3, 10])
def test_a_square_moved_by_some_pixels(shift):
    nsd, hd95 = boundary_distances(box(10, 10 + shift, 30, 30), box(10, 10, 30, 30))
    assert hd95 == shift
    # off by more than a pixel: of both upright sides the rows far from a corner, of both others what juts out
    assert nsd == pytest.approx(1 if shift == 1 else (116 - 2 * 26 - 2 * (shift - 1)) / 116, abs=0.02)


def test_the_box_that_is_cut_out_changes_nothing():
    import torch
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    rng = np.random.default_rng(0)
    prediction, truth = (rng.random(SIZE) > 0.999 for _ in range(2))
    for mask in (prediction, truth):
        mask[:, :40] |= rng.random((60, 40)) > 0.9
    prediction[0, 70] = truth[59, 3] = True  # at the image's border
    masks = [torch.from_numpy(mask)[None, None] for mask in (prediction, truth)]
    nsd = compute_surface_dice(*masks, [1.0], include_background=True)
    hd95 = compute_hausdorff_distance(*masks, include_background=True, percentile=95)
    assert boundary_distances(prediction, truth) == (float(nsd), float(hd95))
    assert 0 < nsd < 1 < hd95


def test_says_nothing_of_monais_own_warnings(recwarn):
    boundary_distances(box(10, 10, 9, 9), box(12, 10, 9, 9))
    assert not recwarn.list


def test_means():
    summary = summarize_boundaries([(1.0, 0.0), (0.5, 5.0)], [(60, 80), (30, 40)])
    assert summary["nsd"] == {"value": 0.75, "low": 0.5, "high": 1}
    assert summary["hd95"] == {"value": 2.5, "low": 0, "high": 5}
    assert summary["hd95_share"] == pytest.approx({"value": 0.05, "low": 0, "high": 0.1})


def test_the_definition_names_library_tolerance_and_empty_masks():
    for text in ("MONAI 1.", "1 % of the image's diagonal", "both masks are empty"):
        assert text in definition()


def test_monai_may_be_absent(monkeypatch):
    assert is_installed()
    monkeypatch.setitem(sys.modules, "monai", None)
    assert not is_installed()
