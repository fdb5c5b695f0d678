"""Dice and its relatives at the original resolution, each named for what it is: per image, or pooled over pixels.

per_image: the metric of each image, then the mean over images. pooled: the metric of the counts summed over images
("micro"). F1 is the same number as Dice. Where both masks are empty every metric is 1; where only one is, Dice, IoU,
precision and recall are 0. For more than one foreground class the classes' mean is taken; `per_class` has each, and
under `present` its Dice over the images that hold it: over all images those without it, rightly left empty, count 1.
Intervals are 95 % percentile bootstrap intervals over images, 2000 resamples, seed 0 (Maier-Hein et al., Metrics
reloaded, Nature Methods 2024).
"""

import itertools

import numpy as np

NAMES = ("dice", "iou", "precision", "recall", "f1", "accuracy")
COUNTS = ("true_positives", "false_positives", "false_negatives", "true_negatives")
RESAMPLES = 2000
WITH_BACKGROUND = (
    "Means over all classes with the background as one more, per image and pooled: what some cards call mean Dice. "
    "The background, most of every image, is easily above .9, so the figures are higher than those of the classes."
)
DRAWN = 200_000  # images at once, in all samples together
SIZES = (0, 0.025, 0.05, 0.1, 0.2, 1)  # share of the image that is polyp: the bounds of the rows by size


def count_pixels(prediction, reference, classes=((1,),)):
    """Pixel counts of one image: int64, classes x (true and false positives, false and true negatives).

    Args:
        prediction, reference: class indices, H x W; reference pixels of 255 are ignored.
        classes: for each foreground class the labels of the prediction that count as it; the reference holds the
            class's number, from 1.
    """
    prediction, reference = np.asarray(prediction), np.asarray(reference)
    if prediction.shape != reference.shape:
        raise ValueError(f"prediction is {prediction.shape} and reference {reference.shape}: give the same H x W.")
    rows = []
    for number, labels in enumerate(classes, start=1):
        predicted = prediction == labels[0] if len(labels) == 1 else np.isin(prediction, labels)
        truth = reference == number
        ignored = np.count_nonzero(reference == 255)
        hits = np.count_nonzero(predicted & truth)
        positives = np.count_nonzero(predicted & (reference != 255) if ignored else predicted)
        truths = np.count_nonzero(truth)
        rows.append((hits, positives - hits, truths - hits, reference.size - ignored - positives - truths + hits))
    return np.array(rows, np.int64)


def background_counts(prediction, reference, classes):
    """The pixel counts of what is of no class in one image: int64 4, in the order of COUNTS; arguments as above."""
    reference = np.asarray(reference)
    foreground = np.where(reference == 255, 255, reference > 0)
    return count_pixels(np.isin(prediction, np.concatenate(classes)), foreground)[0][::-1]


def metrics_from_counts(counts):
    """Counts ... x 4 to a dictionary of the six metrics, float64, ...; see above for empty masks."""
    tp, fp, fn, tn = np.moveaxis(np.asarray(counts, np.float64), -1, 0)
    empty = tp + fp + fn == 0

    def ratio(numerator, denominator):
        return np.where(empty, 1.0, numerator / np.maximum(denominator, 1e-12))

    dice = ratio(2 * tp, 2 * tp + fp + fn)
    return {
        "dice": dice,
        "iou": ratio(tp, tp + fp + fn),
        "precision": ratio(tp, tp + fp),
        "recall": ratio(tp, tp + fn),
        "f1": dice,
        "accuracy": (tp + tn) / np.maximum(tp + fp + fn + tn, 1),
    }


def summarize(counts):
    """Counts images x classes x 4 to {"per_image", "pooled"[, "per_class"]} with {"value", "low", "high"} each."""
    columns = _columns(counts)
    per_image = columns[:, : len(NAMES)]
    resampled, resampled_counts = np.split(_resampled_means(columns), [len(NAMES)], axis=1)
    resampled_counts = resampled_counts.reshape(-1, *counts.shape[1:])
    summary = {
        "per_image": _with_intervals(per_image.mean(axis=0), resampled.T),
        "pooled": _with_intervals(_class_means(counts.sum(axis=0)), _class_means(resampled_counts)),
    }
    if counts.shape[1] > 1:
        summary["per_class"] = [
            summarize(counts[:, [number]]) | {"present": _where_present(counts[:, number])}
            for number in range(counts.shape[1])
        ]
    return summary


