"""Counts and metrics against values worked out by hand, their intervals, and the `evaluate` metric made of them."""

import numpy as np
import pytest

from hub_unets.training.measure.metrics import (
    NAMES,
    background_counts,
    by_size,
    count_pixels,
    mean_with_interval,
    metrics_from_counts,
    summarize,
)

PREDICTION = [[1, 1, 0], [0, 1, 0]]
REFERENCE = [[1, 0, 0], [1, 255, 0]]  # 255 where a polyp is predicted
LARGE, SMALL = [8, 2, 0, 90], [1, 0, 9, 90]  # Dice 16/18 and 2/11


def random_masks(count, labels=2, seed=0):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(4, 20, (count, 2))
    return [[rng.integers(0, labels, size) for size in sizes] for _ in range(2)]


class TestCountPixels:
    @pytest.mark.parametrize(
        ("prediction", "reference", "classes", "expected"),
        [
            (PREDICTION, REFERENCE, ((1,),), [[1, 1, 1, 2]]),
            ([[1, 2], [2, 0]], [[1, 1], [2, 255]], ((1,), (2,)), [[1, 0, 1, 1], [1, 1, 0, 1]]),
            ([[1, 2, 0, 3, 2]], [[1, 1, 1, 0, 255]], ((1, 2),), [[2, 0, 1, 1]]),
            ([[0, 0]], [[0, 0]], ((1,),), [[0, 0, 0, 2]]),
            ([[1, 0]], [[255, 255]], ((1,),), [[0, 0, 0, 0]]),
        ],
        ids=["binary", "two classes", "grouped", "both empty", "all ignored"],
    )
    def test_by_hand(self, prediction, reference, classes, expected):
        counts = count_pixels(prediction, reference, classes)
        assert counts.dtype == np.int64
        assert counts.tolist() == expected

    def test_sizes_must_agree(self):
        with pytest.raises(ValueError, match=r"prediction is \(2, 3\) and reference \(3, 2\): give the same H x W"):
            count_pixels(np.zeros((2, 3)), np.zeros((3, 2)))


class TestMetricsFromCounts:
    @pytest.mark.parametrize(
        ("counts", "dice", "iou", "precision", "recall", "accuracy"),
        [
            ([6, 2, 4, 8], 2 / 3, 0.5, 0.75, 0.6, 0.7),
            ([0, 0, 0, 9], 1, 1, 1, 1, 1),
            ([0, 0, 5, 4], 0, 0, 0, 0, 4 / 9),
            ([0, 3, 0, 6], 0, 0, 0, 0, 2 / 3),
            ([7, 0, 0, 0], 1, 1, 1, 1, 1),
        ],
        ids=["overlap", "both empty", "prediction empty", "reference empty", "all polyp"],
    )
    def test_by_hand(self, counts, dice, iou, precision, recall, accuracy):
        metrics = metrics_from_counts(counts)
        expected = dict(zip(NAMES, (dice, iou, precision, recall, dice, accuracy), strict=True))
        assert {name: float(value) for name, value in metrics.items()} == pytest.approx(expected)

    def test_shape_is_kept(self):
        counts = np.random.default_rng(0).integers(0, 9, (5, 3, 4))
        assert {values.shape for values in metrics_from_counts(counts).values()} == {(5, 3)}


