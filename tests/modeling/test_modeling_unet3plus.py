"""Which level reads which map: figure 2 and section 3.1 of Huang et al. 2020."""

import pytest
import torch

from modeling.modeling_unet3plus import UNet3PlusNode
from tests.variants import config_class, model_class, small_model


def test_five_connections_of_64_at_every_level():
    with torch.device("meta"):
        model = model_class("unet3plus")(config_class("unet3plus")())
    assert round(sum(one.numel() for one in model.parameters()) / 1e6, 2) == 26.96
    for node in model.decoder.nodes:
        assert node.levels == [0, 1, 2, 3, 4]
        assert [one[0].out_channels for one in node.connections] == [64] * 5
        assert node.fusion[0].out_channels == 320


@torch.no_grad()
def test_each_level_reads_encoder_maps_above_and_beside_and_decoder_maps_below():
    model = small_model("unet3plus", depth=3, decoder_channels=[4, 4, 4]).eval()
    read, made = {}, {}
    for node in model.decoder.nodes:

        def remember(node, maps, result):
            read[node.level], made[node.level] = maps, result

        node.register_forward_hook(remember)
    features = model.encoder(torch.rand(1, 3, 32, 32))
    model.decoder(features)
    made[3] = features[3]
    for level in range(3):
        wanted = [features[source] if source <= level else made[source] for source in range(4)]
        assert all(one is other for one, other in zip(read[level], wanted, strict=True)), level


def test_levels_without_a_skip_are_plain_blocks():
    model = small_model("unet3plus", "convnext_atto", detail_channels=0)
    assert [isinstance(node, UNet3PlusNode) for node in model.decoder.nodes] == [True, True, True, False, False]
    assert model.decoder.nodes[0].levels == [2, 3, 4, 5]


def test_wrong_number_of_widths_is_refused():
    with pytest.raises(ValueError, match="decoder_channels needs 5 widths"):
        small_model("unet3plus", "resnet18", decoder_channels=[8, 8])
