"""Auxiliary logits: in training only, and only where the config asks."""

import pytest
import torch

from hub_unets.modeling.variants import config_fields
from tests.variants import VARIANTS, config_class, small_model

SUPERVISED = [name for name in VARIANTS if "deep_supervision" in config_fields(config_class(name))]


@pytest.mark.parametrize("encoder", ["plain", "resnet18"])
@pytest.mark.parametrize("variant", SUPERVISED)
def test_in_training_only(variant, encoder):
    model = small_model(variant, encoder, deep_supervision=True).train()
    pixels, labels = torch.rand(2, 3, 65, 64), torch.randint(0, 2, (2, 65, 64))
    output = model(pixels, labels=labels)
    levels = len(model.encoder.channels) - 1
    count = levels - 1 if variant == "unetplusplus" else levels  # UNet 3+ also supervises the deepest map
    assert [tuple(logits.shape) for logits in output.auxiliary_logits] == [(2, 1, 65, 64)] * count
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.eval()(pixels).auxiliary_logits is None
    assert small_model(variant, encoder).train()(pixels).auxiliary_logits is None


@pytest.mark.parametrize("variant", SUPERVISED)
def test_the_loss_is_the_mean_over_all_logits(variant):
    model = small_model(variant, deep_supervision=True, batch_norm=False).train()
    pixels, labels = torch.rand(2, 3, 32, 32), torch.randint(0, 2, (2, 32, 32))
    output = model(pixels, labels=labels)
    supervised = (output.logits, *output.auxiliary_logits)
    losses = [
        torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 0], labels.float()) for logits in supervised
    ]
    torch.testing.assert_close(output.loss, sum(losses) / len(supervised))
