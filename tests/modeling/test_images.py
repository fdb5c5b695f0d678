"""Every kind of image becomes the right RGB pixels of 8 bits."""

import numpy as np
import pytest
import torch
from PIL import Image

from hub_unets.modeling.images import to_rgb

COLOUR = (np.arange(2 * 5 * 3) * 8).reshape(2, 5, 3).astype(np.uint8)  # height 2, width 5
GREY = COLOUR[..., 0]
GREY_16 = GREY.astype(np.uint16) * 257 + 100  # rounds to GREY

as_float = torch.from_numpy(COLOUR).float()


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(COLOUR),
        COLOUR,
        COLOUR[:, ::-1].copy()[:, ::-1],
        COLOUR.transpose(2, 0, 1),
        COLOUR / 255,
        COLOUR.astype(np.float32),
        COLOUR.astype(np.int64),
        COLOUR.astype(np.uint16) * 257,
        torch.from_numpy(COLOUR),
        torch.from_numpy(COLOUR).permute(2, 0, 1),
        as_float / 255,
        as_float,
        (as_float.permute(2, 0, 1) / 255).double().requires_grad_(),
        np.concatenate([COLOUR, COLOUR[..., :1]], axis=-1),
        Image.fromarray(np.concatenate([COLOUR, COLOUR[..., :1]], axis=-1), "RGBA"),
    ],
)
def test_colour_images(image):
    assert np.array_equal(to_rgb(image), COLOUR)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(GREY),
        Image.fromarray(GREY_16.astype(np.int32)),
        Image.fromarray(GREY.astype(np.int32)),
        Image.fromarray(GREY.astype(np.float32)),
        Image.fromarray((GREY / 255).astype(np.float32)),
        Image.fromarray(np.stack([GREY, GREY * 2], axis=-1), "LA"),
        Image.fromarray(GREY_16),
        Image.frombytes("I;16B", (5, 2), GREY_16.astype(">u2").tobytes()),
        GREY,
        GREY[None],
        GREY[..., None],
        GREY_16,
        GREY_16.astype(np.int32),
        GREY / 255,
        torch.from_numpy(GREY),
        torch.from_numpy(GREY)[None].float() / 255,
    ],
)
def test_grey_images(image):
    assert np.array_equal(to_rgb(image), np.stack([GREY] * 3, axis=-1))


@pytest.mark.parametrize(
    ("image", "value"),
    [
        (torch.ones(3, 4, 4, dtype=torch.uint8), 1),
        (np.ones((4, 4, 3), np.uint8), 1),
        (np.ones((4, 4, 3), np.int64), 1),
        (np.ones((4, 4, 3), np.float64), 255),
        (torch.ones(3, 4, 4, dtype=torch.bfloat16), 255),
        (np.full((4, 4), 200, np.uint16), 1),
        (np.full((4, 4), 200, ">u2"), 1),
        (np.full((4, 4), 65535, np.uint16), 255),
        (np.ones((4, 4), bool), 255),
        (np.zeros((4, 4)), 0),
    ],
)
def test_the_type_of_an_array_tells_its_range(image, value):
    assert np.unique(to_rgb(image)).tolist() == [value]


@pytest.mark.parametrize("kind", [str, lambda path: path], ids=["str", "Path"])
def test_paths(kind, tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "image.png")
    assert np.array_equal(to_rgb(kind(tmp_path / "image.png")), COLOUR)


def test_png_of_16_bits(tmp_path):
    Image.fromarray(GREY_16).save(tmp_path / "image.png")
    assert Image.open(tmp_path / "image.png").mode.startswith("I")
    assert np.array_equal(to_rgb(tmp_path / "image.png"), np.stack([GREY] * 3, axis=-1))


def test_a_rotated_jpeg_stands_upright(tmp_path):
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[:, :16, 0], stored[:, 16:, 2] = 255, 255  # left red, right blue
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    Image.fromarray(stored).save(tmp_path / "image.jpg", exif=exif, quality=95)
    upright = np.asarray(to_rgb(tmp_path / "image.jpg")).astype(int)
    assert upright.shape == (32, 16, 3)
    assert np.abs(upright[:14] - (255, 0, 0)).max() < 10
    assert np.abs(upright[18:] - (0, 0, 255)).max() < 10


@pytest.mark.parametrize("transparency", [None, 1, b"\xff\x00\x80"])
def test_palettes_keep_their_colours(transparency, tmp_path):
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    image.putpalette([10, 20, 30, 200, 100, 50, 0, 0, 255])
    image.save(tmp_path / "image.png", **({} if transparency is None else {"transparency": transparency}))
    with Image.open(tmp_path / "image.png") as saved:
        assert saved.mode == "P"
    assert np.asarray(to_rgb(tmp_path / "image.png")).tolist() == [[[10, 20, 30], [200, 100, 50], [0, 0, 255]]]


def test_printing_colours():
    image = Image.new("CMYK", (2, 2), (0, 255, 255, 0))
    assert np.unique(np.asarray(to_rgb(image)).reshape(-1, 3), axis=0).tolist() == [[255, 0, 0]]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.randn(3, 8, 8), "undo normalisation"),
        (np.full((8, 8, 3), -1), "undo normalisation"),
        (np.full((8, 8, 3), np.nan), "undo normalisation"),
        (np.full((8, 8), 70000), "undo normalisation"),
        (np.zeros((8, 8, 2)), r"C in 1, 3, 4; got \(8, 8, 2\)"),
        (np.zeros((1, 1, 8, 8)), r"C in 1, 3, 4"),
        (np.zeros(8), r"got \(8,\)"),
        (np.zeros((0, 8)), "C in 1, 3, 4"),
    ],
)
def test_what_is_no_image_is_refused(image, message):
    with pytest.raises(ValueError, match=message):
        to_rgb(image)
