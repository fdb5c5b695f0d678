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


@pytest.mark.parametrize(("variant", "parameters"), [("unetplusplus", 9_041_601), ("unet", 7_759_521)])
def test_parameters_of_the_authors_code(variant, parameters):
    """The counts in its comments, for grey images without batch norm; the paper says 9.04 M, and 7.76 M for U-Net."""
    config = config_class(variant)(base_channels=32, num_channels=1, batch_norm=False)
    with torch.device("meta"):
        assert sum(one.numel() for one in model_class(variant)(config).parameters()) == parameters


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


@torch.no_grad()
def test_a_supervised_node_sees_no_level_below_its_own_u_net():
    """Pruning, figure 1c: node X(0,j) is the output of a U-Net of j levels."""
    model = small_model("unetplusplus", depth=4, batch_norm=False, deep_supervision=True).train()
    features = model.encoder(torch.rand(1, 3, 32, 32))
    before = model.decoder(features).auxiliary_logits
    for level in range(5):
        changed = [one + (number == level) for number, one in enumerate(features)]
        after = model.decoder(changed).auxiliary_logits
        assert [not torch.equal(one, other) for one, other in zip(before, after, strict=True)] == [
            level <= column for column in (1, 2, 3)
        ]


def test_valid_padding_is_refused():
    with pytest.raises(ValueError, match="padding must be 'same'"):
        config_class("unetplusplus")(padding="valid")
