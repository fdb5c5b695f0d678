"""The metric that `evaluate.load` finds: by hand, batch by batch, and of several classes."""

from pathlib import Path

import evaluate
import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "hub_repos/segmentation_overlap"
PREDICTION, REFERENCE = [[1, 1, 0], [0, 0, 0]], [[0, 1, 1], [0, 255, 0]]


@pytest.fixture(scope="module")
def metric():
    return evaluate.load(str(FOLDER))


def test_by_hand(metric):
    result = metric.compute(predictions=[PREDICTION], references=[REFERENCE])
    assert result["per_image"]["dice"]["value"] == pytest.approx(0.5)
    assert result["per_image"]["iou"]["value"] == pytest.approx(1 / 3)
    assert result["per_image"]["accuracy"]["value"] == pytest.approx(3 / 5)
    assert "per_image" in metric.description and "255" in metric.inputs_description


def test_batches_of_arrays_of_any_size_give_the_same(metric):
    rng = np.random.default_rng(0)
    masks = [rng.integers(0, 2, (2, 5, 4 + number)).astype(np.uint8) for number in range(4)]
    predictions, references = [pair[0] for pair in masks], [pair[1] for pair in masks]
    expected = metric.compute(predictions=predictions, references=references)
    for part in (slice(0, 3), slice(3, 4)):
        metric.add_batch(predictions=predictions[part], references=references[part])
    assert metric.compute() == expected


@pytest.mark.parametrize(("classes", "dice"), [(((1,), (2,)), [2 / 3, 2 / 3]), (((1, 2),), [1.0])])
def test_classes(metric, classes, dice):
    reference = [[1, 1, 2, 0]] if len(classes) == 2 else [[1, 1, 1, 0]]
    result = metric.compute(predictions=[[[1, 2, 2, 0]]], references=[reference], classes=classes)
    values = [scores["pooled"]["dice"]["value"] for scores in result.get("per_class", [result])]
    assert values == pytest.approx(dice)
