"""Every loss against values worked out by hand, against libraries, and what all promise: one number an image."""

import math
from functools import partial

import numpy as np
import pytest
import segmentation_models_pytorch.losses as smp
import torch
from monai import losses as monai
from scipy.ndimage import uniform_filter

from hub_unets.training.fit.losses import (
    LOSSES,
    SMOOTH,
    WeightedSum,
    bce,
    ce,
    dice,
    focal,
    focal_tversky,
    structure,
    tversky,
)

LN2, LN3, LN43 = math.log(2), math.log(3), math.log(4 / 3)
BINARY = torch.tensor([[0.0, LN3], [-LN3, 0.0]])[None, None]  # probabilities 1/2, 3/4, 1/4, 1/2
BINARY_LABELS = torch.tensor([[1, 1], [0, 255]])[None]
CLASSES = torch.tensor(  # probabilities of three classes, pixel by pixel
    [[[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]], [[0.2, 0.2, 0.6], [0.1, 0.1, 0.8]]]
).movedim(-1, 0)[None]
CLASS_LABELS = torch.tensor([[0, 2], [2, -100]])[None]

CHANNELS = {"bce": [1], "ce": [3], "structure": [1]}  # of the heads that a loss takes; both unless said
each_loss = pytest.mark.parametrize(
    ("name", "channels"), [(name, channels) for name in LOSSES for channels in CHANNELS.get(name, [1, 3])]
)


def some_batch(channels, images=3):
    logits = torch.randn(images, channels, 6, 5)
    labels = torch.randint(0, max(2, channels), (images, 6, 5))
    labels[0, 0, :4] = 255
    labels[-1, 2, 1:3] = -100
    return logits, labels


POLYP, OTHER = 1 + 5 * 959 / 961, 1 + 5 * 2 / 961  # structure's weights in 2 x 2 with two pixels of polyp
STRUCTURE = (POLYP * (LN2 + LN43) + OTHER * LN43) / (2 * POLYP + OTHER) + 1
STRUCTURE -= (1.25 * POLYP + 1) / (2 * POLYP + 0.25 * OTHER + 1)


@pytest.mark.parametrize(
    ("loss", "logits", "labels", "expected"),
    [
        (bce, BINARY, BINARY_LABELS, (LN2 + 2 * LN43) / 3),
        (dice, BINARY, BINARY_LABELS, 1 - 2 * 1.25 / (1.5 + 2)),
        (focal, BINARY, BINARY_LABELS, (0.25 / 4 * LN2 + 0.25 / 16 * LN43 + 0.75 / 16 * LN43) / 3),
        (partial(focal, alpha=1, gamma=1), BINARY, BINARY_LABELS, (LN2 / 2 + LN43 / 4) / 3),
        (tversky, BINARY, BINARY_LABELS, 1 - 1.25 / (1.25 + 0.3 * 0.25 + 0.7 * 0.75)),
        (partial(tversky, alpha=1, beta=0), BINARY, BINARY_LABELS, 1 - 1.25 / (1.25 + 0.25)),
        (focal_tversky, BINARY, BINARY_LABELS, (0.6 / 1.85) ** 0.75),
        (partial(focal_tversky, alpha=1, beta=0, gamma=2), BINARY, BINARY_LABELS, (0.25 / 1.5) ** 0.5),
        (structure, BINARY, BINARY_LABELS, STRUCTURE),
        (ce, CLASSES.log(), CLASS_LABELS, -math.log(0.5 * 0.25 * 0.6) / 3),
        (dice, CLASSES.log(), CLASS_LABELS, ((1 - 2 * 0.5 / 1.95) + 1 + (1 - 2 * 0.85 / 3.1)) / 3),
        (focal, CLASSES.log(), CLASS_LABELS, (0.75 / 4 * LN2 + 0.25 * (9 / 16 * 2 * LN2 - 0.16 * math.log(0.6))) / 3),
        (tversky, CLASSES.log(), CLASS_LABELS, (0.485 / 0.985 + 1 + 0.88 / 1.73) / 3),
        (focal_tversky, CLASSES.log(), CLASS_LABELS, ((0.485 / 0.985) ** 0.75 + 1 + (0.88 / 1.73) ** 0.75) / 3),
    ],
)
def test_by_hand(loss, logits, labels, expected):
    assert loss(logits, labels).tolist() == pytest.approx([expected], abs=1e-5)


