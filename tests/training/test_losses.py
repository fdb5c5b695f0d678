"""Every loss against values worked out by hand, and what all of them promise: one number an image, none for 255."""

import math

import pytest
import torch

from training.losses import LOSSES, WeightedSum, bce, ce, dice

LN3 = math.log(3)
BINARY = torch.tensor([[0.0, LN3], [-LN3, 0.0]])[None, None]  # probabilities 1/2, 3/4, 1/4, 1/2
BINARY_LABELS = torch.tensor([[1, 1], [0, 255]])[None]
CLASSES = torch.tensor(  # probabilities of three classes, pixel by pixel
    [[[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]], [[0.2, 0.2, 0.6], [0.1, 0.1, 0.8]]]
).movedim(-1, 0)[None]
CLASS_LABELS = torch.tensor([[0, 2], [2, -100]])[None]

each_loss = pytest.mark.parametrize(("name", "channels"), [("bce", 1), ("ce", 3), ("dice", 1), ("dice", 3)])


def some_batch(channels, images=3):
    logits = torch.randn(images, channels, 6, 5)
    labels = torch.randint(0, max(2, channels), (images, 6, 5))
    labels[0, 0, :4] = 255
    labels[-1, 2, 1:3] = -100
    return logits, labels


@pytest.mark.parametrize(
    ("loss", "logits", "labels", "expected"),
    [
        (bce, BINARY, BINARY_LABELS, (math.log(2) + 2 * math.log(4 / 3)) / 3),
        (dice, BINARY, BINARY_LABELS, 1 - 2 * 1.25 / (1.5 + 2)),
        (ce, CLASSES.log(), CLASS_LABELS, -math.log(0.5 * 0.25 * 0.6) / 3),
        (dice, CLASSES.log(), CLASS_LABELS, ((1 - 2 * 0.5 / 1.95) + 1 + (1 - 2 * 0.85 / 3.1)) / 3),
    ],
    ids=["bce", "dice, binary", "ce", "dice, 3 classes"],
)
def test_by_hand(loss, logits, labels, expected):
    assert loss(logits, labels).tolist() == pytest.approx([expected], abs=1e-5)


@each_loss
class TestEveryLoss:
    def test_each_image_of_a_batch_counts_alone(self, name, channels):
        logits, labels = some_batch(channels)
        together = LOSSES[name](logits, labels)
        alone = [LOSSES[name](logits[i : i + 1], labels[i : i + 1]).item() for i in range(3)]
        assert together.shape == (3,)
        assert together.tolist() == pytest.approx(alone, rel=1e-6)
        assert len({round(value, 3) for value in alone}) == 3

    @pytest.mark.parametrize("ignored", [255, -100])
    def test_ignored_pixels_change_neither_value_nor_gradient(self, name, channels, ignored):
        logits, labels = some_batch(channels, images=1)
        labels[:, 2:4] = ignored
        other = logits.clone()
        other[:, :, 2:4] = 50.0
        assert torch.equal(LOSSES[name](logits, labels), LOSSES[name](other, labels))
        logits.requires_grad_()
        LOSSES[name](logits, labels).sum().backward()
        assert not logits.grad[:, :, 2:4].any() and logits.grad[:, :, :2].any()

    @pytest.mark.parametrize("ignored", [255, -100])
    def test_nothing_but_ignored_pixels(self, name, channels, ignored):
        logits = torch.randn(1, channels, 4, 4, requires_grad=True)
        value = LOSSES[name](logits, torch.full((1, 4, 4), ignored))
        value.sum().backward()
        assert value.item() == pytest.approx(0, abs=1e-6)
        assert not logits.grad.any()

    def test_falls_when_the_logits_move_against_the_gradient(self, name, channels):
        logits, labels = some_batch(channels)
        logits.requires_grad_()
        before = LOSSES[name](logits, labels)
        before.sum().backward()
        assert (LOSSES[name](logits.detach() - logits.grad, labels) < before).all()

    def test_bfloat16_logits_are_computed_in_float32(self, name, channels):
        logits, labels = some_batch(channels)
        logits = logits.bfloat16()
        value = LOSSES[name](logits, labels)
        assert value.dtype == torch.float32
        assert torch.equal(value, LOSSES[name](logits.float(), labels))


def test_dice_of_an_empty_mask():
    labels = torch.zeros(1, 4, 4, dtype=torch.long)
    logits = torch.full((1, 1, 4, 4), -40.0)
    assert dice(logits, labels).item() == pytest.approx(0, abs=1e-5)
    assert dice(-logits, labels).item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("loss", "channels", "cure"), [(bce, 2, "this model has 2 logits: use ce"), (ce, 1, "a binary head: use bce")]
)
def test_the_other_head_is_refused(loss, channels, cure):
    with pytest.raises(ValueError, match=cure):
        loss(torch.zeros(1, channels, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long))


class TestWeightedSum:
    def test_weights(self):
        total = WeightedSum({"bce": 0.5, "dice": 2})(BINARY, BINARY_LABELS)
        assert total.item() == pytest.approx(0.5 * (math.log(2) + 2 * math.log(4 / 3)) / 3 + 2 / 3.5, abs=1e-5)

    def test_a_weight_of_zero_computes_nothing(self):
        total = WeightedSum({"ce": 0, "dice": 1.0})(BINARY, BINARY_LABELS)  # ce would refuse a binary head
        assert total.item() == pytest.approx(1 / 3.5, abs=1e-5)

    @pytest.mark.parametrize(
        ("weights", "message"),
        [
            ({"dise": 1}, "loss.dise is unknown; did you mean dice[?] There are bce, ce, dice"),
            ({"bc": 1, "dice": 1}, "loss.bc is unknown; did you mean bce[?]"),
            ({"dice": -0.5}, "loss.dice must be a weight of at least 0, got -0.5"),
            ({"dice": "much"}, "loss.dice must be a weight of at least 0, got 'much'"),
            ({}, "loss needs at least one of bce, ce, dice with a positive weight"),
            ({"bce": 0, "dice": 0.0}, "needs at least one"),
        ],
    )
    def test_refused(self, weights, message):
        with pytest.raises(ValueError, match=message):
            WeightedSum(weights)
