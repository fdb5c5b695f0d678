"""Weights to int8: nearest steps alone, and together so that a convolution's results change least."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hub_unets.hub_repos.repository.rounding import (
    MOST_STEPS,
    channel_scales,
    has_moments,
    input_moments,
    rounded,
    rounded_alone,
)


def test_each_channel_has_its_own_scale_and_nearest_steps():
    weight = np.array([[1.0, -2.0, 0.0], [0.01, 0.006, 0.0]], np.float32)[:, :, None, None]
    scales = channel_scales(weight, 0)
    assert np.allclose(scales, [2 / 127, 0.01 / 127]) and scales.dtype == np.float32
    assert rounded_alone(weight, scales, 0)[:, :, 0, 0].tolist() == [[64, -127, 0], [127, 76, 0]]
    transposed = weight.transpose(1, 0, 2, 3)
    assert np.array_equal(rounded_alone(transposed, channel_scales(transposed, 1), 1)[:, 0, 0, 0], [64, -127, 0])


def test_a_channel_of_zeros_stays_zero():
    weight = np.zeros((2, 3, 1, 1), np.float32)
    assert not rounded_alone(weight, channel_scales(weight, 0), 0).any()


@pytest.mark.parametrize(
    "options", [{}, {"strides": [2, 2], "pads": [0, 1, 1, 0]}, {"group": 2, "pads": [1, 1, 1, 1]}]
)
def test_moments_predict_the_mean_square_of_the_results(options):
    generator = torch.Generator().manual_seed(0)
    group = options.get("group", 1)
    values = torch.randn(1, 4, 9, 8, generator=generator)
    weight = torch.randn(6, 4 // group, 3, 3, generator=generator)
    top, left, bottom, right = options.get("pads", [0] * 4)
    results = F.conv2d(
        F.pad(values, (left, right, top, bottom)), weight, stride=options.get("strides", 1), groups=group
    )
    moments = input_moments(values.numpy(), weight.numpy(), options)
    kernels = weight.reshape(group, 6 // group, -1).double().numpy()
    predicted = np.einsum("gok,gkl,gol->go", kernels, moments, kernels).ravel()
    assert np.allclose(predicted, results.double().square().sum((0, 2, 3)).numpy(), rtol=1e-4)


def test_rounding_together_beats_rounding_alone_on_smooth_inputs():
    """On inputs that are alike, as neighbouring pixels are, errors made up for cancel; none is far from its weight."""
    random = np.random.default_rng(0)
    weight = random.normal(size=(16, 4, 3, 3)).astype(np.float32)
    inputs = random.normal(size=(500, 4)).repeat(9, axis=1) + 0.1 * random.normal(size=(500, 36))
    scales, moments = channel_scales(weight, 0), (inputs.T @ inputs)[None]

    def error(steps):
        lost = steps * scales[:, None, None, None] - weight
        return np.square(inputs @ lost.reshape(16, 36).T).mean()

    together, alone = rounded(weight, scales, moments), rounded_alone(weight, scales, 0)
    assert error(together) < 0.3 * error(alone)
    assert np.abs(together - weight / scales[:, None, None, None]).max() <= MOST_STEPS + 1e-3
    assert np.abs(together).max() <= 127 and together.dtype == np.int8


def test_inputs_that_were_always_zero_are_rounded_alone():
    weight = np.random.default_rng(0).normal(size=(3, 5, 1, 1)).astype(np.float32)
    scales = channel_scales(weight, 0)
    assert np.array_equal(rounded(weight, scales, np.zeros((1, 5, 5))), rounded_alone(weight, scales, 0))


def test_too_many_inputs_are_rounded_alone():
    assert has_moments(np.zeros((1, 2048, 1, 1))) and not has_moments(np.zeros((1, 228, 3, 3)))
