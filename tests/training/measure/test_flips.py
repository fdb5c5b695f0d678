"""Mean and disagreement of an image and its mirror images."""

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import SemanticSegmenterOutput

from hub_unets.training.measure.flips import predict_with_flips


class Filter(nn.Module):
    """Logits from one convolution, 1x1 unless a 3x3 kernel is given for the one channel."""

    def __init__(self, channels=1, kernel=None):
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 1 if kernel is None else 3, padding=0 if kernel is None else 1, bias=False)
        if kernel is not None:
            self.conv.weight.data = torch.tensor(kernel).expand(1, 3, 3, 3).clone() / 3

    def forward(self, pixel_values):
        return SemanticSegmenterOutput(logits=self.conv(pixel_values))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_model_that_mirrors_with_its_input_is_certain(channels):
    model, pixels = Filter(channels), torch.randn(2, 3, 5, 7)
    flipped = predict_with_flips(model, pixels)
    torch.testing.assert_close(flipped.logits, model(pixels).logits, rtol=0, atol=1e-6)
    assert flipped.logits.shape == (2, channels, 5, 7)
    assert flipped.uncertainty.shape == (2, 5, 7) and flipped.uncertainty.max() < 1e-6


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_a_model_that_looks_left(scale):
    """It says at a pixel what stands left of it: two of the flips say what stands right of it."""
    model = Filter(kernel=[[0.0, 0, 0], [scale, 0, 0], [0, 0, 0]])
    flipped = predict_with_flips(model, torch.tensor([1.0, 2.0, 5.0]).expand(1, 3, 1, 3))
    assert flipped.logits[0, 0, 0].tolist() == pytest.approx([scale * 1, scale * 3, scale * 1])
    left, right = torch.tensor([[0.0, 1.0, 2.0], [2.0, 5.0, 0.0]]).mul(scale).sigmoid()
    torch.testing.assert_close(flipped.uncertainty[0, 0], (left - right).abs() / 2)


def test_every_direction_is_mirrored():
    model = Filter(kernel=[[1.0, 0, 0], [0, 0, 0], [0, 0, 0]])
    pixels = torch.zeros(1, 3, 3, 3)
    pixels[..., 0, 0] = 4.0
    assert predict_with_flips(model, pixels).logits[0, 0].tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]
    pixels = torch.zeros(1, 3, 3, 3)
    pixels[..., 1, 1] = 4.0
    assert predict_with_flips(model, pixels).logits[0, 0].tolist() == [[1, 0, 1], [0, 0, 0], [1, 0, 1]]
