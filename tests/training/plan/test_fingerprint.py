"""The fingerprint of small made sets, by hand-computed values."""

import io

import datasets
import numpy as np
import pytest
from PIL import Image

from hub_unets.training.data.rows import FEATURES
from hub_unets.training.errors import UserError
from hub_unets.training.plan.fingerprint import (
    THUMBNAIL,
    _thumbnail,
    header_of,
    look_alikes,
    object_widths,
    take_fingerprint,
)
from hub_unets.training.plan.headers import Header

HEIGHT, WIDTH = 80, 125  # 10,000 pixels: a side of 100


def encoded(array, kind="PNG"):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, format=kind)
    return {"bytes": stream.getvalue(), "path": None}


def rows_of(*masks, kind="PNG", images=None):
    noise = np.random.default_rng(0).integers(0, 255, (len(masks), HEIGHT, WIDTH, 3), np.uint8)
    images = noise if images is None else images
    return datasets.Dataset.from_list(
        [
            {"name": f"frame-{number}", "image": encoded(image), "annotation": encoded(mask, kind)}
            for number, (image, mask) in enumerate(zip(images, masks, strict=True))
        ],
        features=FEATURES,
    )


def square(side, value=255, top=10, left=10):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[top : top + side, left : left + side] = value
    return mask


def test_black_and_white_masks():
    found = take_fingerprint(rows_of(square(21), square(41), np.zeros((HEIGHT, WIDTH), np.uint8)))
    assert (found.images, found.width, found.height, found.side) == (3, WIDTH, HEIGHT, 100)
    assert (found.header, found.num_labels) == (Header(3, 8), 2)
    assert (found.images_of_label, found.empty, found.objects) == ((2,), 1, 2)
    assert found.share_of_label == pytest.approx((((21**2 + 41**2) / 2) / 10_000,))
    assert found.median_width == pytest.approx(0.31)
    assert found.smallest_width == pytest.approx(0.21 + 0.05 * 0.2)
    assert found.alike == ()


def test_class_indices_are_counted_and_each_class_by_itself():
    both = square(21, 1) + square(11, 3, top=50)
    found = take_fingerprint(rows_of(square(31, 1), both, square(9, 255)))
    assert found.num_labels == 4
    assert found.images_of_label == (3, 0, 1) and found.rarest_share == pytest.approx(0.0121)
    assert found.objects == 4


@pytest.mark.parametrize(
    ("mask", "kind"),
    [
        (square(31, 1), "PNG"),
        (np.maximum(square(31), square(33, 200, 9, 9)), "PNG"),
        (square(31), "JPEG"),
    ],
    ids=["ones", "greys at the edge", "lossy"],
)
def test_two_labels(mask, kind):
    assert take_fingerprint(rows_of(mask, kind=kind)).num_labels == 2


def test_given_labels_hold():
    assert take_fingerprint(rows_of(square(31, 1)), num_labels=5).num_labels == 5
    assert take_fingerprint(rows_of(square(31)), num_labels=3, boundary_width=3).images_of_label == (1, 1)


def test_an_object_is_as_wide_as_the_largest_circle_inside():
    vessel = np.zeros((100, 100), np.uint8)
    vessel[50:55] = 1
    assert object_widths(vessel) == pytest.approx((0.05,))


def test_specks_are_no_objects_but_all_of_one_size_are():
    mask = np.zeros((200, 200), np.uint8)
    mask[50:150, 50:150] = 1
    mask[10:13, 10:13] = 1
    assert len(object_widths(mask)) == 1
    mask[50:150, 50:150] = 0
    mask[100:103, 10:13] = 1
    assert object_widths(mask) == pytest.approx((3 / 200, 3 / 200))


def test_frames_that_look_the_same():
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 200, (5, 16, 16))
    frames[4] = frames[1] + rng.integers(0, 8, (16, 16))  # another exposure and some noise
    assert look_alikes(list("abcde"), frames) == (("b", "e"),)
    assert look_alikes(["black", "blacker"], np.zeros((2, 16, 16))) == ()


@pytest.mark.parametrize("shape", [(70, 90), (70, 90, 1), (70, 90, 3), (70, 90, 8)])
def test_a_thumbnail_of_any_number_of_channels(shape):
    image = np.random.default_rng(0).random(shape, np.float32)
    small = _thumbnail(image)
    assert small.shape == (THUMBNAIL, THUMBNAIL) and abs(small.mean() - image.mean()) < 0.01


def test_all_bad_pairs_are_counted_and_some_named():
    rows = rows_of(square(21), square(31, 90), square(31, 80), square(31, 70))
    with pytest.raises(UserError, match="3 of 4 pairs can't be used: frame-1: .* and 1 more; hub-unets check-data"):
        take_fingerprint(rows)


def test_channels_must_be_the_same_where_images_are_no_rgb():
    names = ["a", "b", "c"]
    assert header_of([Header(3, 8), Header(1, 8), Header(3, 8)], names) == Header(3, 8)
    assert header_of([Header(1, 16), Header(1, 8), Header(1, 16)], names) == Header(1, 16)
    with pytest.raises(UserError, match=r"differ in channels: 3 \(b\), 5 \(a\)"):
        header_of([Header(5, 8), Header(3, 8), Header(5, 8)], names)


def test_nothing_to_learn():
    with pytest.raises(UserError, match="none of the 1 masks has a foreground pixel"):
        take_fingerprint(rows_of(np.zeros((HEIGHT, WIDTH), np.uint8)))
