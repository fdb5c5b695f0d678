"""Multiply-accumulates by hand, and milliseconds of real passes."""

import pytest
import torch
from PIL import Image

from hub_unets.modeling.image_processing_unet import UNetImageProcessor
from hub_unets.modeling.modeling_unet import UNetForSemanticSegmentation
from hub_unets.training.measure.cost import cpu_milliseconds, end_to_end_milliseconds, gmacs
from tests.variants import small_config, small_model


def test_gmacs_by_hand():
    model = UNetForSemanticSegmentation(small_config(base_channels=2, depth=1))
    full = 9 * (3 * 2 + 2 * 2)  # a pixel's at full resolution, contracting
    deep = 9 * (2 * 4 + 4 * 4)  # a pixel's of the quarter at half resolution
    up = 4 * 4 * 2  # a deep pixel to four of the transposed convolution
    expanding = 9 * (4 * 2 + 2 * 2) + 2 * 1  # and the head
    expected = 16 * 16 * (full + expanding) + 8 * 8 * (deep + up)
    assert gmacs(model, 16) == pytest.approx(expected / 1e9, rel=1e-12)


def test_a_linear_layer_of_the_transformer_counts():
    small, wide = (small_model("transunet", intermediate_size=width) for width in (32, 64))
    tokens, layers, hidden = (64 // 8) ** 2, 2, 16
    assert gmacs(wide, 64) - gmacs(small, 64) == pytest.approx(2 * 32 * hidden * tokens * layers / 1e9)


def test_the_model_is_left_as_it_was():
    model = small_model().train()
    gmacs(model, 32)
    assert model.training and model.device == torch.device("cpu")


def test_milliseconds_of_each_model():
    times = cpu_milliseconds({"a": small_model, "b": lambda: small_model("resunet")}, {"a": 32, "b": 64}, rounds=1)
    assert times.keys() == {"a", "b"} and all(0 < value < 10_000 for value in times.values())


def test_end_to_end_milliseconds():
    images = [Image.new("RGB", (width, 40)) for width in (30, 50, 70)]
    record = end_to_end_milliseconds(small_model().eval(), UNetImageProcessor(size=32), images)
    assert 0 < record["p50"] <= record["p95"] < 10_000
    assert (record["images"], record["threads"]) == (3, torch.get_num_threads())
