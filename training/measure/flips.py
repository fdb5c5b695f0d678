"""A prediction from an image and its mirror images (test-time augmentation), and how much they disagree."""

from typing import NamedTuple

import torch

from hub_unets.training.measure.models import class_logits

FLIPS = ((), (-1,), (-2,), (-2, -1))  # the dimensions mirrored: none, width, height, both


class FlippedOutput(NamedTuple):
    """The mean over FLIPS.

    `logits` is float32, B x C x h x w, the mean of the logits; `uncertainty` B x h x w, 0 to .5, the standard
    deviation over the flips of the probability that a pixel is not background (label 0).
    """

    logits: torch.Tensor
    uncertainty: torch.Tensor


@torch.inference_mode()
def predict_with_flips(model, pixel_values):
    """Run the model on `pixel_values`, B x 3 x H x W, and its mirror images, one after another, and mirror back."""
    outputs = (model(pixel_values=pixel_values.flip(dims)) for dims in FLIPS)
    logits = torch.stack(
        [class_logits(output).flip(dims) for output, dims in zip(outputs, FLIPS, strict=True)]
    ).float()
    foreground = logits.sigmoid()[:, :, 0] if logits.shape[2] == 1 else 1 - logits.softmax(dim=2)[:, :, 0]
    return FlippedOutput(logits.mean(dim=0), foreground.std(dim=0, correction=0))
