"""The transformer over the deepest map: Chen et al. 2021."""

import pytest
import torch
from torch import nn

from modeling.modeling_transunet import TransUNetLayer
from tests.variants import config_class, small_config, small_model


@torch.no_grad()
def test_layer_equals_torchs():
    config = small_config("transunet")
    ours = TransUNetLayer(config).eval()
    theirs = nn.TransformerEncoderLayer(
        config.hidden_size, config.num_attention_heads, config.intermediate_size, 0.0, "gelu", 1e-6, True, True
    ).eval()
    renamed = {
        "attention_norm": "norm1", "query_key_value": "self_attn.in_proj", "projection": "self_attn.out_proj",
        "perceptron.0": "norm2", "perceptron.1": "linear1", "perceptron.3": "linear2",
    }  # fmt: skip
    state = {}
    for key, tensor in ours.state_dict().items():
        part, _, kind = key.rpartition(".")
        name = renamed[part]
        state[f"{name}_{kind}" if name.endswith("in_proj") else f"{name}.{kind}"] = tensor.normal_(std=0.3)
    theirs.load_state_dict(state)
    tokens = torch.randn(2, 7, config.hidden_size)
    torch.testing.assert_close(ours(tokens), theirs(tokens))


@torch.no_grad()
def test_every_pixel_of_the_deepest_map_reaches_every_other():
    model = small_model("transunet").eval()
    deepest = torch.rand(1, model.encoder.channels[-1], 5, 6)
    before = model.decoder.bottleneck(deepest)
    deepest[0, :, 0, 0] += 1
    changed = (model.decoder.bottleneck(deepest) != before).any(dim=1)[0]
    assert before.shape == deepest.shape
    assert changed[-1, -1]  # further than any 3x3 convolution of the bottleneck sees


@torch.no_grad()
def test_positions_tell_equal_pixels_apart():
    model = small_model("transunet", batch_norm=False).eval()
    model.decoder.bottleneck.expansion[0].weight.abs_()
    tokens = []
    model.decoder.bottleneck.layers[0].register_forward_pre_hook(lambda _, inputs: tokens.append(inputs[0]))
    model.decoder.bottleneck(torch.ones(1, model.encoder.channels[-1], 4, 4))
    assert len({tuple(row) for row in tokens[0][0].round(decimals=6).tolist()}) == 16
    assert model.decoder.bottleneck.positions.std() == pytest.approx(0.02, rel=0.2)


def test_fields_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="hidden_size must be a multiple of num_attention_heads, got 10 and 4"):
        config_class("transunet")(hidden_size=10, num_attention_heads=4)
    with pytest.raises(ValueError, match="num_hidden_layers must be at least 1"):
        config_class("transunet")(num_hidden_layers=0)