class TestSummarize:
    def test_per_image_and_pooled_differ(self):
        summary = summarize(np.array([[LARGE], [SMALL]]))
        assert summary["per_image"]["dice"]["value"] == pytest.approx((16 / 18 + 2 / 11) / 2)
        assert summary["pooled"]["dice"]["value"] == pytest.approx(2 * 9 / (2 * 9 + 2 + 9))
        assert summary["per_image"]["recall"]["value"] == pytest.approx((1 + 0.1) / 2)
        assert summary["pooled"]["recall"]["value"] == pytest.approx(0.5)
        assert "per_class" not in summary

    def test_f1_is_dice(self):
        summary = summarize(np.random.default_rng(0).integers(0, 50, (9, 1, 4)))
        for kind in ("per_image", "pooled"):
            assert summary[kind]["f1"] == summary[kind]["dice"]
            assert set(summary[kind]) == set(NAMES)

    def test_classes_are_averaged_and_listed(self):
        summary = summarize(np.array([[LARGE, SMALL], [LARGE, [0, 0, 0, 100]]]))
        assert summary["per_image"]["dice"]["value"] == pytest.approx((16 / 18 + 2 / 11 + 16 / 18 + 1) / 4)
        assert summary["pooled"]["dice"]["value"] == pytest.approx((16 / 18 + 2 / 11) / 2)
        values = [class_metrics["per_image"]["dice"]["value"] for class_metrics in summary["per_class"]]
        assert values == pytest.approx([16 / 18, (2 / 11 + 1) / 2])

    def test_the_background_as_one_more_class(self):
        """Of 4 pixels of background 3 are kept; of 3 of classes one is called background; one is ignored."""
        prediction, reference = np.array([[0, 0, 0, 2, 0, 1, 2, 0]]), np.array([[0, 0, 0, 0, 1, 1, 1, 255]])
        assert background_counts(prediction, reference, ((1,), (2,))).tolist() == [3, 1, 1, 2]
        assert background_counts(prediction, reference, ((1,),)).tolist() == [4, 2, 0, 1]  # label 2 is no class then

    def test_a_class_by_the_images_that_hold_it(self):
        absent, imagined = [0, 0, 0, 100], [0, 5, 0, 95]
        counts = [[LARGE, absent, absent], [SMALL, imagined, absent], [absent, LARGE, absent]]
        first, second, third = (class_metrics["present"] for class_metrics in summarize(np.array(counts))["per_class"])
        assert (first["images"], first["dice"]["value"]) == (2, pytest.approx((16 / 18 + 2 / 11) / 2))
        assert first["dice"]["low"] == pytest.approx(2 / 11) and first["dice"]["high"] == pytest.approx(16 / 18)
        assert (second["images"], second["dice"]["value"]) == (1, pytest.approx(16 / 18))
        assert third == {"images": 0, "dice": None}

    def test_ten_thousand_images(self):
        counts = np.random.default_rng(0).integers(1, 5000, (10_000, 1, 4))
        dice = summarize(counts)["per_image"]["dice"]
        assert dice["value"] == pytest.approx(metrics_from_counts(counts)["dice"].mean())
        error = metrics_from_counts(counts)["dice"].std() / 100  # the central limit theorem's interval
        assert (dice["high"] - dice["low"]) == pytest.approx(2 * 1.96 * error, rel=0.05)


class TestIntervals:
    def test_deterministic_and_around_the_value(self):
        counts = np.random.default_rng(1).integers(0, 50, (40, 1, 4))
        summary = summarize(counts)
        assert summary == summarize(counts)
        for kind in ("per_image", "pooled"):
            for interval in summary[kind].values():
                assert 0 <= interval["low"] < interval["value"] < interval["high"] <= 1

    @pytest.mark.parametrize("value", [1.0, 0.25])
    @pytest.mark.parametrize("count", [1, 10, 49, 120])
    def test_constants_have_no_width(self, value, count):
        assert mean_with_interval([value] * count) == {"value": value, "low": value, "high": value}

    @pytest.mark.parametrize("count", [10, 15, 26, 120])  # counts whose shares do not sum to 1 in floating point
    def test_perfect_scores_stay_within_one(self, count):
        summary = summarize(np.tile([[5, 0, 0, 4]], (count, 1, 1)))
        assert {interval[key] for kind in summary.values() for interval in kind.values() for key in interval} == {1.0}

    def test_narrows_with_the_number_of_images(self):
        few, many = (mean_with_interval([0.0, 1.0] * half) for half in (10, 1000))
        assert few["high"] - few["low"] == pytest.approx(2 * 1.96 * 0.5 / 20**0.5, rel=0.15)
        assert many["high"] - many["low"] == pytest.approx(2 * 1.96 * 0.5 / 2000**0.5, rel=0.15)


def test_rows_by_size_by_hand():
    """Polyps of 1, 2.5, 2.6 and 50 % of a thousand pixels, and none."""
    counts = [[5, 0, 5, 990], [25, 25, 0, 950], [26, 0, 0, 974], [250, 0, 250, 500], [0, 0, 0, 1000]]
    small, middle, large = by_size(np.array(counts))
    assert [(row["above"], row["up_to"], row["images"]) for row in (small, middle, large)] == [
        (0, 0.025, 2), (0.025, 0.05, 1), (0.2, 1, 1)
    ]  # fmt: skip
    assert small["dice"]["value"] == pytest.approx(2 / 3) and small["recall"]["value"] == pytest.approx(0.75)
    assert (middle["dice"]["value"], large["recall"]["value"]) == (1, 0.5)
