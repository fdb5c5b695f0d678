"""A network whose logits are not finite is named with the image, and never ends the process."""

import math

import pytest
import torch

from hub_unets.modeling.image_processing_unet import UNetImageProcessor
from hub_unets.training.data.phantoms import phantom_dataset
from hub_unets.training.errors import UserError
from hub_unets.training.measure.score import score
from hub_unets.training.measure.task import Task
from tests.variants import small_model


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("fields", "labels"), [({}, ((1,),)), ({"num_labels": 3}, ((1,), (2,))), ({"num_labels": 3}, ((1, 2),))]
)
def test_logits_that_are_not_finite_are_named(value, fields, labels):
    model = small_model(base_channels=4, depth=2, **fields).eval()
    with torch.no_grad():
        model.head.classifier.bias[-1] = value
    with pytest.raises(UserError, match="phantom.*: the network's logits are not finite"):
        score(
            model,
            UNetImageProcessor(size=32),
            phantom_dataset(2, size=64),
            Task(labels, len(labels) + 1, len(labels) == 1),
        )
