"""Segmentation losses: each maps logits and labels to one number an image, and every weighting lives in the recipe.

All reduce per image: a batch's loss is the mean of its images' losses, so gradients do not depend on how a batch is
spread over accumulation steps or processes. Pixels labelled 255 or -100 count nowhere. Inputs are logits, float
B x C x H x W with C = 1 for a binary head, and labels, integers B x H x W at the same size; results are float32, B.
A loss's keyword-only arguments are what a recipe may set, `focal.gamma: 2`.
"""

import difflib
import inspect
import math
from functools import partial

import torch
import torch.nn.functional as F

from hub_unets.modeling.modeling_unet import IGNORED_LABELS
from hub_unets.training.errors import UserError

SMOOTH = 1e-6  # of Dice and Tversky, where stated: an empty mask predicted empty has loss 0


def bce(logits, labels):
    """Binary cross-entropy of a binary head, mean over the image's pixels; nats. No smoothing."""
    _refuse_classes("bce", logits, cure="ce")
    losses = F.binary_cross_entropy_with_logits(logits[:, 0].float(), (labels == 1).float(), reduction="none")
    return _mean_over_pixels(losses, _counted(labels))


def ce(logits, labels):
    """Cross-entropy over classes, mean over the image's pixels; nats. One logit for each label; no smoothing."""
    if logits.shape[1] == 1:
        raise UserError("loss ce needs one logit for each label; this model has a binary head: use bce.")
    counted = _counted(labels)
    losses = F.cross_entropy(logits.float(), labels.where(counted, 0), reduction="none")
    return _mean_over_pixels(losses, counted)


def dice(logits, labels):
    """One minus soft Dice of the polyp (sigmoid), or the mean of it over all classes (softmax).

    Milletari et al. 2016 with plain sums in the denominator: 1 - (2 sum(p t) + s) / (sum(p) + sum(t) + s), s = 1e-6.
    The sums are those of one image.
    """
    overlap, predicted, truth = _sums(logits, labels)
    return (1 - (2 * overlap + SMOOTH) / (predicted + truth + SMOOTH)).mean(dim=1)


def focal(logits, labels, *, alpha=0.25, gamma=2.0):
    """Cross-entropy that fades where the true class is likely already, mean over the image's pixels; nats.

    Lin et al. 2017: -w (1 - p)^gamma log(p), where p is the probability of the pixel's true class (sigmoid, or softmax
    over all classes) and w that class's weight. The mean is over all counted pixels of one image, background included
    and weights not divided out. No smoothing.

    Args:
        alpha: weight of every foreground class, in 0..1; the background's is 1 - alpha.
        gamma: power of the fading, at least 0; 0 is cross-entropy with these weights.
    """
    if not 0 <= alpha <= 1:
        raise UserError(f"loss.focal.alpha must lie in 0..1, got {alpha}: the background's weight is 1 - alpha.")
    counted = _counted(labels)
    classes = (labels == 1).long() if logits.shape[1] == 1 else labels.where(counted, 0)
    odds = _log_odds(logits.float(), classes)
    losses = -(gamma * F.logsigmoid(-odds)).exp() * F.logsigmoid(odds)
    return _mean_over_pixels(torch.where(classes > 0, alpha, 1 - alpha) * losses, counted)


def tversky(logits, labels, *, alpha=0.3, beta=0.7):
    """One minus the Tversky index of the polyp (sigmoid), or the mean of it over all classes (softmax).

    Salehi et al. 2017: 1 - (TP + s) / (TP + alpha FP + beta FN + s), s = 1e-6, with TP = sum(p t), FP = sum(p (1 - t))
    and FN = sum((1 - p) t) of one image. With alpha = beta = 0.5 it is Dice with s doubled.

    Args:
        alpha: weight of false positives, at least 0.
        beta: weight of false negatives, at least 0.
    """
    return _tversky_of_classes(logits, labels, alpha, beta).mean(dim=1)


def focal_tversky(logits, labels, *, alpha=0.3, beta=0.7, gamma=4 / 3):
    """The Tversky loss of the polyp to the power 1 / gamma, or the mean of that over all classes.

    Abraham & Khan 2019: (1 - TI)^(1 / gamma), gamma in 1..3, for each class of one image; TI and its smoothing are
    those of `tversky`. So gamma = 4/3 is the exponent 0.75, which other code calls gamma. Their alpha = 0.7 weights
    false negatives, and is beta here. They add the classes up where this takes the mean.

    Args:
        alpha: weight of false positives, at least 0.
        beta: weight of false negatives, at least 0.
        gamma: reciprocal of the power, above 0; 1 is the Tversky loss.
    """
    if gamma <= 0:
        raise UserError(f"loss.focal_tversky.gamma must be above 0, got {gamma}: the power is 1 / gamma.")
    losses = _tversky_of_classes(logits, labels, alpha, beta)
    # the slope of the power at 0 is infinite: a loss of 0 gets none
    return losses.clamp(min=torch.finfo(torch.float32).tiny).pow(1 / gamma).mean(dim=1)


