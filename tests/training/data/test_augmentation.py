"""Augmented pixels depend on (seed, epoch, index) and nothing else, and the mask goes where the image goes."""

import random
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hub_unets.training.data.augmentation import Augmentation
from hub_unets.training.data.samples import EpochSampler, TrainingSamples, collate
from hub_unets.training.settings.recipes import RECIPES, read_recipe

SPEC = [
    {"HorizontalFlip": {"p": 0.5}},
    {"Affine": {"scale": [0.8, 1.2], "rotate": [-90, 90], "shear": [-8, 8], "p": 1.0}},
    {"ColorJitter": {"p": 1.0}},
    {"GaussNoise": None},
]
AUGMENTED_RECIPES = [path for path in sorted(RECIPES.glob("*.yaml")) if read_recipe(path).get("augmentation")]


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (32, 40, 3), np.uint8), rng.integers(0, 2, (32, 40), np.uint8)


def same(first, second):
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


class TestPureFunction:
    def test_same_seed_epoch_and_index_give_the_same_pixels(self, pair):
        augmentation = Augmentation(SPEC, seed=3)
        first = augmentation(*pair, 2, 7)
        for seed in (0, 1, 2):
            augmentation(*pair, seed, 5)
        assert same(first, augmentation(*pair, 2, 7))
        assert same(first, Augmentation(SPEC, seed=3)(*pair, 2, 7))
        assert not same(first, pair)

    @pytest.mark.parametrize(("seed", "epoch", "index"), [(4, 2, 7), (3, 3, 7), (3, 2, 8), (3, 7, 2)])
    def test_any_other_number_gives_other_pixels(self, pair, seed, epoch, index):
        first, second = Augmentation(SPEC, 3)(*pair, 2, 7), Augmentation(SPEC, seed)(*pair, epoch, index)
        assert not np.array_equal(first[0], second[0])

    def test_global_generators_are_neither_read_nor_moved(self, pair):
        augmentation = Augmentation(SPEC, 0)
        expected = augmentation(*pair, 1, 1)
        for seed in (1, 2):
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
            assert same(expected, augmentation(*pair, 1, 1))
            assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())

    def test_workers_see_the_same_batches(self, pair):
        batches = [self._batches(pair, workers) for workers in (0, 2)]
        assert len(batches[0]) == 6
        assert all(map(torch.equal, *batches))
        assert not torch.equal(batches[0][0], batches[0][2])

    @staticmethod
    def _batches(pair, workers):
        """pixel_values and labels of two epochs of three batches, the second epoch in other workers."""
        image, mask = pair
        size = {"height": 32, "width": 40}
        processor = SimpleNamespace(
            takes_rgb=True,
            size=size,
            normalize=lambda pixels: pixels.transpose(0, 3, 1, 2) / np.float32(255),
            mirror=lambda array: array,
        )
        rows = [{"pixels": np.roll(image, i, 0).tobytes(), "labels": mask.tobytes()} for i in range(5)]
        samples = TrainingSamples(rows, processor, Augmentation(SPEC, 1))
        sampler = EpochSampler(5, seed=1)
        loader = torch.utils.data.DataLoader(samples, 2, sampler=sampler, num_workers=workers, collate_fn=collate)
        batches = []
        for epoch in (0, 1):
            sampler.set_epoch(epoch)
            batches += [torch.cat([batch["pixel_values"], batch["labels"][:, None]], 1) for batch in loader]
        return batches


class TestMask:
    def test_moves_with_the_image(self):
        square = np.zeros((64, 64), np.uint8)
        square[10:34, 20:50] = 1
        image = np.repeat(square[..., None] * 255, 3, axis=2)
        augmentation = Augmentation([SPEC[0], SPEC[1]], 0)
        for index in range(10):
            moved, mask = augmentation(image, square, 0, index)
            assert np.unique(mask).tolist() == [0, 1]
            assert not np.array_equal(mask, square)
            differing = (moved[..., 0] > 127) != mask  # bilinear against nearest: only pixels on the outline
            assert differing.sum() <= 0.1 * mask.sum()

    def test_labels_are_never_blended(self):
        classes = np.random.default_rng(0).choice(np.uint8([0, 2, 255]), (48, 48))
        image = np.zeros((48, 48, 3), np.uint8)
        for index in range(5):
            _, mask = Augmentation(SPEC, 0)(image, classes, 0, index)
            assert mask.dtype == np.uint8
            assert set(np.unique(mask)) <= {0, 2, 255}

    def test_colours_leave_it(self, pair):
        image, mask = Augmentation(SPEC[2:], 0)(*pair, 0, 0)
        assert np.array_equal(mask, pair[1])
        assert not np.array_equal(image, pair[0])


def test_an_empty_list_changes_nothing(pair):
    assert same(Augmentation([], 0)(*pair, 3, 4), pair)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            [{"HorizontalFlp": {}}],
            "'HorizontalFlp' is not an albumentations transform; did you mean HorizontalFlip[?]",
        ),
        ([{"affine": {}}], "'affine' is not an albumentations transform; did you mean Affine[?]"),
        ([{"Compose": {}}], "'Compose' is not an albumentations transform"),
        ([{"Affine": {"rotat": 5}}], "augmentation Affine has no argument 'rotat'; did you mean rotate[?]"),
        ([{"HorizontalFlip": {"p": 2}}], "(?s)augmentation HorizontalFlip: .*less than or equal to 1"),
        ([{"Affine": {"scale": "big"}}], "augmentation Affine: "),
        ([{"HorizontalFlip": 0.5}], "HorizontalFlip takes its arguments by name, like {p: 0.5}, got 0.5"),
        ([{"HorizontalFlip": {}, "VerticalFlip": {}}], "must list entries like .*, got {'HorizontalFlip': {}, 'V"),
        (["HorizontalFlip"], "must list entries like .*, got 'HorizontalFlip'"),
        ({"HorizontalFlip": {}}, "must be a list like .*, got {'HorizontalFlip': {}}"),
        (5, "must be a list like .*, got 5"),
    ],
)
def test_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(spec, 0)


@pytest.mark.parametrize("path", AUGMENTED_RECIPES, ids=lambda path: path.stem)
def test_recipes_build_without_a_warning_and_keep_the_shape(path, pair):
    spec = read_recipe(path)["augmentation"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        augmentation = Augmentation(spec, 0)
        changed = [augmentation(*pair, 0, index) for index in range(20)]
    assert {(image.shape, mask.shape) for image, mask in changed} == {((32, 40, 3), (32, 40))}
    assert sum(same(sample, pair) for sample in changed) < 15
