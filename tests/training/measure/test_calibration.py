"""Temperature and threshold: recovered where they are known, kept by the head and the processor."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from hub_unets.modeling.image_processing_unet import UNetImageProcessor
from hub_unets.training.data.polyp_free import largest_free_crop
from hub_unets.training.data.reading import read_image, read_labels
from hub_unets.training.measure.calibration import (
    SCORES,
    THRESHOLDS,
    by_thresholds,
    calibrate,
    choose,
    dice_by_score,
    fit_temperature,
    fold_temperature,
    mirrored,
)
from hub_unets.training.measure.false_alarms import MIN_SIDE, marked_pixels
from hub_unets.training.measure.flips import FLIPS
from hub_unets.training.measure.score import LOGIT_BINS, logit_centres, score
from hub_unets.training.measure.segmenter import Segmenter
from hub_unets.training.measure.task import Task
from tests.training.measure.made_models import FEATURES, box, png, random_model, rows_of


def shares(temperature):
    """Shares of pixels by logit, of logits whose probability of a polyp is, exactly, sigmoid(logit / temperature)."""
    centres = logit_centres()
    weights = np.exp(-((centres / 8) ** 2))
    polyp = 1 / (1 + np.exp(-centres / temperature))
    return np.array([weights * (1 - polyp), weights * polyp]) / weights.sum()


@pytest.mark.parametrize("temperature", [0.5, 1, 2.5])
def test_the_temperature_is_recovered(temperature):
    assert fit_temperature(shares(temperature)) == pytest.approx(temperature, rel=1e-3)


def test_of_two_temperatures_it_finds_one_between():
    assert 1.2 < fit_temperature((shares(1) + shares(2)) / 2) < 1.8


def test_the_range_ends_where_no_temperature_is_too_low():
    perfect = np.where(logit_centres() > 0, [[0], [5]], [[5], [0]]) / (5 * LOGIT_BINS)
    assert fit_temperature(perfect) == pytest.approx(0.1, rel=0.01)


def test_folding_divides_every_logit():
    model, pixels = random_model(), torch.randn(2, 3, 16, 16)
    before = model(pixels).logits
    fold_temperature(model, 1.7)
    torch.testing.assert_close(model(pixels).logits, before / 1.7)


def test_fewest_alarms_among_the_pairs_of_good_dice():
    dice, alarms = np.full((9, 100), 0.5), np.full((9, 100), 0.0)
    dice[2, 3], alarms[2, 3] = 0.9, 0.4  # the best
    dice[2, 4], alarms[2, 4] = 0.8995, 0.2
    dice[5, 7], alarms[5, 7] = 0.8993, 0.1  # the fewest alarms within .001
    dice[5, 6], alarms[5, 6] = 0.8991, 0.1
    dice[5, 8], alarms[5, 8] = 0.8989, 0.0  # costs too much
    assert choose(dice, alarms) == (5, 7)


def noisy_rows(model, processor, shapes=((20, 30), (17, 16), (30, 24))):
    """Images whose truth is the model's own mask, a fifth of its pixels changed."""
    rng, rows = np.random.default_rng(0), rows_of([box(shape, 0, 0) for shape in shapes])
    masks = []
    for row, shape in zip(rows, shapes, strict=True):
        outputs = model(**processor(read_image(row["image"], row["name"])))
        mask = processor.post_process_semantic_segmentation(outputs, [shape])[0].numpy() > 0
        masks.append(255 * (mask ^ (rng.random(shape) > 0.8)))
    return rows_of(masks)


@pytest.fixture
def fitted():
    """A random model calibrated on three images: (it before, it after, processor, rows, what is recorded)."""
    models, processor = [random_model(), random_model()], UNetImageProcessor(size=16)
    for model in models:
        model.head.classifier.weight.data *= 3
        model.head.classifier.bias.data += 0.3
    rows = noisy_rows(models[0], processor)
    return *models, processor, rows, calibrate(models[1], processor, rows).record


