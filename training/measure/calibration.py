"""Temperature and thresholds of a binary head, fitted on validation and kept by the model and its processor."""

from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from tqdm import tqdm

from hub_unets.training.data.polyp_free import largest_free_crop
from hub_unets.training.data.reading import IGNORE, read_pair
from hub_unets.training.measure.false_alarms import MIN_SIDE
from hub_unets.training.measure.flips import FLIPS
from hub_unets.training.measure.metrics import metrics_from_counts
from hub_unets.training.measure.models import pixel_values
from hub_unets.training.measure.score import Scores, logit_centres, score
from hub_unets.training.measure.task import Task

TEMPERATURES = 0.1, 10.0  # the range that is searched
THRESHOLDS = np.arange(6, 15) / 20  # of pixels
SCORES = np.arange(100) / 100  # of regions
COST = 0.001  # of Dice


class Calibration(NamedTuple):
    """What was fitted, as results.json holds it, and the Scores of the images with it."""

    record: dict
    scores: Scores


def calibrate(model, processor, rows, half_precision=False):
    """Fit the temperature, divide the head by it, then choose the thresholds of the probabilities that it now gives.

    Of all pairs of THRESHOLDS and SCORES whose Dice, the mean over images and mirror images, is at most COST below the
    best, the one that marks the fewest polyp-free crops; among equals the one of the highest Dice.

    Args:
        model: with a binary head, in eval mode; its head is changed.
        processor: its image processor; its `mask_threshold` and `score_threshold` are changed.
        rows: the validation images, as `training.evaluate.score` takes them.
        half_precision: round the head's new weights to float16, as they are stored.

    Returns:
        Calibration.
    """
    task = Task.of_polyps(model.config)
    processor.mask_threshold, processor.score_threshold = 0.5, 0.0
    before = score(model, processor, rows, task, progress="Fit temperature")
    temperature = fit_temperature(before.logits / len(before.names))
    fold_temperature(model, temperature, half_precision)
    dice, alarms = by_thresholds(model, processor, rows)
    pixels, regions = choose(dice, alarms)
    processor.mask_threshold, processor.score_threshold = float(THRESHOLDS[pixels]), float(SCORES[regions])
    after = score(model, processor, rows, task, crops=True, progress="Score with thresholds")
    old, new = before.summary(), after.summary()
    middle = int(np.flatnonzero(THRESHOLDS == 0.5)[0])
    record = {
        "images": len(rows),
        "temperature": temperature,
        "threshold": processor.mask_threshold,
        "score_threshold": processor.score_threshold,
        "loss_before": old["loss"]["value"],
        "loss_after": new["loss"]["value"],
        "ece_before": old["calibration"]["ece"],
        "ece_after": new["calibration"]["ece"],
        "dice_before": old["per_image"]["dice"]["value"],
        "dice_after": new["per_image"]["dice"]["value"],
        "false_alarms_before": float(alarms[middle, 0]),
        "false_alarms_after": float(alarms[pixels, regions]),
        "by_size": [_cost_of_size(*rows) for rows in zip(old["by_size"], new["by_size"], strict=True)],
    }
    return Calibration(record, after)


def _cost_of_size(before, after):
    """What the thresholds change for the polyps of one range of sizes."""
    return {name: before[name] for name in ("above", "up_to", "images")} | {
        f"{name}_{when}": row[name]["value"]
        for name in ("dice", "recall")
        for when, row in (("before", before), ("after", after))
    }


def fit_temperature(shares):
    """The temperature (Guo et al. 2017) whose cross-entropy, the mean over images, is the lowest in TEMPERATURES.

    Args:
        shares: of an image's pixels by logit, the mean over images, float64 2 (background, polyp) x bins; see
            `Scores.logits`. A bin's pixels are taken at its centre.
    """
    centres = logit_centres()

    def cross_entropy(log_temperature):
        scaled = centres / np.exp(log_temperature)
        return shares[0] @ np.logaddexp(0, scaled) + shares[1] @ np.logaddexp(0, -scaled)

    return float(np.exp(minimize_scalar(cross_entropy, bounds=np.log(TEMPERATURES), method="bounded").x))


@torch.no_grad()
def fold_temperature(model, temperature, half_precision=False):
    """Divide the weights and bias of the head's last convolution, and so every logit, by the temperature."""
    for parameter in model.head.classifier.parameters():
        divided = parameter / temperature
        parameter.copy_(to_half(divided) if half_precision else divided)


def to_half(tensor):
    """A floating-point tensor as float16, or as it is where a value of it lies beyond float16's 65504."""
    half = tensor.half() if tensor.is_floating_point() else tensor
    return half if torch.equal(half.isfinite(), tensor.isfinite()) else tensor


def choose(dice, alarms):
    """Indices of the threshold and score that `calibrate` takes, from two arrays THRESHOLDS x SCORES."""
    good = dice >= dice.max() - COST
    fewest = good & (alarms == alarms[good].min())
    return np.unravel_index(np.where(fewest, dice, -1).argmax(), dice.shape)


@torch.inference_mode()
def by_thresholds(model, processor, rows):
    """The mean Dice of the images, and the share of their polyp-free crops that is marked: two THRESHOLDS x SCORES.

    Each image and crop counts four times, as it is and mirrored (`training.measure.flips`): thresholds that only
    just keep a polyp of a few images lose it in its mirror images. Without any crop the share is 0.
    """
    dice, alarms, crops = np.zeros((len(THRESHOLDS), len(SCORES))), np.zeros((len(THRESHOLDS), len(SCORES))), 0
    for row in tqdm(rows, desc="Fit thresholds", unit="image", leave=False):
        image, labels = read_pair(row, processor=processor)
        crop = largest_free_crop(image, labels, MIN_SIDE)
        for dims in FLIPS:
            regions = _regions(model, processor, mirrored(image, dims))
            dice += [dice_by_score(*result, mirrored(labels, dims)) for result in regions]
            if crop is not None:
                crops += 1
                highest = [max(scores, default=-1) for _, scores in _regions(model, processor, mirrored(crop, dims))]
                alarms += np.array(highest)[:, None] >= SCORES
    return dice / (len(rows) * len(FLIPS)), alarms / max(crops, 1)


def mirrored(image, dims):
    """A PIL image or an array H x W x ... mirrored, as an array; `dims` is one of FLIPS: -1 is the width."""
    return np.flip(np.asarray(image), [dim + 2 for dim in dims])


def _regions(model, processor, image):
    """At each of THRESHOLDS the ids of the regions of an image, H x W x C, and their scores."""
    outputs, sizes = model(pixel_values(model, processor, image)), [image.shape[:2]]
    for threshold in THRESHOLDS:
        (result,) = processor.post_process_instance_segmentation(
            outputs, threshold=0.0, mask_threshold=threshold, target_sizes=sizes, images=[image]
        )
        yield result["segmentation"].numpy(), [segment["score"] for segment in result["segments_info"]]


def dice_by_score(ids, scores, labels):
    """An image's Dice, float64 SCORES, where the regions that score below each of SCORES are dropped."""
    pixels, true = (
        np.bincount(ids[selection], minlength=len(scores) + 1)[1:] for selection in (labels != IGNORE, labels == 1)
    )
    is_kept = np.array(scores)[None] >= SCORES[:, None]
    tp, marked = is_kept @ true, is_kept @ pixels
    missed = np.count_nonzero(labels == 1) - tp
    return metrics_from_counts(np.stack([tp, marked - tp, missed, np.ones_like(tp)], axis=-1))["dice"]
