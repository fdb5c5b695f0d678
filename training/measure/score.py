"""Score a segmentation model at the images' original size, by the path that a user of the model takes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from hub_unets.modeling.modeling_unet import segmentation_loss
from hub_unets.training.data.digests import PairDigests, pair_digests
from hub_unets.training.data.reading import IGNORE, read_image, require_same_size
from hub_unets.training.errors import UserError
from hub_unets.training.measure.boundaries import boundary_distances, is_installed, summarize_boundaries
from hub_unets.training.measure.columns import Column, Texts
from hub_unets.training.measure.false_alarms import marked_in_crop, summarize_crops
from hub_unets.training.measure.metrics import (
    background_counts,
    by_size,
    count_pixels,
    mean_with_interval,
    metrics_from_counts,
    summarize,
)
from hub_unets.training.measure.polyps import count_polyps, summarize_polyps
from hub_unets.training.measure.reliability import TABLE_BINS, expected_calibration_error, reliability_table
from hub_unets.training.measure.segmenter import Segmenter
from hub_unets.training.measure.task import Task

BINS = 200  # of probability

CURVE_THRESHOLDS = np.arange(1, BINS) / BINS

CURVES = ("dice", "precision", "recall")  # that are drawn against the threshold

LOGIT_BINS, LOGIT_LIMIT = 800, 20.0  # of the logit histograms; logits beyond the limit are in the last bin


DIGEST = 32  # bytes of a sha256


def _bytes_of(digests):
    return np.frombuffer(bytes.fromhex("".join(digests)), np.uint8)


def _digests_of(row):
    return PairDigests(*(row[start : start + DIGEST].tobytes().hex() for start in range(0, row.size, DIGEST)))


def _pixels_of(number):
    return None if number < 0 else int(number)


def _tuples():
    return field(default_factory=partial(Column, unpack=lambda row: tuple(row.tolist())))


def _columns(**options):
    return field(default_factory=partial(Column, **options))


@dataclass
class Scores:
    """What is kept of each scored image, in order: nothing that grows with its size, and in memory next to nothing.

    `counts` is int64 images x classes x 4, `losses` float64 images (cross-entropy at the original size, nats a
    pixel), `digests` PairDigests of each. Of several classes there are their `class_names`, in order, and the counts
    of the `background`, int64 4 an image. Of one class there are also, for each image, `tables`, float64 3 x
    TABLE_BINS (pixels of background and of polyp by predicted probability, and the sum of their probabilities),
    `polyps`, int64 4 (`training.measure.polyps`), where MONAI is installed `boundaries` (NSD and HD95;
    `training.measure.boundaries`), and where asked for `crops`, the pixels marked in the image's polyp-free crop, None
    without one (`training.measure.false_alarms`); and of all images together two sums, `by_threshold`, float64 CURVES
    x CURVE_THRESHOLDS (each image's metrics at each threshold), and
    `logits`, float64 2 x LOGIT_BINS (its shares of pixels of background and of polyp by logit).
    """

    names: Sequence = field(default_factory=Texts)
    sizes: Sequence = _tuples()
    counts: Sequence = _columns()
    losses: Sequence = _columns(unpack=float)
    class_names: list = field(default_factory=list)
    background: Sequence = _columns()
    digests: Sequence = _columns(pack=_bytes_of, unpack=_digests_of)
    tables: Sequence = _columns()
    by_threshold: np.ndarray = field(default_factory=lambda: np.zeros((len(CURVES), len(CURVE_THRESHOLDS))))
    logits: np.ndarray = field(default_factory=lambda: np.zeros((2, LOGIT_BINS)))
    polyps: Sequence = _columns()
    boundaries: Sequence = _tuples()
    crops: Sequence = _columns(pack=lambda pixels: -1 if pixels is None else pixels, unpack=_pixels_of)

    def add_mask(self, name, truth, mask, classes):
        """Count what needs no probabilities; `mask` and `truth` are class indices H x W, `classes` as of a Task."""
        self.names.append(name)
        self.sizes.append(truth.shape)
        self.counts.append(count_pixels(mask, truth, classes))
        if len(classes) > 1:
            self.background.append(background_counts(mask, truth, classes))
        else:
            predicted_polyp, true_polyp = np.isin(mask, classes[0]) & (truth != IGNORE), truth == 1
            self.polyps.append(count_polyps(predicted_polyp, true_polyp))
            if is_installed():
                self.boundaries.append(boundary_distances(predicted_polyp, true_polyp))

    def extend(self, other):
        """Add the images of another Scores of the same task."""
        for name, value in vars(other).items():
            if name != "class_names":
                joined = getattr(self, name)
                joined += value  # columns grow by the rows, arrays are sums

    def summary(self, names=None):
        """The metrics of these images, or of those among `names`, as `results.json` holds them."""
        kept = slice(None) if names is None else np.array([name in names for name in self.names], bool)
        counts = np.asarray(self.counts)[kept]
        summary = {"images": len(counts), **summarize(counts)}
        if self.losses:
            summary["loss"] = mean_with_interval(np.asarray(self.losses)[kept])
        if counts.shape[1] == 1:
            summary["by_size"] = by_size(counts[:, 0])
        if "per_class" in summary:
            classes = zip(self.class_names, summary["per_class"], strict=True)
            summary["per_class"] = [{"label": name, **class_metrics} for name, class_metrics in classes]
        if self.background:
            all_classes = summarize(np.concatenate([np.asarray(self.background)[kept][:, None], counts], axis=1))
            summary["with_background"] = {name: all_classes[name] for name in ("per_image", "pooled")}
        del counts  # it grows with the images
        if self.polyps:
            summary["polyps"] = summarize_polyps(np.asarray(self.polyps)[kept])
        if self.boundaries:
            distances, sizes = np.asarray(self.boundaries)[kept], np.asarray(self.sizes)[kept]
            summary["boundary"] = summarize_boundaries(distances, sizes)
        if self.crops:
            summary["false_alarms"] = summarize_crops(self._among(names, self.crops))
        if self.tables:
            table = reliability_table(sum(self._among(names, self.tables)))
            summary["calibration"] = {"ece": expected_calibration_error(table), "bins": table}
        return summary

    def _among(self, names, values):
        """Those of one value an image whose image is among `names`, one after another."""
        return (value for name, value in zip(self.names, values, strict=True) if names is None or name in names)


def score(
    model, processor, rows, task=None, threshold=None, flips=False, crops=False, batch_size=8, progress="", keep=None
):
    """Score every row.

    Args:
        model: a semantic segmentation model, in eval mode.
        processor: its image processor, with `post_process_semantic_segmentation`.
        rows: Dataset with name, image, annotation (encoded).
        task: what counts as what; None is polyps, label 1 of two.
        threshold: for our binary heads; None takes the processor's `mask_threshold`.
        flips: take the mean logits of each image and its mirror images; see `training.measure.flips`.
        crops: of one class, look for false alarms in each image's polyp-free crop too.
        batch_size: images a forward pass.
        progress: what the progress bar says; empty shows none.
        keep: takes each image's name and mask, integer H x W.

    Returns:
        Scores, in the order of the rows.

    Raises:
        UserError: a bad file, by its name; a threshold that the model does not have.
    """
    task = task or Task()
    segment = Segmenter(model, processor, threshold, flips)
    model.to(memory_format=torch.channels_last)
    names = [] if task.is_grouped else [model.config.id2label[label] for label in task.labels]
    scores = Scores(class_names=names)
    bar = tqdm(total=len(rows), desc=progress, unit="image", disable=not progress, leave=False)
    for start in range(0, len(rows), batch_size):
        batch = [rows[index] for index in range(start, min(start + batch_size, len(rows)))]
        images = [read_image(row["image"], row["name"], processor) for row in batch]
        truths = [task.truth(row) for row in batch]
        for row, image, truth in zip(batch, images, truths, strict=True):
            require_same_size(image, truth, row["name"])
            scores.digests.append(pair_digests(row, image, truth))
        masks, batch_logits = segment(images)
        for row, truth, mask, logits in zip(batch, truths, masks, batch_logits, strict=True):
            _require_finite(logits, row["name"])
            _add(scores, row["name"], truth, mask, _at_size(task.evidence(logits), truth.shape), task.classes)
            if keep is not None:
                keep(row["name"], mask)
        if crops and len(task.classes) == 1:
            scores.crops += [marked_in_crop(segment, task.labels, *pair) for pair in zip(images, truths, strict=True)]
        bar.update(len(batch))
    bar.close()
    return scores


def _require_finite(logits, name):
    """NaN has no bin, and no mask: where a network's weights are damaged, or it overflows in half precision."""
    if not bool(logits.isfinite().all()):
        raise UserError(
            f"{name}: the network's logits are not finite (NaN or infinite): its weights are damaged or training "
            "diverged, or it overflows in half precision."
        )


def _at_size(logits, size):
    """One image's logits K x h x w to float32 1 x K x H x W."""
    return F.interpolate(logits[None].float(), size=size, mode="bilinear")


def _add(scores, name, truth, mask, logits, classes):
    scores.add_mask(name, truth, mask, classes)
    scores.losses.append(float(segmentation_loss(logits, torch.from_numpy(truth).long()[None].to(logits.device))))
    if logits.shape[1] == 1:
        _add_histograms(scores, truth, logits[0, 0])


def _add_histograms(scores, truth, logits):
    """The pixels by probability and by logit; bin k of probability is (k, k + 1] / BINS, of logit centred."""
    probabilities = logits.sigmoid()
    bins = ((probabilities * BINS).ceil().long() - 1).clamp(min=0).cpu().numpy()
    histograms, counted = _by_truth(bins, truth, BINS), truth != IGNORE
    sums = np.bincount(bins[counted], probabilities.cpu().numpy()[counted].astype(np.float64), BINS)
    scores.tables.append(np.stack([*histograms, sums]).reshape(3, TABLE_BINS, -1).sum(axis=2))
    metrics = metrics_from_counts(threshold_counts(histograms))
    scores.by_threshold += np.stack([metrics[name] for name in CURVES])
    positions = (logits / LOGIT_LIMIT + 1) / 2 * LOGIT_BINS
    by_logit = _by_truth(positions.long().clamp(0, LOGIT_BINS - 1).cpu().numpy(), truth, LOGIT_BINS)
    scores.logits += by_logit / by_logit.sum()


def _by_truth(bins, truth, count):
    """Histograms of background and of polyp, int64 2 x count."""
    return np.stack([np.bincount(bins[truth == label], minlength=count) for label in (0, 1)])


def logit_centres():
    """The centres of the bins of `Scores.logits`, float64 LOGIT_BINS."""
    return ((np.arange(LOGIT_BINS) + 0.5) / LOGIT_BINS * 2 - 1) * LOGIT_LIMIT


def threshold_counts(histograms):
    """One image's pixels of background and of polyp, 2 x BINS by probability, to counts at CURVE_THRESHOLDS x 4."""
    false_positives, true_positives = (np.cumsum(side[::-1])[::-1][1:] for side in histograms)
    negatives, positives = histograms.sum(axis=1)
    unmarked = (positives - true_positives, negatives - false_positives)
    return np.stack([true_positives, false_positives, *unmarked], axis=1)
