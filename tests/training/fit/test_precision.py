import copy

import pytest
import torch
from torch import nn

from hub_unets.training.fit.precision import Float32Conv2d, depthwise_in_float32


@pytest.mark.parametrize(
    ("conv", "changed"),
    [
        (nn.Conv2d(8, 8, 3, stride=2, groups=8), True),
        (nn.Conv2d(8, 16, 5, groups=8), True),
        (nn.Conv2d(8, 8, 3, groups=8), False),
        (nn.Conv2d(8, 8, 3, stride=2, groups=2), False),
        (nn.Conv2d(1, 8, 7, stride=2), False),
    ],
)
def test_which_layers(conv, changed):
    model = nn.Sequential(nn.ReLU(), conv)
    assert depthwise_in_float32(model) == changed
    assert type(model[1]) is (Float32Conv2d if changed else nn.Conv2d)
    assert depthwise_in_float32(model) == 0


def test_float32_under_autocast_and_the_rest_as_before():
    torch.manual_seed(0)
    conv, pixels = nn.Conv2d(8, 8, 5, groups=8), torch.randn(2, 8, 16, 16)
    keys, exact = [*conv.state_dict()], conv(pixels)
    (exact**2).sum().backward()
    gradient, conv.weight.grad = conv.weight.grad, None
    depthwise_in_float32(conv)
    assert [*conv.state_dict()] == keys
    assert torch.equal(conv(pixels), exact)
    with torch.autocast("cpu", torch.bfloat16):
        features = conv(pixels)
    assert torch.equal(features, exact.bfloat16())
    (features.float() ** 2).sum().backward()
    assert torch.allclose(conv.weight.grad, gradient, rtol=0.01, atol=0.01 * gradient.abs().max().item())


def test_a_copy_has_weights_of_its_own():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, stride=2, groups=4))
    depthwise_in_float32(model)
    copied = copy.deepcopy(model)
    nn.init.zeros_(model[0].weight)
    assert not torch.equal(copied(torch.ones(1, 4, 8, 8)), model(torch.ones(1, 4, 8, 8)))
