"""Crops hold no polyp pixel, painted frames keep all else, and both are pure functions of the seed."""

import albumentations
import numpy as np
import pytest
from PIL import Image

from hub_unets.training.data.augmentation import Augmentation
from hub_unets.training.data.phantoms import phantom
from hub_unets.training.data.polyp_free import PaintOut, PolypFreeCrop, _largest_rectangle, largest_free_crop


def transformed(transform, image, mask, seed=0):
    compose = albumentations.Compose([transform])
    compose.set_random_seed(seed)
    result = compose(image=image, mask=mask)
    return result["image"], result["mask"]


@pytest.fixture
def frame():
    """Green, the polyp red: whatever red is left shows the polyp."""
    mask = np.zeros((80, 120), np.uint8)
    mask[30:50, 40:60] = 1
    image = np.zeros((80, 120, 3), np.uint8)
    image[..., 1] = 120
    image[mask > 0] = 200, 0, 0
    return image, mask


class TestPolypFreeCrop:
    @pytest.mark.parametrize("seed", range(8))
    def test_it_shows_no_polyp_at_the_frames_size(self, frame, seed):
        image, mask = transformed(PolypFreeCrop(min_side=0.3, p=1), *frame, seed)
        assert image.shape == (80, 120, 3) and mask.shape == (80, 120) and mask.dtype == np.uint8
        assert not mask.any() and not image[..., 0].any()

    def test_crops_are_parts_of_the_frame(self):
        ramp = np.repeat(np.arange(100, dtype=np.uint8)[:, None], 100, axis=1)
        mask = np.zeros_like(ramp)
        mask[:50] = 1
        image, _ = transformed(PolypFreeCrop(min_side=0.2, p=1), np.stack([ramp] * 3, axis=-1), mask)
        assert image.min() >= 50 and np.ptp(image) >= 15

    def test_a_frame_full_of_polyp_is_left(self, frame):
        full = np.ones_like(frame[1])
        image, mask = transformed(PolypFreeCrop(p=1), frame[0], full)
        assert np.array_equal(image, frame[0]) and mask.all()

    def test_ignored_pixels_count_as_polyp(self, frame):
        _, mask = transformed(PolypFreeCrop(p=1), frame[0], np.full_like(frame[1], 255))
        assert (mask == 255).all()

    @pytest.mark.parametrize("value", [0, 1.5])
    def test_min_side_is_a_share(self, value):
        with pytest.raises(ValueError, match="min_side must lie in 0..1"):
            Augmentation([{"PolypFreeCrop": {"min_side": value}}], 0)


class TestPaintOut:
    def test_the_polyp_is_gone_and_the_rest_is_the_frame(self, frame):
        image, mask = transformed(PaintOut(p=1), *frame)
        assert not mask.any()
        assert image[..., 0].max() < 40  # was 200
        assert np.array_equal(image[:20], frame[0][:20]) and np.array_equal(image[:, 80:], frame[0][:, 80:])

    def test_what_is_copied_comes_from_the_frame(self):
        image, mask = phantom(seed=3, index=1, size=128)
        painted, _ = transformed(PaintOut(max_area=1, p=1), image, (mask > 0).astype(np.uint8))
        changed = (painted != image).any(axis=2)
        assert changed.any() and (mask[changed] > 0).mean() > 0.3
        assert changed[mask > 0].mean() > 0.9

    def test_large_polyps_and_empty_frames_are_left(self, frame):
        for area, mask in ((0.01, frame[1]), (0.9, np.zeros_like(frame[1]))):
            image, left = transformed(PaintOut(max_area=area, p=1), frame[0], mask)
            assert np.array_equal(image, frame[0]) and np.array_equal(left, mask)

    def test_without_room_to_copy_from_the_frame_is_left(self, frame):
        mask = np.ones_like(frame[1])
        mask[:, :8] = 0
        image, left = transformed(PaintOut(max_area=1, p=1), frame[0], mask)
        assert np.array_equal(image, frame[0]) and np.array_equal(left, mask)

    @pytest.mark.parametrize("side", ["top", "bottom", "left", "right"])
    def test_a_polyp_at_the_border_is_covered_but_for_the_outermost_pixel(self, frame, side):
        image, mask = frame[0].copy(), np.zeros_like(frame[1])
        part = {
            "top": np.s_[:15, 50:70],
            "bottom": np.s_[-15:, 50:70],
            "left": np.s_[30:50, :15],
            "right": np.s_[30:50, -15:],
        }
        image[:], mask[part[side]] = (0, 120, 0), 1
        image[mask > 0] = 200, 0, 0
        painted, left = transformed(PaintOut(p=1), image, mask)
        assert not left.any()
        assert painted[4:-4, 4:-4, 0].mean() < image[4:-4, 4:-4, 0].mean() / 2


def test_both_are_pure_functions_of_seed_epoch_and_index(frame):
    spec = [{"PolypFreeCrop": {"p": 0.5}}, {"PaintOut": {"p": 0.5}}]
    samples = [Augmentation(spec, 1)(*frame, 0, index) for index in range(12)]
    augmentation = Augmentation(spec, 1)
    for index in reversed(range(12)):
        assert all(map(np.array_equal, augmentation(*frame, 0, index), samples[index]))
    assert 0 < sum(not mask.any() for _, mask in samples) < 12


class TestLargestFreeCrop:
    def test_it_is_the_largest_rectangle_beside_the_polyp(self):
        labels = np.zeros((64, 64), np.uint8)
        labels[20:30, 10:20] = 1  # free: 34 x 64 below, 64 x 44 to the right
        crop = largest_free_crop(Image.new("RGB", (64, 64), (90, 20, 20)), labels)
        assert crop.size == (44, 64)

    def test_no_pixel_of_the_polyp_is_in_it_at_any_size(self):
        for index in range(6):
            image, mask = phantom(seed=1, index=index, size=200 + 37 * index)
            marked = image.copy()
            marked[mask > 0], marked[mask == 0] = 255, 100
            crop = largest_free_crop(Image.fromarray(marked), (mask > 0).astype(np.uint8), min_side=0.1)
            assert (np.asarray(crop) == 100).all()

    def test_none_where_the_polyp_leaves_too_little_or_what_is_left_is_black(self):
        labels = np.zeros((64, 64), np.uint8)
        labels[10:54, 10:54] = 1
        bright = Image.new("RGB", (64, 64), (90, 20, 20))
        assert largest_free_crop(bright, labels) is None
        assert largest_free_crop(bright, labels, min_side=0.15).size in ((64, 10), (10, 64))
        assert largest_free_crop(Image.new("RGB", (64, 64)), np.zeros_like(labels)) is None

    @pytest.mark.parametrize("seed", range(20))
    def test_the_rectangle_is_the_one_that_trying_all_finds(self, seed):
        free = np.random.default_rng(seed).random((7, 9)) > 0.3
        top, left, bottom, right = _largest_rectangle(free)
        assert free[top:bottom, left:right].all()
        areas = [
            (b - t) * (r - l)
            for t in range(7) for b in range(t + 1, 8) for l in range(9) for r in range(l + 1, 10)  # noqa: E741
            if free[t:b, l:r].all()
        ]  # fmt: skip
        assert (bottom - top) * (right - left) == max(areas, default=0)
