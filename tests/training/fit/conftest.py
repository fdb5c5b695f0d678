"""The Trainers' data, once a module."""

import pytest

from hub_unets.training.data.phantoms import phantom_dataset
from tests.training.fit.trainers import IMAGES, VALIDATION, make


@pytest.fixture(scope="module")
def rows():
    return phantom_dataset(IMAGES + VALIDATION, size=64)


@pytest.fixture(scope="module")
def make_trainer(rows, tmp_path_factory):
    """A function that builds a Trainer; see `tests.training.fit.trainers.make`."""
    cache = tmp_path_factory.mktemp("cache")

    def build(model, output_dir=None, table=rows, **options):
        return make(cache, table, model, output_dir or tmp_path_factory.mktemp("run"), **options)

    return build
