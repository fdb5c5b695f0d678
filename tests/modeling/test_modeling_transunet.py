"""The transformer over the deepest map: Chen et al. 2021."""

import pytest
import torch
import torch.nn.functional as F

from tests.variants import config_class, small_model


@torch.no_grad()
def test_every_pixel_of_the_deepest_map_reaches_every_other():
    model = small_model("transunet").eval()
    deepest = torch.rand(1, model.encoder.channels[-1], 5, 6)
    before, _ = model.decoder.bottleneck(deepest)
    deepest[0, :, 0, 0] += 1
    changed = (model.decoder.bottleneck(deepest)[0] != before).any(dim=1)[0]
    assert before.shape == deepest.shape
    assert changed[-1, -1]  # further than any 3x3 convolution of the bottleneck sees


@pytest.mark.parametrize("size", [(4, 4), (6, 3)])
@torch.no_grad()
def test_positions_are_a_grid_interpolated_to_the_deepest_map(size):
    bottleneck = small_model("transunet", position_grid=4).decoder.bottleneck.eval()
    assert bottleneck.positions.std() == pytest.approx(0.02, rel=0.2)
    tokens = []
    bottleneck.layers[0].register_forward_pre_hook(lambda _, inputs: tokens.append(inputs[0]))
    deepest = torch.rand(1, bottleneck.embedding.in_channels, *size)
    bottleneck(deepest)
    added = tokens[0].transpose(1, 2).unflatten(2, size) - bottleneck.embedding(deepest)
    expected = F.interpolate(bottleneck.positions, size, mode="bilinear") if size != (4, 4) else bottleneck.positions
    torch.testing.assert_close(added, expected)


@torch.no_grad()
def test_attention_runs_as_the_implementation_says(tmp_path, monkeypatch):
    model = small_model("transunet").eval()
    model.save_pretrained(tmp_path)
    pixels = torch.rand(2, 3, 40, 56)
    calls = []
    fused = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(0) or fused(*a, **k))
    sdpa, eager = (
        type(model).from_pretrained(tmp_path, attn_implementation=name).eval() for name in ("sdpa", "eager")
    )
    assert model.config._attn_implementation == "sdpa"
    expected = sdpa(pixels, output_attentions=True)
    assert len(calls) == 2  # one a layer
    assert expected.attentions is None
    output = eager(pixels, output_attentions=True)
    assert len(calls) == 2
    torch.testing.assert_close(output.logits, expected.logits)
    tokens = 5 * 7  # at stride 8
    assert [tuple(weights.shape) for weights in output.attentions] == [(2, 2, tokens, tokens)] * 2
    for weights in output.attentions:
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 2, tokens))
    eager.config.output_attentions = True
    assert len(eager(pixels).attentions) == 2


def test_the_base_model_of_the_paper():
    """Section 4.2: 12 layers, input of 224 pixels and stride 16; the widths are those of ViT-B."""
    config = config_class("transunet")()
    assert (config.hidden_size, config.intermediate_size) == (768, 3072)
    assert (config.num_hidden_layers, config.num_attention_heads) == (12, 12)
    assert config.position_grid == 224 // 16


def test_fields_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="hidden_size must be a multiple of num_attention_heads, got 10 and 4"):
        config_class("transunet")(hidden_size=10, num_attention_heads=4)
    with pytest.raises(ValueError, match="num_hidden_layers must be at least 1"):
        config_class("transunet")(num_hidden_layers=0)
