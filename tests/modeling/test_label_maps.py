"""A label map of any form is read as a viewer shows it, or refused by name; a stock Trainer learns from it."""

import io
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from hub_unets.modeling.image_processing_unet import UNetImageProcessor
from hub_unets.modeling.label_maps import to_labels

POLYP = np.zeros((40, 48), np.uint8)
POLYP[8:24, 10:30] = 1
THREE = POLYP.copy()
THREE[30:36, 5:40] = 2
BLACK_AND_WHITE = pytest.mark.filterwarnings("ignore:A label map of 0 and 255")


def file_of(values, kind="PNG", **options):
    content = io.BytesIO()
    image = values if isinstance(values, Image.Image) else Image.fromarray(values)
    image.save(content, kind, **options)
    return Image.open(content)


def palette(indices, colours, **options):
    image = Image.fromarray(indices, "P")
    image.putpalette([value for colour in colours for value in colour])
    return file_of(image, **options)


WHITE, BLACK, RED = (255, 255, 255), (0, 0, 0), (200, 0, 0)


@BLACK_AND_WHITE
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "label_map",
    [
        POLYP,
        POLYP * 255,
        POLYP.astype(bool),
        POLYP.astype(np.float64),
        POLYP.astype(np.uint16) * 65535,
        POLYP[None],
        POLYP[..., None],
        np.stack([POLYP * 255] * 3),
        np.stack([POLYP * 255] * 3, axis=-1),
        torch.from_numpy(POLYP),
        torch.from_numpy(POLYP)[None].float(),
        np.asarray(file_of(POLYP * 255, "JPEG", quality=60)),
        Image.fromarray(POLYP),
        Image.fromarray(POLYP * 255).convert("1"),
        Image.fromarray(POLYP * 255).convert("RGB"),
        Image.fromarray(POLYP * 255).convert("RGBA"),
        file_of(POLYP * 255, "JPEG"),
        file_of(Image.fromarray(POLYP * 255).convert("RGB"), "JPEG", quality=60),
        file_of(Image.fromarray(POLYP * 255).convert("RGB"), "WEBP"),
        file_of(POLYP * 255, "GIF"),
        palette(1 - POLYP, [WHITE, BLACK]),
        palette(1 - POLYP, [WHITE, BLACK], kind="GIF"),
        palette(1 - POLYP, [WHITE, BLACK], kind="BMP"),
        palette(1 - POLYP, [WHITE, BLACK], kind="TIFF"),
        palette(POLYP, [BLACK, RED]),
        palette(POLYP, [BLACK, RED], transparency=0),
    ],
)
def test_every_form_of_a_mask_of_two_labels(label_map):
    labels = to_labels(label_map)
    assert labels.dtype == np.int64 and np.array_equal(labels, POLYP)


@pytest.mark.parametrize("form", [np.asarray, Image.fromarray, lambda x: palette(x, [BLACK, RED, (0, 0, 99)])])
def test_class_indices_stay(form):
    assert np.array_equal(to_labels(form(THREE)), THREE)


def test_ignored_pixels_beside_a_class_stay():
    for ignored in (255, -100):
        labels = np.where(POLYP, 1, 0)
        labels[0] = ignored
        assert np.array_equal(to_labels(labels), labels)
    assert not to_labels(np.zeros((4, 4), np.uint8)).any()


@pytest.mark.parametrize(
    ("label_map", "message"),
    [
        (np.stack([POLYP * 255, POLYP, POLYP], axis=-1), "in colours"),
        (file_of(THREE, "JPEG", quality=100), "class indices don't survive JPEG"),
        (file_of(Image.merge("LA", [Image.new("L", (48, 40), 255), Image.fromarray(POLYP * 255)])), "transparent"),
        (palette(POLYP, [WHITE, WHITE], transparency=0), "transparent"),
        (POLYP * 0.7, "whole numbers; these look like probabilities"),
        (np.where(POLYP, np.nan, 0), "whole numbers"),
        (np.zeros((2, 4, 4)), r"got \(2, 4, 4\)"),
        (np.zeros((0, 4)), r"got \(0, 4\)"),
        ("mask", "No such file"),
    ],
)
def test_what_cannot_be_understood_is_refused(label_map, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        to_labels(label_map)


def test_a_file_is_read_and_named(tmp_path):
    Image.fromarray(THREE).save(tmp_path / "mask.png")
    batch = UNetImageProcessor(do_resize=False)(np.zeros((40, 48, 3), np.uint8), str(tmp_path / "mask.png"))
    assert np.array_equal(batch["labels"][0], THREE)
    Image.fromarray(THREE).save(tmp_path / "mask.jpg", quality=100)
    with pytest.raises(ValueError, match="mask.jpg: .*JPEG"):
        UNetImageProcessor(do_resize=False)(np.zeros((40, 48, 3), np.uint8), tmp_path / "mask.jpg")


@pytest.mark.parametrize(("white", "warned"), [(255, True), (1, False)])
def test_black_and_white_maps_give_a_warning(white, warned):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        to_labels(POLYP * np.uint8(white))
    assert [("255 becomes label 1. Use -100" in str(warning.message)) for warning in caught] == [True] * warned


@pytest.mark.parametrize(
    "maps",
    [
        np.stack([POLYP, THREE]),
        torch.from_numpy(np.stack([POLYP, THREE]))[:, None],
        [POLYP, THREE],
        [[POLYP], [Image.fromarray(THREE)]],
    ],
)
def test_maps_of_a_batch(maps):
    labels = UNetImageProcessor(do_resize=False)([np.zeros((40, 48, 3), np.uint8)] * 2, maps)["labels"]
    assert labels.dtype == torch.int64 and np.array_equal(labels, np.stack([POLYP, THREE]))


def test_maps_must_match_their_images_in_number_and_size():
    image = np.zeros((40, 48, 3), np.uint8)
    with pytest.raises(ValueError, match="one for each image: got 1 for 2 images"):
        UNetImageProcessor()([image, image], POLYP)
    with pytest.raises(ValueError, match="the map is 40 x 48 pixels, the image 48 x 40"):
        UNetImageProcessor()(image, POLYP.T)


def test_labels_are_reduced_on_request():
    labels = np.array([[0, 1], [2, 255], [-100, 1]])
    batch = UNetImageProcessor(size=2, do_resize=False)(np.zeros((3, 2, 3), np.uint8), labels, do_reduce_labels=True)
    assert batch["labels"].tolist() == [[[255, 0], [1, 255], [-100, 0]]]
    assert UNetImageProcessor().do_reduce_labels is False


def turned(values, orientation, kind="JPEG"):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return file_of(values, kind, exif=exif)


def test_a_map_that_is_not_turned_with_its_image_is_refused_or_gives_a_warning():
    processor, stored = UNetImageProcessor(do_resize=False), np.zeros((40, 48, 3), np.uint8)
    with pytest.raises(ValueError, match="48 x 40 pixels, the image 40 x 48 after its EXIF tag turned it"):
        processor(turned(stored, 6), POLYP)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        upright = processor(turned(stored, 6), np.rot90(POLYP, -1))["labels"][0]
        assert np.array_equal(upright, processor(turned(stored, 6), turned(POLYP, 6, "PNG"))["labels"][0])
        assert np.array_equal(processor(turned(stored, 3), turned(POLYP, 3, "PNG"))["labels"][0], np.rot90(POLYP, 2))
    for image, mask in ((turned(stored, 3), POLYP), (turned(stored[:, :40], 6), POLYP[:, :40])):
        with pytest.warns(UserWarning, match="their sizes don't tell"):
            processor(image, mask)
