"""Glare only brightens, dye keeps the brightness's order, and neither touches the mask."""

import albumentations
import numpy as np
import pytest

from hub_unets.training.data.appearance import Dye, Glare, _bump
from hub_unets.training.data.augmentation import Augmentation


@pytest.fixture
def image():
    """Noise around a mucosa's colour, and a black margin."""
    image = np.random.default_rng(0).integers(60, 160, (64, 80, 3), np.uint8)
    image[:, :16] = 0
    return image


def transformed(transform, image, seed=0):
    compose = albumentations.Compose([transform])
    compose.set_random_seed(seed)
    return compose(image=image)["image"]


class TestGlare:
    @pytest.mark.parametrize("seed", range(4))
    def test_reflections_are_white_and_leave_the_margin_black(self, image, seed):
        result = transformed(Glare(spots=(8, 8), gain=(1, 1), p=1), image, seed)
        assert (result >= image).all()
        changed = (result > image).any(axis=2)
        assert 0.002 < changed.mean() < 0.3
        assert not result[:, :14].any()
        assert result[changed].min(axis=1).max() > 180  # towards white in every channel

    def test_over_exposure_multiplies_where_it_is_lit_and_clips(self, image):
        result = transformed(Glare(spots=(0, 0), gain=(3, 3), p=1), image)
        factor = result.astype(float)[:, 16:] / image[:, 16:]
        assert factor.min() >= 0.99 and factor.max() < 3.02 and factor.max() > 2
        assert (result == 255).any() and not result[:, :16].any()

    def test_without_either_the_frame_is_as_it_was(self, image):
        assert np.array_equal(transformed(Glare(spots=(0, 0), gain=(1, 1), p=1), image), image)

    def test_the_hill_is_one_at_its_top(self):
        hill = _bump(np.random.default_rng(3), 200, 200)
        assert hill.shape == (200, 200) and hill.dtype == np.float32
        assert 0.99 < hill.max() <= 1 and hill.min() >= 0


class TestDye:
    def test_at_full_strength_a_cast_leaves_grey_times_one_colour(self):
        ramp = np.repeat(np.arange(20, 100, dtype=np.uint8)[:, None], 60, axis=1)
        image = np.stack([ramp] * 3, axis=-1)
        for seed in range(30):
            result = transformed(Dye(strength=(1, 1), p=1), image, seed).astype(float)
            ratio = result / image
            if np.ptp(result, axis=1).max() == 0:  # a cast: alike along every row
                assert np.ptp(ratio[20:], axis=(0, 1)).max() < 0.05
                assert np.ptp(ratio[-1, 0]) > 0.1
                return
        pytest.fail("no cast was drawn")

    def test_patches_dye_a_part(self, image):
        parts = []
        for seed in range(12):
            result = transformed(Dye(strength=(0.7, 0.7), p=1), image, seed).astype(int)
            parts.append((np.abs(result - image).max(axis=2)[:, 16:] > 12).mean())
            assert not result[:, :16].any()  # black stays black
        assert min(parts) < 0.8 < max(parts)

    def test_strength_zero_changes_nothing(self, image):
        assert np.array_equal(transformed(Dye(strength=(0, 0), p=1), image), image)


def test_pure_functions_and_the_mask_stays(image):
    mask = (image[..., 0] > 100).astype(np.uint8)
    spec = [{"Glare": {"p": 0.6}}, {"Dye": {"p": 0.6}}]
    samples = [Augmentation(spec, 2)(image, mask, 0, index) for index in range(8)]
    augmentation = Augmentation(spec, 2)
    for index in reversed(range(8)):
        assert np.array_equal(augmentation(image, mask, 0, index)[0], samples[index][0])
        assert np.array_equal(samples[index][1], mask)
    assert len({result.tobytes() for result, _ in samples}) > 3


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"Glare": {"spots": [3, 1]}}, "spots must be two numbers from 0 and gain two from 1, the lower first"),
        ({"Glare": {"gain": [0.5, 1]}}, "spots must be two numbers from 0"),
        ({"Dye": {"strength": [0.5, 1.5]}}, "strength must be two shares in 0..1, the lower first, got"),
    ],
)
def test_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        Augmentation([spec], 0)
