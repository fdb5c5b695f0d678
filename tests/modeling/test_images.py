"""Every kind of image becomes the right RGB pixels of 8 bits."""

import io
import warnings

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image, UnidentifiedImageError
from torchvision.transforms.functional import InterpolationMode, resize, to_tensor

from hub_unets.modeling.images import opened, orientation, to_rgb, upright

COLOUR = (np.arange(2 * 5 * 3) * 8).reshape(2, 5, 3).astype(np.uint8)  # height 2, width 5
GREY = COLOUR[..., 0]
GREY_16 = GREY.astype(np.uint16) * 257 + 100  # rounds to GREY; of a little more than 14 bits

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
        (np.full((4, 4), 65535, np.uint16), 255),
        (np.ones((4, 4), bool), 255),
        (np.zeros((4, 4)), 0),
        (np.full((4, 4), 300, np.int32), 255),
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
    with Image.open(tmp_path / "image.png") as image_file:
        assert image_file.mode == "P"
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
        (np.full((8, 8, 3), np.inf), "undo normalisation"),
        (np.where(np.eye(8) > 0, -0.1, 0.5), "got -0.1..0.5: .*clip what a resize"),
        (np.full((8, 8), 66000.0), "undo normalisation"),
        ("image", "No such file"),
        (None, "a path, a PIL image, an array or a tensor; got NoneType"),
        ([[1, 2], [3, "a"]], "got list"),
        (np.full((8, 8), 70000), "undo normalisation"),
        (np.zeros((8, 8, 2)), r"C in 1, 3, 4; got \(8, 8, 2\)"),
        (np.zeros((1, 1, 8, 8)), r"C in 1, 3, 4"),
        (np.zeros(8), r"got \(8,\)"),
        (np.zeros((0, 8)), "C in 1, 3, 4"),
    ],
)
def test_what_is_no_image_is_refused(image, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        to_rgb(image)


@pytest.mark.parametrize("scale", [1, 255, 65535])
@pytest.mark.parametrize("beyond", [-1e-7, 2e-7, 1e-3, 0.4])
def test_floats_that_a_resize_pushed_beyond_the_largest_keep_their_scale(scale, beyond):
    values = np.tile(np.linspace(0, 1, 8), (8, 1))
    values[0, -1] += beyond if scale < 65535 else min(beyond, 1e-3)
    expected = np.rint(np.clip(values[0], 0, 1) * 255)
    assert np.array_equal(np.asarray(to_rgb(values * scale))[0, :, 0], expected)


@pytest.mark.parametrize("mode", [InterpolationMode.BILINEAR, InterpolationMode.BICUBIC])
def test_a_resized_tensor_is_not_black(mode):
    image = np.full((529, 622, 3), 255, np.uint8)
    image[100:200, 100:300] = 90
    resized = resize(to_tensor(Image.fromarray(image)), [512, 512], mode).clamp(min=0)
    assert resized.max() > 1
    assert np.asarray(to_rgb(resized)).mean() == pytest.approx(image.mean(), abs=2)


@pytest.mark.parametrize("bits", [9, 10, 12, 13])
@pytest.mark.parametrize("kind", [np.uint16, ">u2", np.int32, np.float32])
def test_a_16_bit_image_that_uses_few_bits_gives_a_warning(bits, kind):
    dark_image = np.full((4, 4), 2**bits - 1).astype(kind)
    dark_image[0, 0] = 512
    with pytest.warns(UserWarning, match=rf"uses {max(bits, 10)} of them .* by {2 ** (16 - max(bits, 10))} if"):
        dark = np.asarray(to_rgb(dark_image))
    assert dark.max() == round(float(dark_image.max()) / 257)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        to_rgb(dark_image.astype(np.uint16) * np.uint16(2 ** (16 - max(bits, 10))))
        to_rgb(dark_image * 0)


def with_exif(exif, mode="RGB", size=(32, 16)):
    content = io.BytesIO()
    Image.new(mode, size).save(content, "JPEG", exif=exif)
    return Image.open(content)


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0" + b"\xff" * 40,
        b"Exif\0\0MM\0*\0\0\0\x08\0\x05",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01\x03\0\xff\xff\xff\xff\x06\0\0\0",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0\0\0\0\0",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0abc\0\0\0\0\0",
    ],
)
def test_exif_that_cannot_be_read_is_upright(exif):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = with_exif(exif)
        assert orientation(image) == 1 and to_rgb(image).size == (32, 16)


def test_an_image_whose_exif_raises_is_upright(monkeypatch):
    def broken(self):
        raise SyntaxError("not a TIFF file")

    monkeypatch.setattr(Image.Image, "getexif", broken)
    assert to_rgb(Image.fromarray(COLOUR)).size == (5, 2)


@pytest.mark.parametrize("number", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_every_orientation_is_that_of_pillow_and_applied_once(number, kind):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = number
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)).save(content, kind, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(content)).convert("RGB"))
    turned = upright(Image.open(content))
    for image in (turned, upright(turned), to_rgb(turned), to_rgb(Image.open(content))):
        assert np.array_equal(np.asarray(image.convert("RGB")), expected)


def test_an_eps_file_is_not_run(monkeypatch, tmp_path):
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", None)
    path = tmp_path / "a.png"
    Image.fromarray(COLOUR).save(path, "EPS")
    for read in (to_rgb, opened):
        with pytest.raises(UnidentifiedImageError):
            read(path)
    with Image.open(path) as image, pytest.raises(ValueError, match="an EPS file is a program, not pixels"):
        to_rgb(image)