@pytest.mark.parametrize(("row", "rows"), [(20, 31), (0, 16)])
def test_structure_of_one_pixel(row, rows):
    """Of 41 x 41 pixels, 31 x `rows` have the polyp's one in their window."""
    labels = torch.zeros(1, 41, 41, dtype=torch.long)
    labels[0, row, 20] = 1
    polyp, background = 1 + 5 * 960 / 961, 41 * 41 - 1 + 5 * (31 * rows - 1) / 961
    expected = LN2 + 1 - (polyp / 2 + 1) / (polyp + background / 2 + 1)
    assert structure(torch.zeros(1, 1, 41, 41), labels).item() == pytest.approx(expected, abs=1e-5)


@each_loss
class TestEveryLoss:
    def test_each_image_of_a_batch_counts_alone(self, name, channels):
        logits, labels = some_batch(channels)
        together = LOSSES[name](logits, labels)
        single = [LOSSES[name](logits[i : i + 1], labels[i : i + 1]).item() for i in range(3)]
        assert together.shape == (3,)
        assert together.tolist() == pytest.approx(single, rel=1e-6)
        assert len({round(value, 3) for value in single}) == 3

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

    @pytest.mark.parametrize("rows", [[0, 0], [1, 1], [0, 1], [1, 255], [-100, -100]])
    @pytest.mark.parametrize("scale", [1e4, -1e4, 30, 0])
    def test_sure_logits_give_finite_values_and_gradients(self, name, channels, scale, rows):
        labels = torch.tensor(rows)[None, :, None].expand(1, 2, 5)
        classes = range(channels) if channels > 1 else [1]
        right = torch.stack([labels == label for label in classes], dim=1)
        logits = (scale * (2.0 * right - 1)).requires_grad_()
        value = LOSSES[name](logits, labels)
        value.sum().backward()
        assert value.isfinite().all() and logits.grad.isfinite().all()
        if scale > 0:
            assert value.item() == pytest.approx(0, abs=1e-4)

    def test_an_empty_mask_teaches(self, name, channels):
        logits = torch.zeros(1, channels, 4, 4, requires_grad=True)
        LOSSES[name](logits, torch.zeros(1, 4, 4, dtype=torch.long)).sum().backward()
        assert (logits.grad[:, -1] > 0).all()


def some_masks(channels):
    """A batch with every class in each image, as the libraries' Dice of an absent class differs, and 255 in two."""
    logits, labels = torch.randn(3, channels, 40, 37), torch.randint(0, max(2, channels), (3, 40, 37))
    labels[0, :5], labels[1, 7:9, 3:] = 255, 255
    return logits, labels


IGNORE = {"ignore_index": 255}
SMP, MONAI = {"smooth": SMOOTH, **IGNORE}, {"smooth_nr": SMOOTH, "smooth_dr": SMOOTH, **IGNORE}
HALF = {"smooth": SMOOTH / 2, **IGNORE}  # smp's Dice is Tversky with halves, ours Dice with plain sums
SOFTMAX = {"softmax": True, "to_onehot_y": True}
FOCAL, TVERSKY = {"alpha": 0.3, "gamma": 1.5}, {"alpha": 0.2, "beta": 0.9}


def smp_bce(logits, labels):
    losses = smp.SoftBCEWithLogitsLoss(ignore_index=255, reduction="sum")(logits, labels.float())
    return losses / (labels != 255).sum()


def monai_softmax_focal(logits, labels):
    """The sum over classes, which its own mean divides by their number."""
    losses = monai.FocalLoss(use_softmax=True, to_onehot_y=True, **FOCAL, **IGNORE, reduction="none")(logits, labels)
    return losses.sum() / (labels != 255).sum()


def monai_focal_tversky(logits, labels):
    return (monai.TverskyLoss(**SOFTMAX, **TVERSKY, **MONAI, reduction="none")(logits, labels) ** (1 / 3)).mean()


