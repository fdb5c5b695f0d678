"""Each decision by a table of cases, on fingerprints that are made up."""

import pytest

from hub_unets.training.plan.decide import (
    Facts,
    compose,
    needed_size,
    run_minutes,
    smaller_size,
    wanted_batch,
    wanted_size,
)
from hub_unets.training.plan.encoders import Encoder
from hub_unets.training.plan.fingerprint import Fingerprint
from hub_unets.training.plan.hardware import Hardware
from hub_unets.training.plan.headers import Header
from hub_unets.training.plan.trial import Trial

FOUND = Fingerprint(
    images=1000, width=620, height=530, smallest_side=332, largest_side=1920, header=Header(3, 8), num_labels=2,
    images_of_label=(1000,), share_of_label=(0.11,), empty=0, objects=1060, smallest_width=0.11, median_width=0.29,
    alike=(),
)  # fmt: skip
CPU = Hardware("cpu", 8 * 2**30, "bf16", 1, "cpu")
GPU = Hardware("cuda", 80 * 2**30, "bf16", 1, "gpu")
HALVES = (0.5, 0.5, 0.5)
MOBILENET = Encoder("mobilenetv2_100", "weights", HALVES, HALVES, "there")
PLAIN = Encoder(None, "none", HALVES, HALVES, "not reachable")
FAST = Trial(8, 0.01, 2**30)


