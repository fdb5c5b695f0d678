"""Which node sees which: figure 1a of Zhou et al. 2018."""

import pytest
import torch

from tests.variants import config_class, model_class, small_model


def inputs_of(model, encoder_channels, widths):
    """Input channels of each node's first convolution, and what figure 1a wants of them."""
    found = {name: node.conv[0][0].in_channels for name, node in model.decoder.nodes.items()}
    wanted = {}
    for name in found:
        level, column = map(int, name.split("_"))
        wanted[name] = encoder_channels[level] + (column - 1) * widths[level] + widths[level]
    return found, wanted


def test_nodes_of_the_plain_network():
    model = small_model("unetplusplus", depth=4)
    assert set(model.decoder.nodes) == {f"{i}_{j}" for i in range(4) for j in range(1, 5 - i)}
    found, wanted = inputs_of(model, model.encoder.channels, [4, 8, 16, 32])
    assert found == wanted


def test_parameters_at_the_papers_widths():
    with torch.device("meta"):
        model = model_class("unetplusplus")(config_class("unetplusplus")(base_channels=32))
    assert round(sum(one.numel() for one in model.parameters()) / 1e6, 2) == 9.05


@torch.no_grad()
def test_each_node_reads_every_earlier_one_of_its_level():
    model = small_model("unetplusplus", depth=3, batch_norm=False).eval()
    seen = {}
    for name, node in model.decoder.nodes.items():
        node.register_forward_hook(lambda _, maps, result, name=name: seen.update({name: (maps, result)}))
    features = model.encoder(torch.rand(1, 3, 32, 32))
    model.decoder(features)
    maps = {f"{level}_0": one for level, one in enumerate(features)} | {name: one for name, (_, one) in seen.items()}
    for name, (read, _) in seen.items():
        level, column = map(int, name.split("_"))
        wanted = [f"{level + 1}_{column - 1}", *(f"{level}_{before}" for before in range(column))]
        assert all(one is maps[other] for one, other in zip(read, wanted, strict=True)), name


def test_valid_padding_is_refused():
    with pytest.raises(ValueError, match="padding must be 'same'"):
        config_class("unetplusplus")(padding="valid")