OUR_FOCAL, OUR_TVERSKY = partial(focal, **FOCAL), partial(tversky, **TVERSKY)
OUR_FOCAL_TVERSKY = partial(focal_tversky, **TVERSKY, gamma=3)


@pytest.mark.parametrize(
    ("loss", "channels", "reference"),
    [
        (bce, 1, smp_bce),
        (ce, 3, lambda logits, labels: torch.nn.CrossEntropyLoss(**IGNORE)(logits, labels[:, 0])),
        (dice, 1, smp.DiceLoss("binary", **HALF)),
        (dice, 1, monai.DiceLoss(sigmoid=True, **MONAI)),
        (dice, 3, smp.DiceLoss("multiclass", **HALF)),
        (dice, 3, monai.DiceLoss(**SOFTMAX, **MONAI)),
        (OUR_FOCAL, 1, smp.FocalLoss("binary", **FOCAL, **IGNORE)),
        (OUR_FOCAL, 1, monai.FocalLoss(**FOCAL, **IGNORE)),
        (OUR_FOCAL, 3, monai_softmax_focal),
        (OUR_TVERSKY, 1, smp.TverskyLoss("binary", **TVERSKY, **SMP)),
        (OUR_TVERSKY, 1, monai.TverskyLoss(sigmoid=True, **TVERSKY, **MONAI)),
        (OUR_TVERSKY, 3, smp.TverskyLoss("multiclass", **TVERSKY, **SMP)),
        (OUR_TVERSKY, 3, monai.TverskyLoss(**SOFTMAX, **TVERSKY, **MONAI)),
        (OUR_FOCAL_TVERSKY, 1, smp.TverskyLoss("binary", **TVERSKY, gamma=1 / 3, **SMP)),
        (OUR_FOCAL_TVERSKY, 3, monai_focal_tversky),
    ],
)
def test_as_the_libraries(loss, channels, reference):
    logits, labels = some_masks(channels)
    expected = [reference(logits[i : i + 1], labels[i : i + 1, None]).item() for i in range(3)]
    assert loss(logits, labels).tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("name", "channels", "activation"), [("bce", 1, {"sigmoid": True}), ("ce", 3, SOFTMAX)])
def test_cross_entropy_and_dice_as_monai(name, channels, activation):
    logits, labels = some_masks(channels)
    logits, labels = logits[2:], labels[2:]  # it has no ignored pixels
    target = labels[:, None] if channels > 1 else labels[:, None].float()
    expected = monai.DiceCELoss(**activation, smooth_nr=SMOOTH, smooth_dr=SMOOTH, lambda_ce=0.3)(logits, target)
    assert WeightedSum({name: 0.3, "dice": 1})(logits, labels).item() == pytest.approx(expected.item(), abs=1e-5)


def test_structure_in_numpy():
    logits, labels = some_masks(1)
    for image, value in zip(range(3), structure(logits, labels).tolist(), strict=True):
        truth = (labels[image] == 1).double().numpy()
        counted = (labels[image] != 255).numpy()
        weights = (1 + 5 * abs(uniform_filter(truth, size=31, mode="constant") - truth))[counted]
        truth, predicted = truth[counted], logits[image, 0].double().sigmoid().numpy()[counted]
        entropy = -(weights * np.log(truth * predicted + (1 - truth) * (1 - predicted))).sum() / weights.sum()
        overlap, union = (weights * truth * predicted).sum(), (weights * (truth + predicted - truth * predicted)).sum()
        assert value == pytest.approx(entropy + 1 - (overlap + 1) / (union + 1), abs=1e-5)


def test_dice_is_tversky_with_halves():
    logits, labels = some_batch(3)
    assert tversky(logits, labels, alpha=0.5, beta=0.5).tolist() == pytest.approx(
        dice(logits, labels).tolist(), abs=1e-5
    )