def structure(logits, labels):
    """Cross-entropy plus IoU loss of a binary head, both weighted towards the mask's boundary.

    Wei et al. 2020 (F3Net), Fan et al. 2020 (PraNet). A pixel's weight w is 1 + 5 |m - t|, where m is the mean of the
    mask t over the 31 x 31 window around it; as in PraNet's code that mean is always over 961 pixels, and those beyond
    the border (and here the ignored) are background. The loss of one image is sum(w bce) / sum(w) +
    1 - (sum(w p t) + 1) / (sum(w (p + t - p t)) + 1): 1 smooths numerator and denominator of the IoU. PraNet's code
    asks for `reduce="none"`, which PyTorch takes for a mean, and so loses the weights of the cross-entropy; these are
    applied here, pixel by pixel.
    """
    _refuse_classes("structure", logits, cure="ce with dice")
    logits, truth, counted = logits[:, 0].float(), (labels == 1).float(), _counted(labels)
    windows = F.avg_pool2d(F.avg_pool2d(truth, (31, 1), 1, (15, 0)), (1, 31), 1, (0, 15))
    weights = (1 + 5 * (windows - truth).abs()) * counted
    cross_entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    predicted = logits.sigmoid()
    overlap = (weights * predicted * truth).flatten(1).sum(1)
    union = (weights * (predicted + truth)).flatten(1).sum(1) - overlap
    return _mean_over_pixels(cross_entropy, weights) + 1 - (overlap + 1) / (union + 1)


LOSSES = {function.__name__: function for function in (bce, ce, dice, focal, tversky, focal_tversky, structure)}


def parameters(name):
    """What a recipe may set of a loss: its keyword-only arguments to their defaults."""
    signature = inspect.signature(LOSSES[name]).parameters.values()
    return {parameter.name: parameter.default for parameter in signature if parameter.kind is parameter.KEYWORD_ONLY}


class WeightedSum:
    """The loss that a recipe writes as `{bce: 0.5, focal: 0.5, focal.gamma: 3}`: logits and labels to float32, B.

    A loss of weight 0 is off, and its parameters are ignored.

    Raises:
        UserError: an unknown name, a value that is no number of at least 0, a parameter of a loss that has no weight,
            or no loss at all.
    """

    def __init__(self, fields):
        for name, value in fields.items():
            _refuse_unknown(name)
            loss, _, parameter = name.partition(".")
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise UserError(
                    f"loss.{name} must be a {'number' if parameter else 'weight'} of at least 0, got {value!r}."
                )
            if loss not in fields:
                raise UserError(f"loss.{name} has no effect without a weight: set loss.{loss} too, as in {loss}: 1.")
        self.terms = [
            (float(weight), partial(LOSSES[name], **_chosen(name, fields)))
            for name, weight in fields.items()
            if name in LOSSES and weight > 0
        ]
        if not self.terms:
            raise UserError(f"loss needs at least one of {', '.join(LOSSES)} with a positive weight, got {fields}.")

    def __call__(self, logits, labels):
        return sum(weight * loss(logits, labels) for weight, loss in self.terms)


def _refuse_unknown(name):
    loss, dot, parameter = name.partition(".")
    if loss not in LOSSES:
        best = difflib.get_close_matches(loss, LOSSES, n=1, cutoff=0)
        raise UserError(f"loss.{name} is unknown; did you mean {best[0]}? There are {', '.join(LOSSES)}.")
    known = parameters(loss)
    if dot and not known:
        raise UserError(f"loss.{name} is unknown: {loss} has no parameters.")
    if dot and parameter not in known:
        best = difflib.get_close_matches(parameter, known, n=1, cutoff=0)
        raise UserError(f"loss.{name} is unknown; did you mean {loss}.{best[0]}? {loss} has {', '.join(known)}.")


def _chosen(loss, fields):
    return {name: float(fields[f"{loss}.{name}"]) for name in parameters(loss) if f"{loss}.{name}" in fields}


def _refuse_classes(loss, logits, cure):
    if logits.shape[1] != 1:
        raise UserError(f"loss {loss} is for a binary head; this model has {logits.shape[1]} logits: use {cure}.")


def _log_odds(logits, classes):
    """log(p / (1 - p)) for the probability p of each pixel's class, B x H x W."""
    if logits.shape[1] == 1:
        return logits[:, 0].where(classes == 1, -logits[:, 0])
    classes = classes[:, None]
    return (logits.gather(1, classes) - logits.scatter(1, classes, -math.inf).logsumexp(dim=1, keepdim=True))[:, 0]


def _sums(logits, labels):
    """sum(p t), sum(p) and sum(t) over each image's counted pixels, B x C: the polyp's alone for a binary head."""
    counted = _counted(labels)[:, None]
    if logits.shape[1] == 1:
        predicted, truth = logits.float().sigmoid(), (labels == 1)[:, None].float()
    else:
        predicted = logits.float().softmax(dim=1)
        truth = F.one_hot(labels.where(counted[:, 0], 0), logits.shape[1]).movedim(-1, 1).float()
    predicted, truth = predicted * counted, truth * counted
    return tuple(values.flatten(2).sum(-1) for values in (predicted * truth, predicted, truth))


def _tversky_of_classes(logits, labels, alpha, beta):
    overlap, predicted, truth = _sums(logits, labels)
    errors = alpha * (predicted - overlap) + beta * (truth - overlap)
    return 1 - (overlap + SMOOTH) / (overlap + errors + SMOOTH)


def _counted(labels):
    counted = torch.ones_like(labels, dtype=torch.bool)
    for ignored in IGNORED_LABELS:
        counted &= labels != ignored
    return counted


def _mean_over_pixels(losses, weights):
    """Of B x H x W to B; a weight is 0 where a pixel is ignored, else at least 1."""
    return (losses * weights).flatten(1).sum(1) / weights.flatten(1).sum(1).clamp(min=1)
