"""Which level reads which map, and how: section 2.1 of Huang et al. 2020."""

import pytest
import torch
from torch import nn

from hub_unets.modeling.modeling_unet3plus import UNet3PlusNode
from tests.variants import config_class, model_class, small_config, small_model


def test_five_connections_of_64_at_every_level():
    with torch.device("meta"):
        model = model_class("unet3plus")(config_class("unet3plus")())
    count = sum(parameter.numel() for parameter in model.parameters())
    biases = 2 * (64 + 128 + 256 + 512 + 1024) + 4 * (5 * 64 + 320)  # before batch norms; ours has none
    wider_head = 320 * (9 - 1)  # the paper's last convolution is 3x3
    assert count + biases + wider_head == 26_971_777  # of the authors' code; the paper says 26.97 M
    for node in model.decoder.nodes:
        assert node.levels == [0, 1, 2, 3, 4]
        assert [connection[0].out_channels for connection in node.connections] == [64] * 5
        assert node.fusion[0].out_channels == 320


@torch.no_grad()
def test_each_level_reads_encoder_maps_above_and_beside_and_decoder_maps_below():
    model = small_model("unet3plus", depth=3, decoder_channels=[4, 4, 4]).eval()
    inputs, outputs = {}, {}
    for node in model.decoder.nodes:

        def remember(node, maps, result):
            inputs[node.level], outputs[node.level] = maps, result

        node.register_forward_hook(remember)
    features = model.encoder(torch.rand(1, 3, 32, 32))
    model.decoder(features)
    outputs[3] = features[3]
    for level in range(3):
        expected = [features[source] if source <= level else outputs[source] for source in range(4)]
        assert all(actual is source_map for actual, source_map in zip(inputs[level], expected, strict=True)), level


@torch.no_grad()
def test_maps_above_are_pooled_and_maps_below_interpolated():
    node = UNet3PlusNode(small_config("unet3plus"), 1, {0: 1, 1: 1, 2: 1, 3: 1}, 1)
    node.connections = nn.ModuleList(nn.Identity() for _ in range(4))
    node.fusion = nn.Identity()
    maps = [torch.arange(side * side, dtype=torch.float32).view(1, 1, side, side) for side in (8, 4, 2, 1)]
    above, beside, below, deepest = node(*maps)[0]
    assert above.tolist() == [[row + 9 + column for column in (0, 2, 4, 6)] for row in (0, 16, 32, 48)]
    assert torch.equal(beside, maps[1][0, 0])
    assert below[0].tolist() == [0, 0.25, 0.75, 1] and below[:, 0].tolist() == [0, 0.5, 1.5, 2]
    assert not deepest.any()


def test_levels_without_a_skip_are_plain_blocks():
    model = small_model("unet3plus", "convnext_atto", detail_channels=0)
    assert [isinstance(node, UNet3PlusNode) for node in model.decoder.nodes] == [True, True, True, False, False]
    assert model.decoder.nodes[0].levels == [2, 3, 4, 5]


def test_wrong_number_of_widths_is_refused():
    with pytest.raises(ValueError, match="decoder_channels needs 5 widths"):
        small_model("unet3plus", "resnet18", decoder_channels=[8, 8])
