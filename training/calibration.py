"""Temperature and thresholds of a binary head, fitted on validation and kept by the model and its processor."""

import numpy as np
import torch
from scipy.optimize import minimize_scalar

from training.evaluate import logit_centres, polyp_labels_of, score, threshold_counts
from training.metrics import metrics_from_counts
from training.reading import IGNORE, read_pair

TEMPERATURES = 0.1, 10.0  # the range that is searched
PLATEAU = 0.001  # Dice
SCORES = np.arange(100) / 100  # of regions, from which the least that is kept is chosen


def calibrate(model, processor, rows):
    """Fit the temperature, divide the head by it, then choose the thresholds of pixels and of regions.

    Pixels: the middle of the plateau of Dice. Regions: the highest score below which they can be dropped at a cost of
    at most PLATEAU in Dice, so that as few as possible are marked where there is no polyp.

    Args:
        model: with a binary head, in eval mode; its head is changed.
        processor: its image processor; its `mask_threshold` and `score_threshold` are changed.
        rows: the validation images, as `training.evaluate.score` takes them.

    Returns:
        dict: what results.json holds of it as `calibration`.
    """
    labels = polyp_labels_of(model.config)
    processor.score_threshold = 0.0
    before = score(model, processor, rows, labels, threshold=0.5, progress="Fit temperature")
    temperature = fit_temperature(np.stack(before.logits))
    fold_temperature(model, temperature)
    after = score(model, processor, rows, labels, threshold=0.5, progress="Fit threshold")
    thresholds, counts = threshold_counts(after)
    dice = metrics_from_counts(counts)["dice"].mean(axis=1)
    chosen = plateau(dice)
    processor.mask_threshold = float(thresholds[chosen])
    dice_of_score = dice_by_score(regions_of(model, processor, rows))
    least = int(np.flatnonzero(dice_of_score >= dice_of_score.max() - PLATEAU)[-1])
    processor.score_threshold = float(SCORES[least])
    first, second = before.summary(), after.summary()
    return {
        "images": len(rows),
        "temperature": temperature,
        "threshold": processor.mask_threshold,
        "loss_before": first["loss"]["value"],
        "loss_after": second["loss"]["value"],
        "ece_before": first["calibration"]["ece"],
        "ece_after": second["calibration"]["ece"],
        "dice_at_half": second["per_image"]["dice"]["value"],
        "dice_at_threshold": float(dice[chosen]),
        "score_threshold": processor.score_threshold,
        "dice_at_score_threshold": float(dice_of_score[least]),
    }


def fit_temperature(histograms):
    """The temperature (Guo et al. 2017) whose cross-entropy, the mean over images, is the lowest in TEMPERATURES.

    Args:
        histograms: pixels by logit of each image, images x 2 (background, polyp) x bins, as `Scores.logits`. A bin's
            pixels are taken at its centre.
    """
    weights = (histograms / histograms.sum(axis=(1, 2), keepdims=True)).mean(axis=0)
    centres = logit_centres()

    def cross_entropy(log_temperature):
        scaled = centres / np.exp(log_temperature)
        return weights[0] @ np.logaddexp(0, scaled) + weights[1] @ np.logaddexp(0, -scaled)

    return float(np.exp(minimize_scalar(cross_entropy, bounds=np.log(TEMPERATURES), method="bounded").x))


@torch.no_grad()
def fold_temperature(model, temperature):
    """Divide the weights and bias of the head's last convolution, and so every logit, by the temperature."""
    for parameter in model.head.classifier.parameters():
        parameter /= temperature


def plateau(dice):
    """Index of the middle of the plateau around the highest value: its neighbours at most PLATEAU lower.

    A curve of Dice against threshold is flat and ragged at its top, and its very highest point is chance.
    """
    low = high = int(np.argmax(dice))
    least = dice[low] - PLATEAU
    while low > 0 and dice[low - 1] >= least:
        low -= 1
    while high + 1 < len(dice) and dice[high + 1] >= least:
        high += 1
    return (low + high) // 2


@torch.inference_mode()
def regions_of(model, processor, rows):
    """For each image its marked regions' scores, pixels and true pixels (arrays), and the polyps' pixels (int)."""
    found = []
    for row in rows:
        image, labels = read_pair(row)
        outputs = model(**processor(image).to(model.device))
        (result,) = processor.post_process_instance_segmentation(outputs, threshold=0.0, target_sizes=[labels.shape])
        ids, counted = result["segmentation"].numpy(), labels != IGNORE
        count = len(result["segments_info"]) + 1
        scores = np.array([one["score"] for one in result["segments_info"]])
        pixels, true = (np.bincount(ids[chosen], minlength=count)[1:] for chosen in (counted, labels == 1))
        found.append((scores, pixels, true, int((labels == 1).sum())))
    return found


def dice_by_score(regions):
    """The mean Dice of images, float64 SCORES, where regions that score below each of SCORES are dropped."""
    dice = np.zeros(len(SCORES))
    for scores, pixels, true, polyp in regions:
        kept = scores[None] >= SCORES[:, None]
        tp, marked = kept @ true, kept @ pixels
        counts = np.stack([tp, marked - tp, polyp - tp, np.ones_like(tp)], axis=-1)
        dice += metrics_from_counts(counts)["dice"] / len(regions)
    return dice
