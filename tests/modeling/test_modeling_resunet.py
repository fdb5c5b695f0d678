"""The units of Zhang et al. 2018."""

import pytest
import torch
from torch import nn

from hub_unets.modeling.modeling_resunet import ResidualUnit
from tests.variants import config_class, small_model


@torch.no_grad()
def test_unit_by_hand():
    unit = ResidualUnit(1, 1, batch_norm=False)
    for convolution, weight, bias in ((unit.residual[1], 2.0, 1.0), (unit.residual[3], -3.0, 0.5)):
        convolution.weight.zero_()
        convolution.weight[0, 0, 1, 1] = weight
        convolution.bias.fill_(bias)
    features = torch.tensor([[-2.0, 0.5], [1.0, 3.0]]).view(1, 1, 2, 2)
    # x - 3 relu(2 relu(x) + 1) + .5
    assert unit(features).flatten().tolist() == [-2 - 3 + 0.5, 0.5 - 6 + 0.5, 1 - 9 + 0.5, 3 - 21 + 0.5]


def test_order_and_shortcuts():
    kinds = [type(layer) for layer in ResidualUnit(4, 8).residual]
    assert kinds == [nn.BatchNorm2d, nn.ReLU, nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Conv2d]
    assert [type(layer) for layer in ResidualUnit(4, 8, first=True).residual] == kinds[2:]
    assert isinstance(ResidualUnit(8, 8).shortcut, nn.Identity)
    assert isinstance(ResidualUnit(4, 8).shortcut[0], nn.Conv2d)
    assert ResidualUnit(8, 8, stride=2)(torch.rand(2, 8, 6, 6)).shape == (2, 8, 3, 3)


def test_plain_path_strides_and_has_no_pooling():
    encoder = small_model("resunet").encoder
    assert [stage.residual[0 if level == 0 else 2].stride for level, stage in enumerate(encoder.stages)] == [
        (1, 1), (2, 2), (2, 2), (2, 2),
    ]  # fmt: skip
    assert not [layer for layer in encoder.modules() if isinstance(layer, nn.MaxPool2d)]


def test_widths_of_the_paper():
    assert config_class("resunet")().depth == 3  # 64, 128, 256 and the bridge of 512: table 1
    with torch.device("meta"):
        assert small_model("resunet", base_channels=64).encoder.channels == [64, 128, 256, 512]


def test_valid_padding_is_refused():
    with pytest.raises(ValueError, match="padding must be 'same'"):
        config_class("resunet")(padding="valid")
