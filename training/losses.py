"""Segmentation losses: each maps logits and labels to one number an image, and every weighting lives in the recipe.

All reduce per image: a batch's loss is the mean of its images' losses, so gradients do not depend on how a batch is
spread over accumulation steps or processes. Pixels labelled 255 or -100 count nowhere. Inputs are logits, float
B x C x H x W with C = 1 for a binary head, and labels, integers B x H x W at the same size; results are float32, B.
"""

import difflib

import torch
import torch.nn.functional as F

from modeling.modeling_unet import IGNORED_LABELS

SMOOTH = 1e-6  # added to numerator and denominator of Dice: an empty mask predicted empty has loss 0


def bce(logits, labels):
    """Binary cross-entropy of a binary head, mean over the image's pixels; nats."""
    if logits.shape[1] != 1:
        raise ValueError(f"loss bce is for a binary head; this model has {logits.shape[1]} logits: use ce.")
    counted = _counted(labels)
    losses = F.binary_cross_entropy_with_logits(logits[:, 0].float(), (labels == 1).float(), reduction="none")
    return _mean_over_pixels(losses, counted)


def ce(logits, labels):
    """Cross-entropy over classes, mean over the image's pixels; nats. Needs one logit for each label."""
    if logits.shape[1] == 1:
        raise ValueError("loss ce needs one logit for each label; this model has a binary head: use bce.")
    counted = _counted(labels)
    losses = F.cross_entropy(logits.float(), labels.where(counted, 0), reduction="none")
    return _mean_over_pixels(losses, counted)


def dice(logits, labels):
    """One minus soft Dice of the polyp (sigmoid), or the mean of it over all classes (softmax).

    Milletari et al. 2016 with plain sums in the denominator: 1 - (2 sum(p t) + s) / (sum(p) + sum(t) + s), s = 1e-6.
    """
    counted = _counted(labels)[:, None]
    if logits.shape[1] == 1:
        predicted, truth = logits.float().sigmoid(), (labels == 1)[:, None].float()
    else:
        predicted = logits.float().softmax(dim=1)
        truth = F.one_hot(labels.where(counted[:, 0], 0), logits.shape[1]).movedim(-1, 1).float()
    predicted, truth = predicted * counted, truth * counted
    overlap = (predicted * truth).flatten(2).sum(-1)
    total = predicted.flatten(2).sum(-1) + truth.flatten(2).sum(-1)
    return (1 - (2 * overlap + SMOOTH) / (total + SMOOTH)).mean(dim=1)


LOSSES = {function.__name__: function for function in (bce, ce, dice)}


class WeightedSum:
    """The loss that a recipe writes as `{bce: 0.5, dice: 0.5}`: logits and labels to float32, B.

    Raises:
        ValueError: an unknown name, a weight that is not positive, or no loss at all.
    """

    def __init__(self, weights):
        for name, weight in weights.items():
            if name not in LOSSES:
                near = difflib.get_close_matches(name, LOSSES, n=1, cutoff=0)
                raise ValueError(f"loss.{name} is unknown; did you mean {near[0]}? There are {', '.join(LOSSES)}.")
            if not isinstance(weight, (int, float)) or weight < 0:
                raise ValueError(f"loss.{name} must be a weight of at least 0, got {weight!r}.")
        self.weights = {name: float(weight) for name, weight in weights.items() if weight > 0}
        if not self.weights:
            raise ValueError(f"loss needs at least one of {', '.join(LOSSES)} with a positive weight, got {weights}.")

    def __call__(self, logits, labels):
        return sum(weight * LOSSES[name](logits, labels) for name, weight in self.weights.items())


def _counted(labels):
    counted = torch.ones_like(labels, dtype=torch.bool)
    for ignored in IGNORED_LABELS:
        counted &= labels != ignored
    return counted


def _mean_over_pixels(losses, counted):
    return (losses * counted).flatten(1).sum(1) / counted.flatten(1).sum(1).clamp(min=1)
