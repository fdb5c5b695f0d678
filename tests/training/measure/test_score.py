"""Scores of real models on real files: by hand where the model says the same everywhere."""

import dataclasses
import io
import math
import sys

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from hub_unets.configuration.configuration_unet import UNetConfig
from hub_unets.modeling.image_processing_unet import UNetImageProcessor
from hub_unets.training.measure.metrics import metrics_from_counts
from hub_unets.training.measure.reliability import TABLE_BINS
from hub_unets.training.measure.score import BINS, CURVE_THRESHOLDS, CURVES, LOGIT_BINS, logit_centres, score
from hub_unets.training.measure.task import Task
from tests.training.measure.made_models import (
    FEATURES,
    PROCESSOR,
    SHAPES,
    box,
    constant_model,
    png,
    random_model,
    rows_of,
)


class TestScoreByHand:
    """A model with logit 1 everywhere: polyp with probability 0.731."""

    MASKS = (box((20, 30), 5, 6), np.zeros((17, 16)), box((30, 24), 30, 24))

    @pytest.mark.parametrize(
        ("threshold", "counts"),
        [
            (None, [[30, 570, 0, 0], [0, 272, 0, 0], [720, 0, 0, 0]]),
            (0.73, [[30, 570, 0, 0], [0, 272, 0, 0], [720, 0, 0, 0]]),
            (0.74, [[0, 0, 30, 570], [0, 0, 0, 272], [0, 0, 720, 0]]),
        ],
    )
    def test_counts(self, threshold, counts):
        scores = score(constant_model(1.0), PROCESSOR, rows_of(self.MASKS), Task(), threshold)
        assert np.stack(scores.counts).tolist() == [[row] for row in counts]
        assert (scores.names, scores.sizes) == (["f0", "f1", "f2"], SHAPES)

    def test_the_processors_threshold_is_the_default(self):
        careful = UNetImageProcessor(size=16, mask_threshold=0.74)
        scores = score(constant_model(1.0), careful, rows_of(self.MASKS), Task())
        assert [counts[0, :2].tolist() for counts in scores.counts] == [[0, 0]] * 3

    def test_losses(self):
        scores = score(constant_model(1.0), PROCESSOR, rows_of(self.MASKS), Task())
        polyp, background = math.log1p(math.exp(-1)), math.log1p(math.exp(1))
        assert list(scores.losses) == pytest.approx([(30 * polyp + 570 * background) / 600, background, polyp])

    def test_polyps_and_outlines(self):
        scores = score(constant_model(1.0), PROCESSOR, rows_of(self.MASKS), Task())
        assert [counts.tolist() for counts in scores.polyps] == [[1, 0, 1, 1], [0, 0, 0, 1], [1, 1, 1, 0]]
        assert scores.boundaries[1:] == [(0, math.hypot(17, 16)), (1, 0)]
        nsd, hd95 = scores.boundaries[0]
        assert 0 < nsd < 1 and 20 < hd95 < math.hypot(15, 24)
        summary = scores.summary({"f1", "f2"})
        assert (summary["polyps"]["polyps"], summary["polyps"]["false_polyps"]) == (1, 1)
        assert summary["boundary"]["nsd"]["value"] == 0.5
        assert summary["boundary"]["hd95_share"]["value"] == 0.5

    def test_calibration_of_a_constant(self):
        scores = score(constant_model(1.0), PROCESSOR, rows_of(self.MASKS), Task())
        probability, share = 1 / (1 + math.exp(-1)), 750 / (600 + 272 + 720)
        calibration = scores.summary()["calibration"]
        assert calibration["ece"] == pytest.approx(probability - share)
        (filled,) = [row for row in calibration["bins"] if row["pixels"]]
        assert filled == {"above": 0.7, "up_to": 0.75, "pixels": 1592, "polyp_pixels": 750} | {
            "probability": pytest.approx(probability)
        }
        assert scores.logits.sum(axis=1) == pytest.approx([570 / 600 + 1 + 0, 30 / 600 + 0 + 1])
        assert np.abs(logit_centres()[scores.logits.any(axis=0)] - 1) < 0.03

    def test_without_monai_the_outlines_are_left_out(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "monai", None)
        scores = score(constant_model(1.0), PROCESSOR, rows_of(self.MASKS), Task())
        assert not scores.boundaries and len(scores.polyps) == 3
        assert "boundary" not in scores.summary() and "polyps" in scores.summary()

    def test_summary(self):
        scores = score(constant_model(1.0), PROCESSOR, rows_of(self.MASKS), Task())
        summary = scores.summary()
        assert summary["images"] == 3
        assert summary["per_image"]["dice"]["value"] == pytest.approx((60 / 630 + 0 + 1) / 3)
        assert summary["pooled"]["dice"]["value"] == pytest.approx(2 * 750 / (750 + 1592))
        subset = scores.summary({"f0", "f2"})
        assert (subset["images"], subset["per_image"]["dice"]["value"]) == (2, pytest.approx((60 / 630 + 1) / 2))

    def test_an_empty_mask_predicted_empty_is_right(self):
        scores = score(constant_model(-9.0), PROCESSOR, rows_of([np.zeros((9, 9))]))
        assert scores.summary()["per_image"]["dice"] == {"value": 1, "low": 1, "high": 1}
        assert list(scores.losses) == pytest.approx([math.log1p(math.exp(-9))], rel=0.01)  # float32

    def test_ignored_pixels_count_nowhere(self):
        mask = box((10, 10), 2, 5, value=1)
        mask[5:] = 255
        scores = score(constant_model(1.0), PROCESSOR, rows_of([mask]), Task())
        assert scores.counts[0].tolist() == [[10, 40, 0, 0]]
        assert list(scores.losses) == pytest.approx([(10 * math.log1p(math.exp(-1)) + 40 * math.log1p(math.e)) / 50])
        assert scores.tables[0][:2].sum(axis=1).tolist() == [40, 10]
        assert scores.logits.sum(axis=1) == pytest.approx([40 / 50, 10 / 50])
        assert scores.tables[0][2].sum() == pytest.approx(50 / (1 + math.exp(-1)))
        assert scores.polyps[0].tolist() == [0, 0, 0, 1]  # a true region of 10 pixels is a speck
        whole = score(constant_model(1.0), PROCESSOR, rows_of([np.where(mask == 255, 255, 1)]), Task())
        assert whole.polyps[0].tolist() == [1, 1, 1, 0] and whole.boundaries[0] == (1, 0)

    def test_curves_by_threshold(self):
        scores = score(constant_model(1.0), PROCESSOR, rows_of(self.MASKS), Task())
        ends = CURVE_THRESHOLDS[0], CURVE_THRESHOLDS[-1]
        assert (len(CURVE_THRESHOLDS), *ends) == (BINS - 1, 1 / BINS, 1 - 1 / BINS)
        counts = np.stack(scores.counts)[:, 0]
        whole = metrics_from_counts(counts)  # all pixels are polyps up to the bin of .731, .730 to .735
        none = metrics_from_counts(np.roll(counts, 2, axis=1))
        for name, curve in zip(CURVES, scores.by_threshold, strict=True):
            expected = np.where(CURVE_THRESHOLDS <= 0.73, whole[name].sum(), none[name].sum())
            assert curve == pytest.approx(expected)


