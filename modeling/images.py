"""Any image as RGB of 8 bits."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps


def to_rgb(image):
    """Any image as an upright RGB PIL image of 8 bits.

    Args:
        image: path, PIL image of any mode (EXIF orientation is applied, transparency dropped), NumPy array or torch
            tensor, H x W, H x W x C or C x H x W with C in 1, 3, 4; uint8, uint16, or floats in 0..1 or 0..255.

    Raises:
        ValueError: the array has another shape or negative values.
    """
    if isinstance(image, (str, Path)):
        with Image.open(image) as opened:
            opened.load()
            return to_rgb(opened)
    if not isinstance(image, Image.Image):
        return _array_to_rgb(image)
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        return _array_to_rgb(np.asarray(image))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _array_to_rgb(array):
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        array = array.float() if array.is_floating_point() else array  # NumPy has no bfloat16
    array = np.asarray(array)
    if array.ndim == 3 and array.shape[-1] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[-1] not in (1, 3, 4) or not array.size:
        raise ValueError(f"An image must be H x W, H x W x C or C x H x W with C in 1, 3, 4; got {array.shape}.")
    array = np.repeat(array, 3, axis=-1) if array.shape[-1] == 1 else array[..., :3]
    return Image.fromarray(_to_uint8(array))


def _to_uint8(array):
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 65535):  # also refuses NaN
        raise ValueError(
            f"Pixels must lie in 0..1, 0..255 or 0..65535, got {low:.3g}..{high:.3g}: undo normalisation."
        )
    sixteen_bits = (array.dtype.kind, array.dtype.itemsize) == ("u", 2) or high > 255  # of either byte order
    scale = 1 / 257 if sixteen_bits else 255.0 if array.dtype.kind == "f" and high <= 1 else 1.0
    return np.rint(array * scale).astype(np.uint8)
