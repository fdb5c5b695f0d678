"""The trial step: it measures, halves a batch that does not fit, and changes no weight."""

import ctypes

import numpy as np
import pytest
import torch

from hub_unets.modeling.image_processing_unet import UNetImageProcessor
from hub_unets.training.data.augmentation import Augmentation
from hub_unets.training.data.phantoms import phantom_dataset
from hub_unets.training.data.samples import TrainingSamples, cached_samples
from hub_unets.training.errors import UserError
from hub_unets.training.fit.losses import WeightedSum
from hub_unets.training.plan.trial import _fitting_on_gpu, try_steps
from hub_unets.training.settings.run_arguments import RunArguments
from tests.variants import small_model

LOSS = WeightedSum({"bce": 1, "dice": 1})
PLENTY = 2**50


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    processor = UNetImageProcessor(size=64)
    cached = cached_samples(
        phantom_dataset(3, size=64), ["a", "b", "c"], processor, 2, tmp_path_factory.mktemp("cache")
    )
    return TrainingSamples(cached, processor, Augmentation([{"HorizontalFlip": {"p": 0.5}}], 0))


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    return RunArguments(output_dir=str(tmp_path_factory.mktemp("run")), precision="fp32", use_cpu=True)


def test_measures_and_leaves_the_weights_alone(samples, arguments):
    model = small_model(base_channels=4, depth=2)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    trial = try_steps(model, samples, LOSS, arguments, 4, PLENTY)
    assert trial.batch == 4 and 0 < trial.seconds < 5
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_halves_a_batch_until_it_fits(samples, arguments, monkeypatch):
    sizes = []

    def bytes_of_step(self, batch):
        sizes.append(batch)
        return 100 * batch

    monkeypatch.setattr("hub_unets.training.plan.trial._Stepper.bytes_of_step", bytes_of_step)
    trial = try_steps(small_model(base_channels=4, depth=2), samples, LOSS, arguments, 16, memory=1000)
    assert (trial.batch, trial.memory, sizes) == (4, 400, [2, 4])
    with pytest.raises(UserError, match="2 images takes 200% of the free memory: give a smaller --image_size"):
        try_steps(small_model(base_channels=4, depth=2), samples, LOSS, arguments, 16, memory=100)
    with pytest.raises(UserError, match="of the free memory: give a smaller --image_size"):
        try_steps(small_model(base_channels=4, depth=2), samples, LOSS, arguments, 16, memory=0)


def test_a_gpu_keeps_its_share_too():
    class Stepper:
        def bytes_of_step(self, batch):
            return 100 * batch

    assert [_fitting_on_gpu(Stepper(), 16, memory) for memory in (1600, 1500, 100, 1)] == [16, 8, 1, 1]


def test_memory_grows_with_the_batch(samples, arguments):
    ctypes.CDLL(None).malloc_trim(0)  # what earlier tests freed would be taken again
    model = small_model(base_channels=16, depth=1)
    trial = try_steps(model, samples, LOSS, arguments, 16, PLENTY)
    assert trial.memory > 16 * 64 * 64 * 16 * 4  # one map of full resolution


def test_a_loss_that_is_not_finite(samples, arguments):
    model = small_model(base_channels=4, depth=2)
    with torch.no_grad():
        next(iter(model.parameters())).fill_(np.nan)
    with pytest.raises(UserError, match="the loss of a trial step is nan"):
        try_steps(model, samples, LOSS, arguments, 2, PLENTY)


def test_samples_are_shown_in_turn(samples, arguments, monkeypatch):
    drawn, take = [], TrainingSamples.__getitem__
    monkeypatch.setattr(TrainingSamples, "__getitem__", lambda self, key: drawn.append(key) or take(self, key))
    try_steps(small_model(base_channels=4, depth=2), samples, LOSS, arguments, 2, PLENTY)
    assert drawn[:4] == [(0, 0), (0, 1), (0, 2), (1, 0)]