def by_size(counts):
    """Counts images x 4 of one class to a row for each range of SIZES: how many images, their Dice and recall.

    The size is the class's share of the image's counted pixels, above `above` and up to `up_to`; images without the
    class are in no row. Rows without an image are left out.
    """
    counts = np.asarray(counts)
    share = (counts[:, 0] + counts[:, 2]) / np.maximum(counts.sum(axis=1), 1)
    rows = []
    for above, up_to in itertools.pairwise(SIZES):
        in_range = counts[(share > above) & (share <= up_to)]
        if len(in_range):
            metrics = metrics_from_counts(in_range)
            figures = {name: mean_with_interval(metrics[name]) for name in ("dice", "recall")}
            rows.append({"above": above, "up_to": up_to, "images": len(in_range), **figures})
    return rows


def ranking_dice(summary):
    """The Dice that models are chosen by: the mean over images, or of several classes that of all pixels together.

    Per image a class that is never marked has a Dice of 1 wherever it is absent, and a rare one is best not marked.
    """
    return summary["pooled" if "per_class" in summary else "per_image"]["dice"]["value"]


def _where_present(counts):
    """Counts images x 4 of one class to how many images hold it, and its Dice there; None where none does."""
    present = counts[counts[:, 0] + counts[:, 2] > 0]
    dice = mean_with_interval(metrics_from_counts(present)["dice"]) if len(present) else None
    return {"images": len(present), "dice": dice}


def mean_with_interval(values):
    """Mean of one number an image, and its 95 % bootstrap interval over images."""
    values = np.asarray(values, np.float64)
    return _value_and_interval(values.mean(), _resampled_means(values[:, None])[:, 0])


def ratio_with_interval(numerators, denominators, anything):
    """The sum over images of one number an image by that of another, and its 95 % bootstrap interval over images.

    It is 1 where `anything` is 0 in every image drawn, and 0 where the denominators alone are.
    """
    columns = np.stack([numerators, denominators, anything], axis=1).astype(np.float64)
    return _value_and_interval(_ratio(*columns.mean(axis=0)), _ratio(*_resampled_means(columns).T))


def _ratio(numerator, denominator, anything):
    return np.where(anything == 0, 1.0, numerator / np.where(denominator == 0, 1, denominator))


def _class_means(counts):
    """Counts ... x classes x 4 to the means over classes of the six metrics, a list of arrays ..."""
    return [values.mean(axis=-1) for values in metrics_from_counts(counts).values()]


def _columns(counts, block=10_000):
    """Counts images x classes x 4 to what is resampled: float64 images x (six metrics, then the counts)."""
    columns = np.empty((len(counts), len(NAMES) + counts[0].size))
    for start in range(0, len(counts), block):  # what lies between takes several times the memory
        part, rows = counts[start : start + block], columns[start : start + block]
        rows[:, : len(NAMES)] = np.stack(_class_means(part), axis=1)
        rows[:, len(NAMES) :] = part.reshape(len(part), -1)
    return columns


def _with_intervals(values, resampled):
    return {name: _value_and_interval(*pair) for name, *pair in zip(NAMES, values, resampled, strict=True)}


def _resampled_means(columns):
    """Means of images x columns over bootstrap samples of the images: float64 RESAMPLES x columns.

    Whole numbers of draws are summed and divided last, so that no mean leaves the range of its values. How many
    samples are drawn at once moves no draw, and bounds the memory.
    """
    count, rng = len(columns), np.random.default_rng(0)
    shares = np.full(count, 1 / count)
    at_once = min(100, max(DRAWN // count, 2))
    draws = (rng.multinomial(count, shares, min(at_once, RESAMPLES - start)) for start in range(0, RESAMPLES, at_once))
    return np.concatenate([drawn.astype(np.float64) @ columns / count for drawn in draws])


def _value_and_interval(value, resampled):
    low, high = np.quantile(resampled, (0.025, 0.975))
    return {"value": float(value), "low": float(low), "high": float(high)}
