"""Any image as RGB of 8 bits, or as RGB of floats that are taken as they are."""

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image

PROGRAMS = {"EPS"}  # formats that Pillow reads by running what the file says
ORIENTATION, TRANSPOSED = 0x0112, 5  # the EXIF tag; from 5 on it swaps width and height
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
UNIT, BYTES, WORDS = 2, 512, 65536 + 128  # floats below UNIT are 0..1, below BYTES 0..255, below WORDS 0..65535
USUAL_BITS = 14  # a 16-bit image whose largest value needs fewer is nearly black


def to_rgb(image):
    """Any image as an upright RGB PIL image of 8 bits.

    Args:
        image: path, PIL image of any mode (EXIF orientation is applied, transparency dropped), NumPy array or torch
            tensor, H x W, H x W x C or C x H x W with C in 1, 3, 4; uint8, uint16, or floats in 0..1, 0..255 or
            0..65535. A resize may have pushed floats a little beyond the largest: that is clipped.

    Raises:
        ValueError: the array has another shape, or values that are negative or not finite.
    """
    if isinstance(image, (str, Path)):
        with open_picture(image) as file:
            return to_rgb(file)
    if not isinstance(image, Image.Image):
        return Image.fromarray(_to_uint8(channels_last(image)))
    image = upright(image)
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_to_uint8(channels_last(image)))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def open_picture(file):
    """A path or binary file as PIL image that is not decoded yet, of each format that Pillow knows but PROGRAMS.

    Raises:
        OSError: it can't be read, or is of no such format.
    """
    Image.preinit()  # the usual formats are tried first
    Image.init()
    return Image.open(file, formats=[name for name in Image.OPEN if name not in PROGRAMS])


def orientation(image):
    """A PIL image's EXIF orientation, 1 to 8; 1, upright, also where it can't be read."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged EXIF raises errors of many classes, and a sound picture may carry it
        return 1
    return value if value in TURNS else 1


def upright(image):
    """A PIL image turned as its EXIF orientation says; the one place where that is done.

    Raises:
        ValueError: decoding it would run a program.
    """
    if image.format in PROGRAMS:
        raise ValueError(f"an {image.format} file is a program, not pixels: save it as PNG.")
    image.load()  # of a TIFF this may turn it already
    turn = TURNS.get(orientation(image))
    if turn is None:
        return image
    turned = image.transpose(turn)
    turned.info = {name: value for name, value in image.info.items() if name == "transparency"}  # no second turn
    return turned


def height_and_width(image):
    """(height, width) of a PIL image, or of an array H x W x C."""
    return (image.height, image.width) if isinstance(image, Image.Image) else tuple(image.shape[:2])


def opened(image):
    """A path's file as PIL image that is read whole; anything else as it is."""
    if isinstance(image, (str, Path)):
        with open_picture(image) as file:
            file.load()
            return file
    return image


def format_name(name):
    """A channel format's name, also of transformers' ChannelDimension."""
    name = getattr(name, "value", name)
    if name not in (None, "none", "channels_first", "channels_last"):
        raise ValueError(f"A data format is 'channels_first' or 'channels_last', got {name!r}.")
    return name


def laid_out(image, layout):
    """An array of three dimensions as H x W x C, where the caller says which of them are the channels."""
    image = to_array(image)
    image = np.moveaxis(image, 0, -1) if layout == "channels_first" else image
    if image.shape[-1] not in (1, 3, 4):
        raise ValueError(f"input_data_format={layout!r} gives {image.shape[-1]} channels; an image has 1, 3 or 4.")
    return image


def is_float(image):
    """Whether an image is an array or tensor of floats."""
    if isinstance(image, torch.Tensor):
        return image.is_floating_point()
    return isinstance(image, np.ndarray) and image.dtype.kind == "f"


def channels_last(array):
    """An array or tensor, H x W, H x W x C or C x H x W with C in 1, 3, 4, as array H x W x 3 of the same type.

    Raises:
        ValueError: it is no array of numbers, or of another shape.
    """
    array = to_array(array)
    if array.ndim == 3 and array.shape[-1] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[-1] not in (1, 3, 4) or not array.size:
        raise ValueError(f"An image must be H x W, H x W x C or C x H x W with C in 1, 3, 4; got {array.shape}.")
    return np.repeat(array, 3, axis=-1) if array.shape[-1] == 1 else array[..., :3]


def to_array(image):
    """A PIL image, array or tensor as array of numbers.

    Raises:
        ValueError: it is none of these.
    """
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        image = image.float() if image.is_floating_point() else image  # NumPy has no bfloat16
    array = np.asarray(image)
    if array.dtype.kind not in "buif":
        raise ValueError(f"An image must be a path, a PIL image, an array or a tensor; got {type(image).__name__}.")
    return array


def _to_uint8(array):
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    scale = _scale_to_255(array)
    if scale == 1 and array.dtype.kind != "f":
        return np.where(array > 255, 255, array).astype(np.uint8)
    values = np.rint(array * scale)
    return np.where(values > 255, 255, np.where(values < 0, 0, values)).astype(np.uint8)


def _scale_to_255(array):
    """The factor that brings an image's values to 0..255, by their type and their range."""
    low, high = float(array.min()), float(array.max())
    floats, words = array.dtype.kind == "f", (array.dtype.kind, array.dtype.itemsize) == ("u", 2)
    scale = 255.0 if floats and high < UNIT else 1 / 257 if words or high >= BYTES else 1.0
    if not (low * scale >= -0.5 and high < WORDS) or (high > 65535 and not floats):  # also refuses NaN
        raise ValueError(
            f"Pixels must lie in 0..1, 0..255 or 0..65535, got {low:.3g}..{high:.3g}: undo normalisation, clip what a "
            "resize pushed below 0, or pass do_rescale=False to take floats as they are."
        )
    bits = int(high).bit_length()
    if scale < 1 and 0 < bits < USUAL_BITS:
        warnings.warn(
            f"An image of 16 bits uses {bits} of them and is read as nearly black: multiply its values by "
            f"{2 ** (16 - bits)} if they fill {bits} bits.",
            stacklevel=2,
        )
    return scale
