"""Which node sees which: figure 1a of Zhou et al. 2018."""

import pytest
import torch

from tests.variants import config_class, model_class, small_model


def inputs_of(model, encoder_channels, widths):
    """Input channels of each node's first convolution, and those of figure 1a."""
    channels = {name: node.conv[0][0].in_channels for name, node in model.decoder.nodes.items()}
    expected = {}
    for name in channels:
        level, column = map(int, name.split("_"))
        expected[name] = encoder_channels[level] + (column - 1) * widths[level] + widths[level]
    return channels, expected


def test_nodes_of_the_plain_network():
    model = small_model("unetplusplus", depth=4)
    assert set(model.decoder.nodes) == {f"{i}_{j}" for i in range(4) for j in range(1, 5 - i)}
    channels, expected = inputs_of(model, model.encoder.channels, [4, 8, 16, 32])
    assert channels == expected


@pytest.mark.parametrize(("variant", "parameters"), [("unetplusplus", 9_041_601), ("unet", 7_759_521)])
def test_parameters_of_the_authors_code(variant, parameters):
    """The counts in its comments, for grey images without batch norm; the paper says 9.04 M, and 7.76 M for U-Net."""
    config = config_class(variant)(base_channels=32, num_channels=1, batch_norm=False)
    with torch.device("meta"):
        assert model_class(variant)(config).num_parameters() == parameters


@torch.no_grad()
def test_each_node_reads_every_earlier_one_of_its_level():
    model = small_model("unetplusplus", depth=3, batch_norm=False).eval()
    calls = {}
    for name, node in model.decoder.nodes.items():
        node.register_forward_hook(lambda _, maps, result, name=name: calls.update({name: (maps, result)}))
    features = model.encoder(torch.rand(1, 3, 32, 32))
    model.decoder(features)
    maps = {f"{level}_0": output for level, output in enumerate(features)} | {
        name: output for name, (_, output) in calls.items()
    }
    for name, (inputs, _) in calls.items():
        level, column = map(int, name.split("_"))
        sources = [f"{level + 1}_{column - 1}", *(f"{level}_{earlier}" for earlier in range(column))]
        assert all(feature_map is maps[source] for feature_map, source in zip(inputs, sources, strict=True)), name


@torch.no_grad()
def test_a_supervised_node_sees_no_level_below_its_own_u_net():
    """Pruning, figure 1c: node X(0,j) is the output of a U-Net of j levels."""
    model = small_model("unetplusplus", depth=4, batch_norm=False, deep_supervision=True).train()
    features = model.encoder(torch.rand(1, 3, 32, 32))
    expected = model.decoder(features).auxiliary_logits
    for level in range(5):
        changed_features = [level_map + (number == level) for number, level_map in enumerate(features)]
        outputs = model.decoder(changed_features).auxiliary_logits
        equal = [torch.equal(logits, output) for logits, output in zip(expected, outputs, strict=True)]
        assert equal == [level > column for column in (1, 2, 3)]


def test_valid_padding_is_refused():
    with pytest.raises(ValueError, match="padding must be 'same'"):
        config_class("unetplusplus")(padding="valid")
