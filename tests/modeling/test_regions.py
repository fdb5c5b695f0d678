"""Connected regions are those of scipy."""

import numpy as np
import pytest
from scipy import ndimage

from hub_unets.modeling.regions import connected_components, regions_of


@pytest.mark.parametrize("density", [0.0, 0.05, 0.3, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (30, 1), (2, 2), (23, 31), (64, 50)])
def test_components_are_those_of_scipy(density, shape):
    random = np.random.default_rng(0)
    for _ in range(20):
        mask = random.random(shape) < density
        numbers, count = connected_components(mask)
        expected, expected_count = ndimage.label(mask, np.ones((3, 3)))
        assert count == expected_count
        assert np.array_equal(numbers > 0, mask)
        pairs = np.unique(np.stack([numbers[mask], expected[mask]]), axis=1)
        assert pairs.shape[1] == count  # each of our numbers has one of scipy's
        assert np.array_equal(np.unique(numbers[mask]), np.arange(1, count + 1))
        regions = regions_of(mask)
        assert np.array_equal(regions.areas(), np.bincount(numbers[mask], minlength=count + 1)[1:])
        boxes = [[x.start, y.start, x.stop - x.start, y.stop - y.start] for y, x in ndimage.find_objects(numbers)]
        assert regions.boxes().tolist() == boxes