def facts(hardware=CPU, encoder=MOBILENET, train=800, given=(), split="80/10/10", parted=(), **changes):
    sizes = {"train": train, "validation": train // 8, "test": train // 8}
    found = FOUND._replace(**changes)
    return Facts("my-data", found, split, "drawn", sizes, parted, hardware, encoder, dict(given))


def fields(known, size=288, trial=FAST):
    return {field.name: field.value for field in compose(known, size, trial).fields}


def lines(known, size=288, trial=FAST):
    return {line.split()[0].rstrip(":"): line for line in compose(known, size, trial).lines()}


@pytest.mark.parametrize(
    ("known", "size"),
    [
        (facts(), 288),
        (facts(GPU), 384),
        (facts(encoder=PLAIN), 224),
        (facts(smallest_width=0.02), 512),  # 10 px at 500
        (facts(smallest_width=0.002), 512),  # the most on a CPU
        (facts(GPU, smallest_width=0.002, width=2000, height=2000), 1024),
        (facts(smallest_width=0.02, width=400, height=400), 416),  # no larger than the images
        (facts(width=120, height=100), 128),
        (facts(width=30, height=30), 64),
    ],
)
def test_image_size(known, size):
    assert wanted_size(known) == size


def test_size_that_objects_need():
    assert needed_size(FOUND, 8) == 96  # 73 px
    assert needed_size(FOUND._replace(smallest_width=0.03125), 10) == 320


@pytest.mark.parametrize(("size", "train_size"), [(288, 256), (384, 320), (224, 192), (192, None), (64, None)])
def test_train_size(size, train_size):
    assert fields(facts(), size).get("train_size") == train_size


def test_ten_lines_and_the_sizes_reason():
    found = lines(facts())
    assert len(compose(facts(), 288, FAST).lines()) == 10
    assert "63 px wide in frames of 620 x 530, 32 px at 288; the usual size on a CPU" in found["image_size"]
    assert "enlarged for them from 288" in lines(facts(smallest_width=0.02), 512)["image_size"]
    assert "the images' own size" in lines(facts(width=120, height=100), 128)["image_size"]
    assert "384 would take this machine too long" in lines(facts(GPU), 320)["image_size"]
    assert "they may be missed" in lines(facts(smallest_width=0.005, width=2000, height=2000), 512)["image_size"]


@pytest.mark.parametrize(
    ("known", "batch"),
    [
        (facts(), 8),
        (facts(GPU), 16),
        (facts(train=5), 5),
        (facts(CPU._replace(processes=2)), 4),
        (facts(given={"per_device_train_batch_size": 3}), 3),
    ],
)
def test_batch(known, batch):
    assert wanted_batch(known) == batch


def test_batches_that_do_not_fit_add_up():
    found = fields(facts(), trial=FAST._replace(batch=2))
    assert (found["per_device_train_batch_size"], found["gradient_accumulation_steps"]) == (2, 4)
    assert "8 do not fit into memory, so 4 steps add up" in lines(facts(), trial=FAST._replace(batch=2))["batch"]
    assert "gradient_accumulation_steps" not in fields(facts())


@pytest.mark.parametrize(
    ("known", "seconds", "epochs", "copies"),
    [
        (facts(), 0.01, 32, None),  # 25,600 views
        (facts(encoder=PLAIN), 0.01, 170, None),  # 136,000 views
        (facts(), 0.25, 25, None),  # 90 minutes at 833 images' time an epoch
        (facts(), 1.0, 16, None),  # half of 32 at the least
        (facts(train=24), 0.01, 43, 7),  # 300 passes
        (facts(train=20_000), 0.01, 8, None),
        (facts(given={"num_train_epochs": 3}), 0.01, 3, None),
        (facts(train=24, given={"copies": 2}), 0.01, 150, 2),
    ],
)
def test_epochs(known, seconds, epochs, copies):
    found = fields(known, trial=FAST._replace(seconds=seconds))
    assert (found["num_train_epochs"], found.get("copies")) == (epochs, copies)


def test_epochs_say_why_and_how_long():
    assert (
        "25600 views of images in all, as measured with unet_polyps; about 4 minutes in all"
        in lines(facts())["epochs"]
    )
    slow = lines(facts(), trial=FAST._replace(seconds=1.0))["epochs"]
    assert "32 passes would take 7.4 hours here; about 3.7 hours in all" in slow
    assert "more of so few would be learned by heart" in lines(facts(train=24))["epochs"]
    assert run_minutes(facts(), FAST._replace(seconds=0.6), 1) == pytest.approx((800 + 100 / 3) / 100)


def test_warm_up_and_average_fit_the_steps():
    found = fields(facts())
    assert (found["warmup_steps"], found["ema_decay"]) == (100, 0.995)
    found = fields(facts(given={"num_train_epochs": 2}))  # 200 steps
    assert (found["warmup_steps"], found["ema_decay"]) == (20, 0.92)
    found = fields(facts(given={"num_train_epochs": 0.1}))
    assert (found["warmup_steps"], found["ema_decay"]) == (1, 0.9)


def test_a_slow_machine_gets_a_smaller_size_down_to_what_objects_need():
    slow = FAST._replace(seconds=0.8)
    assert smaller_size(facts(), 288, FAST) == 288
    assert smaller_size(facts(), 288, slow) == 192  # 0.8 s x (192 / 288)^2, 16 passes: 79 minutes
    assert smaller_size(facts(), 288, FAST._replace(seconds=9)) == 96
    assert smaller_size(facts(smallest_width=0.03), 288, FAST._replace(seconds=9)) == 288


@pytest.mark.parametrize(
    ("changes", "losses"),
    [
        ({}, {"loss.bce", "loss.dice"}),
        ({"share_of_label": (0.004,)}, {"loss.bce", "loss.tversky"}),
        ({"num_labels": 3, "share_of_label": (0.04, 0.01)}, {"loss.ce", "loss.dice"}),
        ({"num_labels": 3, "share_of_label": (0.04, 0.001)}, {"loss.ce", "loss.tversky"}),
        ({"num_labels": 3, "share_of_label": (0.04, 0.0)}, {"loss.ce", "loss.dice"}),  # a class that never occurs
        ({"given": {"loss.focal": 1}}, {"loss.focal"}),
    ],
)
def test_loss(changes, losses):
    assert {name for name in fields(facts(**changes)) if name.startswith("loss.")} == losses


def test_network_and_rates():
    found = fields(facts())
    assert (found["model.backbone"], found["backbone_weights"]) == ("mobilenetv2_100", "weights")
    assert (found["learning_rate"], found["encoder_learning_rate"]) == (1e-3, 3e-4)
    plain = fields(facts(encoder=PLAIN))
    assert (plain["model.base_channels"], plain["model.depth"], plain["learning_rate"]) == (16, 5, 2e-3)
    assert "encoder_learning_rate" not in plain and "model.backbone" not in plain
    assert fields(facts(given={"learning_rate": 5e-4}))["learning_rate"] == 5e-4


@pytest.mark.parametrize(
    ("changes", "removes"),
    [
        ({}, True),
        ({"empty": 3}, False),
        ({"num_labels": 3, "share_of_label": (0.1, 0.1)}, False),
        ({"header": Header(1, 16)}, False),
    ],
)
def test_objects_are_removed_where_no_mask_is_empty(changes, removes):
    names = [name for entry in fields(facts(**changes))["augmentation"] for name in entry]
    assert ("PaintOut" in names and "PolypFreeCrop" in names) == removes
    assert ("ColorJitter" in names) == ("header" not in changes)


def test_more_than_eight_bits_are_kept():
    found = fields(facts(header=Header(1, 16)))
    assert (found["model.num_channels"], found["intensity"]) == (1, {"percentiles": [0.5, 99.5]})
    assert "image_mean" not in found
    assert fields(facts(header=Header(5, 8)))["model.num_channels"] == 5
    found = fields(facts(given={"intensity": {"window": [0, 99]}}))
    assert (found["model.num_channels"], found["intensity"]) == (3, {"window": [0, 99]})
    grey = fields(facts(header=Header(1, 8)))
    assert "intensity" not in grey and "model.num_channels" not in grey


def test_several_classes_are_chosen_by_pooled_dice():
    assert fields(facts(num_labels=3))["metric_for_best_model"] == "pooled_dice"
    assert "metric_for_best_model" not in fields(facts())


@pytest.mark.parametrize(
    ("known", "calibrates"), [(facts(), True), (facts(train=24), False), (facts(num_labels=3), False)]
)
def test_calibration(known, calibrates):
    assert fields(known)["calibrate"] is calibrates and fields(known)["half_precision"] is True


def test_the_last_epochs_mean_where_validation_can_not_choose():
    assert "average_last" not in fields(facts())
    assert fields(facts(train=24))["average_last"] == 3
    assert "average_last" not in fields(facts(train=24, given={"num_train_epochs": 2}))
    assert "average_last" not in fields(facts(train=24, given={"early_stopping_patience": 5}))


def test_split_names_folds_and_frames_that_may_be_parted():
    assert "folds" not in lines(facts())["split"]
    assert "hub-unets sweep PLAN --folds 5" in lines(facts(train=24))["split"]
    found = {
        split: lines(facts(parted=(("a", "b"),), split=split))["split"] for split in ("80/10/10", "own", "official")
    }
    assert all("1 pairs of frames that look the same are in two parts (a and b)" in line for line in found.values())
    assert "sequences.csv" in found["80/10/10"] and found["own"].endswith("(a and b): keep them in one")
    assert found["official"].endswith("(a and b)") and "look the same" not in lines(facts())["split"]


def test_classes():
    assert fields(facts(num_labels=3, share_of_label=(0.1, 0.1)))["model.num_labels"] == 3
    assert "model.num_labels" not in fields(facts())