class TestScoreClasses:
    MASK = np.array([[0, 1, 1, 2], [0, 0, 255, 2]], np.uint8).repeat(3, 0).repeat(3, 1)  # 9 pixels each

    @pytest.mark.parametrize(
        ("logits", "expected", "background"),
        [
            ((0.0, 0.0, 5.0), [[0, 0, 18, 45], [18, 45, 0, 0]], [0, 0, 27, 36]),
            ((9.0, 0.0, 0.0), [[0, 0, 18, 45], [0, 0, 18, 45]], [27, 36, 0, 0]),
        ],
    )
    def test_each_class_of_the_model(self, logits, expected, background):
        model = constant_model(*logits, num_labels=3)
        scores = score(model, PROCESSOR, rows_of([self.MASK]), Task.of_classes(model.config))
        assert scores.counts[0].tolist() == expected and scores.background[0].tolist() == background
        assert not scores.tables
        assert [metrics["label"] for metrics in scores.summary()["per_class"]] == ["LABEL_1", "LABEL_2"]

    def test_a_boundary_of_the_truth(self):
        names = {0: "background", 1: "polyp", 2: "boundary"}
        model = constant_model(0.0, 0.0, 5.0, id2label=names)
        mask = np.zeros((12, 12), np.uint8)
        mask[2:9, 2:9] = 255
        scores = score(model, PROCESSOR, rows_of([mask]), Task.of_classes(model.config, 2))
        assert scores.counts[0].tolist() == [[0, 0, 9, 135], [40, 104, 0, 0]]
        assert [metrics["label"] for metrics in scores.summary()["per_class"]] == ["polyp", "boundary"]

    @pytest.mark.parametrize("num_labels", [2, 4])
    def test_a_boundary_needs_three_labels(self, num_labels):
        with pytest.raises(ValueError, match="boundary_width=2 needs three labels .*got num_labels="):
            Task.of_run(UNetConfig(num_labels=num_labels), boundary_width=2)
        with pytest.raises(ValueError, match="boundary_width=2 needs three labels .*got num_labels="):
            Task.of_polyps(UNetConfig(num_labels=3), mask_labels=num_labels, boundary_width=2)

    @pytest.mark.parametrize(("labels", "probability"), [((1, 2), 0.8), ((1,), 0.5)])
    def test_classes_grouped_as_polyp(self, labels, probability):
        model = constant_model(*np.log([0.2, 0.5, 0.3]), num_labels=3)
        scores = score(model, PROCESSOR, rows_of([self.MASK]), Task((labels,), num_labels=3))
        assert scores.counts[0].tolist() == [[36, 27, 0, 0]]
        expected = -(36 * math.log(probability) + 27 * math.log(1 - probability)) / 63
        assert list(scores.losses) == pytest.approx([expected])

    @pytest.mark.parametrize(("fields", "logits"), [({}, (1.0,)), ({"binary_head": False}, (0.0, 1.0))])
    def test_masks_of_more_classes_than_the_model(self, fields, logits):
        scores = score(constant_model(*logits, **fields), PROCESSOR, rows_of([self.MASK]), Task(num_labels=3))
        assert scores.counts[0].tolist() == [[36, 27, 0, 0]]
        assert list(scores.losses) == pytest.approx([(36 * math.log1p(math.exp(-1)) + 27 * math.log1p(math.e)) / 63])

    def test_such_masks_are_refused_when_nothing_is_said(self):
        with pytest.raises(ValueError, match="f0: labels out of range: found 0, 1, 2, 255"):
            score(constant_model(1.0), PROCESSOR, rows_of([self.MASK]), Task())

    @pytest.mark.parametrize("labels", [(3,), (0, 1, 2), (-1,)])
    def test_labels_that_the_model_does_not_have(self, labels):
        with pytest.raises(ValueError, match="must be some of the model's labels, 0 to 2, and not all of them"):
            Task.of_polyps(UNetConfig(num_labels=3), labels)

    def test_a_threshold_needs_a_binary_head(self):
        with pytest.raises(ValueError, match="threshold is for a binary head"):
            score(constant_model(0.0, 0.0, 0.0, num_labels=3), PROCESSOR, rows_of([self.MASK]), threshold=0.4)