@pytest.mark.parametrize(("channels", "plain"), [(1, bce), (3, ce)])
def test_focal_without_fading_is_half_the_cross_entropy(channels, plain):
    logits, labels = some_batch(channels)
    expected = (plain(logits, labels) / 2).tolist()
    assert focal(logits, labels, alpha=0.5, gamma=0).tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (partial(focal, alpha=1.5), "loss.focal.alpha must lie in 0..1, got 1.5"),
        (partial(focal_tversky, gamma=0.0), "loss.focal_tversky.gamma must be above 0, got 0.0"),
    ],
)
def test_a_parameter_out_of_range_is_refused(loss, message):
    with pytest.raises(ValueError, match=message):
        loss(BINARY, BINARY_LABELS)


def test_dice_of_an_empty_mask():
    labels = torch.zeros(1, 4, 4, dtype=torch.long)
    logits = torch.full((1, 1, 4, 4), -40.0)
    assert dice(logits, labels).item() == pytest.approx(0, abs=1e-5)
    assert dice(-logits, labels).item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("loss", "channels", "cure"),
    [
        (bce, 2, "loss bce is for a binary head; this model has 2 logits: use ce"),
        (structure, 3, "loss structure is for a binary head; this model has 3 logits: use ce with dice"),
        (ce, 1, "a binary head: use bce"),
    ],
)
def test_the_other_head_is_refused(loss, channels, cure):
    with pytest.raises(ValueError, match=cure):
        loss(torch.zeros(1, channels, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long))


class TestWeightedSum:
    def test_weights(self):
        total = WeightedSum({"bce": 0.5, "dice": 2})(BINARY, BINARY_LABELS)
        assert total.item() == pytest.approx(0.5 * (LN2 + 2 * LN43) / 3 + 2 / 3.5, abs=1e-5)

    def test_parameters(self):
        total = WeightedSum({"focal.gamma": 1, "focal": 2, "focal.alpha": 1, "tversky": 1})(BINARY, BINARY_LABELS)
        assert total.item() == pytest.approx(2 * (LN2 / 2 + LN43 / 4) / 3 + 0.6 / 1.85, abs=1e-5)

    def test_a_weight_of_zero_computes_nothing(self):
        total = WeightedSum({"ce": 0, "focal": 0, "focal.gamma": 3, "dice": 1.0})  # ce would refuse a binary head
        total = total(BINARY, BINARY_LABELS)
        assert total.item() == pytest.approx(1 / 3.5, abs=1e-5)

    @pytest.mark.parametrize(
        ("weights", "message"),
        [
            ({"dise": 1}, "loss.dise is unknown; did you mean dice[?] There are bce, ce, dice"),
            ({"bc": 1, "dice": 1}, "loss.bc is unknown; did you mean bce[?]"),
            ({"focl": 1, "focl.alpha": 1}, "loss.focl is unknown; did you mean focal[?]"),
            (
                {"focal": 1, "focal.gama": 1},
                "loss.focal.gama is unknown; did you mean focal.gamma[?] focal has alpha, g",
            ),
            ({"bce": 1, "bce.alpha": 1}, "loss.bce.alpha is unknown: bce has no parameters"),
            ({"dice": 1, "focal.gamma": 1}, "loss.focal.gamma has no effect without a weight: set loss.focal too"),
            ({"focal": 1, "focal.gamma": "2x"}, "loss.focal.gamma must be a number of at least 0, got '2x'"),
            ({"tversky": 1, "tversky.beta": -1}, "loss.tversky.beta must be a number of at least 0, got -1"),
            ({"focal": {"gamma": 2}}, "loss.focal must be a weight of at least 0, got {'gamma': 2}"),
            ({"dice": True}, "loss.dice must be a weight of at least 0, got True"),
            ({"dice": math.nan}, "loss.dice must be a weight of at least 0, got nan"),
            ({"dice": -0.5}, "loss.dice must be a weight of at least 0, got -0.5"),
            ({"dice": "much"}, "loss.dice must be a weight of at least 0, got 'much'"),
            ({}, "loss needs at least one of bce, ce, dice, .*structure with a positive weight"),
            ({"bce": 0, "dice": 0.0}, "needs at least one"),
        ],
    )
    def test_refused(self, weights, message):
        with pytest.raises(ValueError, match=message):
            WeightedSum(weights)