def test_what_is_kept_is_what_is_recorded(fitted):
    before, after, processor, rows, record = fitted
    assert (record["threshold"], record["score_threshold"]) == (processor.mask_threshold, processor.score_threshold)
    assert 0.2 < record["temperature"] < 5
    pixels = processor(read_image(rows[0]["image"], "f0")).pixel_values
    torch.testing.assert_close(after(pixels).logits, before(pixels).logits / record["temperature"])
    summary = score(after, processor, rows, Task(), crops=True).summary()
    assert summary["loss"]["value"] == record["loss_after"] < record["loss_before"]
    assert summary["calibration"]["ece"] == record["ece_after"]
    assert summary["per_image"]["dice"]["value"] == record["dice_after"]
    processor.mask_threshold, processor.score_threshold = 0.5, 0.0
    at_half = score(before, processor, rows, Task()).summary()
    assert at_half["per_image"]["dice"]["value"] == record["dice_before"]
    assert (record["images"], at_half["loss"]["value"]) == (3, record["loss_before"])


def test_both_tables_are_what_scoring_says_of_images_and_mirror_images(fitted):
    _, model, processor, rows, _ = fitted
    rows = rows_of([box((40, 40), 10, 40), *(read_labels(row["annotation"], "x") * 255 for row in rows)])
    dice, alarms = by_thresholds(model, processor, rows)
    pairs = [(read_image(row["image"], "x"), read_labels(row["annotation"], "x")) for row in rows]
    crops = [crop for pair in pairs if (crop := largest_free_crop(*pair, MIN_SIDE)) is not None]
    assert len(crops) >= 1
    flips = [
        rows_of_pairs([(mirrored(image, dims), mirrored(labels, dims)) for image, labels in pairs]) for dims in FLIPS
    ]
    for pixels, regions in ((0, 0), (4, 40), (5, 60), (8, 99)):
        processor.mask_threshold, processor.score_threshold = float(THRESHOLDS[pixels]), float(SCORES[regions])
        means = [score(model, processor, flip, Task()).summary()["per_image"]["dice"]["value"] for flip in flips]
        assert dice[pixels, regions] == pytest.approx(np.mean(means), abs=1e-12)
        images = [Image.fromarray(mirrored(crop, dims)) for crop in crops for dims in FLIPS]
        marked = [marked_pixels(Segmenter(model, processor), [1], crop) > 0 for crop in images]
        assert alarms[pixels, regions] == pytest.approx(np.mean(marked), abs=1e-12)
    assert alarms[0, 0] > 0 and alarms[8, 99] == 0


def rows_of_pairs(pairs):
    """A row for each pair of image and labels of 0 and 1."""
    rows = rows_of([labels * 255 for _, labels in pairs]).to_list()
    for row, (image, _) in zip(rows, pairs, strict=True):
        row["image"] = {"bytes": png(np.ascontiguousarray(image)), "path": None}
    return datasets.Dataset.from_list(rows, features=FEATURES)


@pytest.mark.parametrize(("dims", "expected"), [((), "abcd"), ((-1,), "badc"), ((-2,), "cdab"), ((-2, -1), "dcba")])
def test_mirrored_as_the_flips_of_tensors(dims, expected):
    array = np.array([["a", "b"], ["c", "d"]])
    assert "".join(mirrored(array, dims).ravel()) == expected
    assert (
        mirrored(np.arange(12).reshape(2, 2, 3), dims)
        == torch.arange(12).reshape(2, 2, 3).movedim(-1, 0).flip(dims).movedim(0, -1).numpy()
    ).all()


def test_no_other_temperature_has_a_lower_loss(fitted):
    before, _, processor, rows, record = fitted
    for factor in (0.97, 1.03):
        other = random_model()
        other.load_state_dict(before.state_dict())
        fold_temperature(other, factor * record["temperature"])
        assert score(other, processor, rows, Task()).summary()["loss"]["value"] > record["loss_after"]


def test_dice_by_score_by_hand():
    ids = np.array([[1] * 10 + [2] * 5 + [0] * 5])  # a polyp found, and a false alarm
    labels = np.array([[1] * 10 + [0] * 10], np.uint8)
    by_score = dict(zip(SCORES.round(2).tolist(), dice_by_score(ids, [0.9, 0.6], labels).tolist(), strict=True))
    assert by_score[0.0] == by_score[0.6] == pytest.approx(20 / 25)
    assert by_score[0.61] == by_score[0.9] == 1
    assert by_score[0.91] == 0
    labels[0, 10:15] = 255  # ignored
    assert dice_by_score(ids, [0.9, 0.6], labels)[0] == 1
    assert (dice_by_score(np.zeros((2, 2), int), [], np.zeros((2, 2), np.uint8)) == 1).all()
