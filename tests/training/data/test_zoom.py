"""Close-ups enlarge a polyp to the drawn share; shrunk polyps are smaller, whole, and the only ones left."""

import albumentations
import numpy as np
import pytest

from hub_unets.training.data.augmentation import Augmentation
from hub_unets.training.data.zoom import CloseUp, ShrinkPolyp


def transformed(transform, image, mask, seed=0):
    compose = albumentations.Compose([transform])
    compose.set_random_seed(seed)
    result = compose(image=image, mask=mask)
    return result["image"], result["mask"]


@pytest.fixture
def frame():
    """Green, one red polyp of 20 x 30 pixels: 5 % of 100 x 120."""
    mask = np.zeros((100, 120), np.uint8)
    mask[40:60, 40:70] = 1
    image = np.full((100, 120, 3), (0, 120, 0), np.uint8)
    image[mask > 0] = 200, 0, 0
    return image, mask


class TestCloseUp:
    @pytest.mark.parametrize("seed", range(6))
    @pytest.mark.parametrize("area", [0.1, 0.2, 0.5])
    def test_the_polyp_covers_the_drawn_share(self, frame, area, seed):
        image, mask = transformed(CloseUp(area=(area, area), p=1), *frame, seed)
        assert image.shape == (100, 120, 3) and mask.shape == (100, 120) and mask.dtype == np.uint8
        assert 0.6 * area < mask.mean() <= 1.05 * area  # a part of it may lie outside
        assert ((image[..., 0] > 100) == mask).mean() > 0.95

    def test_no_crop_is_smaller_than_min_side(self, frame):
        frame[1][:] = 0
        frame[1][50:52, 60:62] = 1
        _, mask = transformed(CloseUp(area=(0.9, 0.9), min_side=0.5, p=1), *frame)
        assert mask.sum() == 4 * 4  # magnified twice

    def test_a_polyp_in_the_corner_is_in_the_crop(self, frame):
        frame[1][:] = 0
        frame[1][:20, 100:] = 1
        _, mask = transformed(CloseUp(area=(0.3, 0.3), p=1), *frame)
        assert 0.2 < mask.mean() < 0.32

    def test_one_of_several_is_enlarged_and_all_of_them_come_up(self, frame):
        frame[1][:] = 0
        frame[1][10:20, 10:20], frame[1][80:90, 100:110] = 1, 2
        enlarged = set()
        for seed in range(12):
            _, mask = transformed(CloseUp(area=(0.3, 0.3), p=1), *frame, seed)
            enlarged.add(tuple(np.unique(mask)))
        assert enlarged == {(0, 1), (0, 2)}

    def test_frames_without_a_polyp_and_large_polyps_are_left(self, frame):
        for mask in (np.zeros_like(frame[1]), np.ones_like(frame[1])):
            image, left = transformed(CloseUp(p=1), frame[0], mask)
            assert np.array_equal(image, frame[0]) and np.array_equal(left, mask)


class TestShrinkPolyp:
    @pytest.mark.parametrize("seed", range(6))
    @pytest.mark.parametrize("area", [0.005, 0.02])
    def test_one_smaller_polyp_is_left(self, frame, area, seed):
        image, mask = transformed(ShrinkPolyp(area=(area, area), p=1), *frame, seed)
        assert mask.mean() == pytest.approx(area, rel=0.25)
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        assert mask.sum() == len(rows) * len(columns)  # the rectangle that it was
        assert np.ptp(columns) / np.ptp(rows) == pytest.approx(1.5, rel=0.25)
        red = image[..., 0].astype(int) - image[..., 1]
        assert red[mask > 0].mean() > red[mask == 0].mean() + 100
        far = np.ones_like(mask)
        far[max(0, rows[0] - 6) : rows[-1] + 7, max(0, columns[0] - 6) : columns[-1] + 7] = 0
        assert image[far > 0, 0].max() < 60  # of the polyp that it was nothing is left

    def test_places_differ(self, frame):
        masks = [transformed(ShrinkPolyp(area=(0.01, 0.01), p=1), *frame, seed)[1] for seed in range(8)]
        assert len({tuple(np.argwhere(mask)[0]) for mask in masks}) > 4

    def test_never_into_the_black_margin(self, frame):
        frame[0][:, 80:] = 0
        for seed in range(8):
            _, mask = transformed(ShrinkPolyp(area=(0.01, 0.01), p=1), *frame, seed)
            assert mask[:, :83].sum() == mask.sum()

    def test_the_new_place_s_brightness_is_taken(self, frame):
        frame[0][:, 85:] = 0, 200, 0
        for seed in range(40):
            image, mask = transformed(ShrinkPolyp(area=(0.01, 0.01), p=1), *frame, seed)
            if mask.any() and not mask[:, :95].any():
                row, column = np.rint(np.argwhere(mask).mean(axis=0)).astype(int)
                assert image[row, column].tolist() == [200, 80, 0]  # (200, 0, 0), and the mucosa's 200 - 120
                return
        pytest.fail("no polyp came to the bright side")

    @pytest.mark.parametrize("kind", ["smaller already", "empty", "too large", "at the border", "at a black margin"])
    def test_left_as_it_is(self, frame, kind):
        image, mask = frame
        if kind == "smaller already":
            mask[:] = 0
            mask[50:55, 50:55] = 1
        elif kind == "empty":
            mask[:] = 0
        elif kind == "too large":
            mask[10:80, 10:90] = 1
        elif kind == "at the border":
            mask[40:60, 60:] = 1
        else:
            image[:, :40] = 0
        result, left = transformed(ShrinkPolyp(p=1), image, mask)
        assert np.array_equal(result, image) and np.array_equal(left, mask)


def test_both_are_pure_functions_of_seed_epoch_and_index(frame):
    spec = [{"CloseUp": {"p": 0.5}}, {"ShrinkPolyp": {"p": 0.5}}]
    before = [part.copy() for part in frame]
    samples = [Augmentation(spec, 1)(*frame, 0, index) for index in range(8)]
    augmentation = Augmentation(spec, 1)
    for index in reversed(range(8)):
        assert all(map(np.array_equal, augmentation(*frame, 0, index), samples[index]))
    assert len({mask.tobytes() for _, mask in samples}) > 3
    assert all(map(np.array_equal, before, frame))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"CloseUp": {"area": [0.7, 0.2]}}, "area must be two shares in 0..1, the lower first, got"),
        ({"CloseUp": {"min_side": 0}}, "min_side must lie in 0..1, got 0"),
        ({"ShrinkPolyp": {"area": [0, 0.2]}}, "area must be two shares"),
        ({"ShrinkPolyp": {"margin": 2}}, "max_area and margin must lie in 0..1"),
    ],
)
def test_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        Augmentation([spec], 0)
