"""The gates of Oktay et al. 2018."""

import pytest
import torch

from hub_unets.modeling.modeling_attention_unet import AttentionGate
from tests.variants import small_model


@torch.no_grad()
def test_gate_by_hand():
    gate = AttentionGate(1, 2, batch_norm=False)
    gate.gating[0].weight.fill_(1.0)
    gate.skip[0].weight.copy_(torch.tensor([[[[1.0]], [[2.0]]]]))
    gate.map[0].weight.fill_(3.0)
    for convolution, bias in ((gate.gating, 0.5), (gate.skip, 0.0), (gate.map, -1.0)):
        convolution[0].bias.fill_(bias)
    skip = torch.tensor([1.0, -1.0]).view(1, 2, 1, 1)
    gated, attention = gate(skip, torch.tensor([1.0]).view(1, 1, 1, 1))
    # relu(1 + .5 + 1 - 2) = .5, sigmoid(3 x .5 - 1) = sigmoid(.5)
    assert attention.item() == pytest.approx(0.62245933)
    assert gated.flatten().tolist() == pytest.approx([0.62245933, -0.62245933])


@pytest.mark.parametrize(("encoder", "gates"), [("plain", 3), ("resnet18", 5), ("convnext_atto", 5)])
@torch.no_grad()
def test_maps_are_returned_on_request_deepest_first(encoder, gates):
    model = small_model("attention_unet", encoder).eval()
    pixels = torch.rand(2, 3, 64, 96)
    assert model(pixels).attentions is None
    attentions = model(pixels, output_attentions=True).attentions
    assert [tuple(attention.shape) for attention in attentions] == [
        (2, 1, 64 >> level, 96 >> level) for level in reversed(range(gates))
    ]
    assert all(attention.min() > 0 and attention.max() < 1 for attention in attentions)
    assert len(model(pixels, output_attentions=True, return_dict=False)) == 2


def test_levels_without_a_skip_have_no_gate():
    model = small_model("attention_unet", "convnext_atto", detail_channels=0)
    assert [block.gate is None for block in model.decoder.blocks] == [False, False, False, True, True]


@torch.no_grad()
def test_the_gate_decides_what_passes():
    model = small_model("attention_unet", batch_norm=False).eval()
    pixels = torch.rand(1, 3, 32, 32)
    before = model(pixels).logits
    for block in model.decoder.blocks:
        block.gate.map[0].weight.zero_()
        block.gate.map[0].bias.fill_(-100.0)  # closed
        block.conv[0][0].weight[:, : block.gate.skip[0].in_channels] *= 7  # the weights of a closed skip do not matter
    closed = model(pixels).logits
    for block in model.decoder.blocks:
        block.conv[0][0].weight[:, : block.gate.skip[0].in_channels] *= -3
    assert torch.equal(closed, model(pixels).logits)
    assert not torch.equal(before, closed)
