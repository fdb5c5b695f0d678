"""Adapters of peft on a plain transformer, the rest trained whole: as training/README.md shows it."""

import copy

import pytest
import torch

from hub_unets.modeling.modeling_unet import UNetForSemanticSegmentation
from tests.variants import small_model

peft = pytest.importorskip("peft", reason="pip install 'hub-unets[lora]'")

LORA = {
    "r": 4,
    "lora_alpha": 8,
    "target_modules": r"encoder\.backbone\.model\.blocks\..*\.(qkv|proj|fc1|fc2)",
    "modules_to_save": ["encoder.pyramid", "encoder.detail", "decoder", "head"],
}


def adapted_after_a_step(model):
    torch.manual_seed(3)
    adapted = peft.get_peft_model(model, peft.LoraConfig(**LORA)).train()
    optimizer = torch.optim.SGD([part for part in adapted.parameters() if part.requires_grad], lr=0.1)
    for _ in range(2):  # the first moves one factor of each adapter off zero, the second the other
        optimizer.zero_grad()
        adapted(torch.rand(2, 3, 64, 64), labels=torch.randint(0, 2, (2, 64, 64))).loss.backward()
        optimizer.step()
    return adapted.eval()


def without_adapters(state):
    return {name: tensor for name, tensor in state.items() if "lora_" not in name}


@torch.no_grad()
def test_merged_adapters_are_one_of_our_models(tmp_path):
    model = small_model(encoder="vit")
    before = copy.deepcopy(model.state_dict())
    with torch.enable_grad():
        adapted = adapted_after_a_step(model)
    pixels = torch.rand(1, 3, 65, 97)
    expected = adapted(pixels).logits
    merged = adapted.merge_and_unload()
    merged.save_pretrained(tmp_path)
    loaded, info = UNetForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.testing.assert_close(loaded.eval()(pixels).logits, expected)
    changed = {name for name, tensor in loaded.state_dict().items() if not torch.equal(tensor, before[name])}
    kinds = (".qkv.weight", ".proj.weight", ".fc1.weight", ".fc2.weight")
    assert {name for name in changed if name.startswith("encoder.backbone.")} == {
        name for name in before if name.startswith("encoder.backbone.model.blocks.") and name.endswith(kinds)
    }
    assert changed >= {name for name in before if name.endswith("weight") and not name.startswith("encoder.backbone.")}


@torch.no_grad()
def test_saved_adapters_come_back_on_the_same_backbone(tmp_path):
    model = small_model(encoder="vit")
    base = copy.deepcopy(model)
    with torch.enable_grad():
        adapted = adapted_after_a_step(model)
    adapted.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    pixels = torch.rand(1, 3, 64, 64)
    assert torch.equal(loaded(pixels).logits, adapted(pixels).logits)