class TestScoreOfRandomModels:
    @pytest.mark.parametrize("fields", [{}, {"binary_head": False}])
    def test_equals_a_users_own_steps(self, fields):
        rows, model = rows_of([box(shape, 9, 9) for shape in SHAPES]), random_model(**fields)
        scores = score(model, PROCESSOR, rows, Task())
        for row, shape, counts in zip(rows, SHAPES, scores.counts, strict=True):
            image = Image.open(io.BytesIO(row["image"]["bytes"]))
            with torch.no_grad():
                logits = model(**PROCESSOR(image)).logits
            odds = F.interpolate(logits, size=shape, mode="bilinear")[0].numpy()
            predicted, truth = odds[-1] > (0 if len(odds) == 1 else odds[0]), box(shape, 9, 9) > 0
            expected = [predicted & truth, predicted & ~truth, ~predicted & truth, ~predicted & ~truth]
            assert counts.tolist() == [[int(pixels.sum()) for pixels in expected]]
            assert 0 < predicted.mean() < 1

    def test_flips_are_the_mean_of_a_users_own(self):
        row, model = rows_of([box((20, 30), 9, 9)]), random_model()
        pixels = PROCESSOR(Image.open(io.BytesIO(row[0]["image"]["bytes"]))).pixel_values
        with torch.no_grad():
            logits = [model(pixels.flip(dims)).logits.flip(dims) for dims in ([], [3], [2], [2, 3])]
        odds = F.interpolate(torch.stack(logits).mean(dim=0), size=(20, 30), mode="bilinear")[0, 0].numpy()
        scores = score(model, PROCESSOR, row, Task(), flips=True)
        assert scores.counts[0][0, :2].sum() == (odds > 0).sum() > 0
        assert not np.array_equal(scores.logits, score(model, PROCESSOR, row, Task()).logits)

    def test_batches_do_not_matter(self):
        rows, model = rows_of([box(shape, 9, 9) for shape in SHAPES]), random_model()
        single, triple = (score(model, PROCESSOR, rows, Task(), batch_size=size) for size in (1, 3))
        assert np.array_equal(single.counts, triple.counts)
        assert list(single.losses) == pytest.approx(list(triple.losses), rel=1e-5)
        assert single.names == triple.names == ["f0", "f1", "f2"]

    @pytest.mark.parametrize("threshold", [0.3, 0.5, 0.62])
    def test_the_curves_are_the_metrics_there(self, threshold):
        rows = rows_of([box(shape, 9, 9) for shape in SHAPES] + [np.zeros((8, 8))])
        scores = score(random_model(), PROCESSOR, rows, Task(), threshold)
        expected = metrics_from_counts(np.stack(scores.counts)[:, 0])
        (index,) = np.flatnonzero(np.isclose(CURVE_THRESHOLDS, threshold))
        assert scores.by_threshold[:, index] == pytest.approx([expected[name].sum() for name in CURVES])

    def test_nothing_kept_grows_with_the_images(self):
        def kept(side):
            scores = score(random_model(), PROCESSOR, rows_of([box((side, side), 5, 5)] * 2), crops=True)
            kinds = ("counts", "losses", "tables", "polyps", "boundaries", "crops")
            values = [value for name in kinds for value in getattr(scores, name)]
            assert {field.name for field in dataclasses.fields(scores)} == {
                "names", "sizes", "counts", "losses", "class_names", "background", "digests", "tables",
                "by_threshold", "logits", "polyps", "boundaries", "crops",
            }  # fmt: skip
            return [np.asarray(value).nbytes for value in values], scores.logits.shape, scores.by_threshold.shape

        table = 8 * 3 * TABLE_BINS
        byte_counts = [32, 32, 8, 8, table, table, 32, 32, 16, 16, 8, 8]
        assert kept(16) == kept(160) == (byte_counts, (2, LOGIT_BINS), (3, BINS - 1))

    def test_each_image_weighs_the_same_in_the_logits(self):
        rows, model = rows_of([box(shape, 9, 9) for shape in SHAPES]), random_model()
        histograms = [score(model, PROCESSOR, rows.select([number]), Task()).logits for number in range(3)]
        assert np.array_equal(score(model, PROCESSOR, rows, Task(), batch_size=1).logits, sum(histograms))
        assert [histogram.sum() for histogram in histograms] == pytest.approx([1, 1, 1])

    def test_files_of_two_sizes_are_named(self):
        row = rows_of([np.zeros((9, 9))])[0] | {"annotation": {"bytes": png(np.zeros((9, 8))), "path": None}}
        with pytest.raises(ValueError, match="f0: .*9"):
            score(random_model(), PROCESSOR, datasets.Dataset.from_list([row], features=FEATURES), Task())
