"""The values of an image to 0..1: by their type's full range, a window, or percentiles."""

import numpy as np

LEAST_SPREAD = 1e-12  # of two percentiles; an image of one value becomes 0


def to_unit(values, intensity=None):
    """ImageValues to float32 H x W x C in 0..1; what lies beyond the range is clipped, and inverted values are turned.

    Args:
        values: from `image_files.read_values`.
        intensity: None takes the full range of the values' type, and floats in 0..1 as they are; `{"window": (low,
            high)}`; `{"window": "dicom"}`, each DICOM file's own window, and other files as None; or `{"percentiles":
            (low, high)}` of each image and channel, in 0..100.

    Raises:
        ValueError: values that are not finite, or whose range is not known.
    """
    pixels = values.pixels.astype(np.float32)
    if values.pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise ValueError("an image with values that are not finite (NaN or infinite): replace them.")
    low, high = (np.float32(bound) for bound in _bounds(values, intensity))
    pixels -= low
    pixels /= np.maximum(high - low, np.float32(LEAST_SPREAD))
    np.clip(pixels, 0, 1, out=pixels)
    return 1 - pixels if values.is_inverted else pixels


def as_stored(values):
    """ImageValues as float32 H x W x C, without any range.

    Raises:
        ValueError: low values are white, which only a range can turn.
    """
    if values.is_inverted:
        raise ValueError("an image whose low values are white (MONOCHROME1): it needs do_rescale=True.")
    return values.pixels.astype(np.float32)


def picture(image):
    """An image as a person sees it: a PIL image or uint8 H x W x 3 as that; floats H x W x C by their first channels.

    Of three channels or more the first three are red, green and blue, else the first is grey; each is stretched from
    its least to its greatest value.
    """
    pixels = np.asarray(image)
    if pixels.dtype == np.uint8:
        return pixels
    channels = pixels[..., :3] if pixels.shape[-1] >= 3 else np.repeat(pixels[..., :1], 3, axis=-1)
    low, high = channels.min(axis=(0, 1)), channels.max(axis=(0, 1))
    return np.rint((channels - low) * (255 / np.maximum(high - low, LEAST_SPREAD))).astype(np.uint8)


def _bounds(values, intensity):
    """The values that become 0 and 1: numbers, or one for each channel."""
    kind, bounds = next(iter(intensity.items())) if intensity else ("window", None)
    if kind == "percentiles":
        return np.percentile(values.pixels, bounds, axis=(0, 1))
    if bounds == "dicom":
        if values.is_dicom and values.window is None:
            raise ValueError("a DICOM file without a window of its own: set intensity to a window or percentiles.")
        bounds = values.window
    return bounds or values.full_range or _unit_range(values.pixels)


def _unit_range(pixels):
    low, high = pixels.min(), pixels.max()
    if pixels.dtype.kind == "f" and low >= 0 and high <= 1:
        return 0, 1
    raise ValueError(
        f"values of type {pixels.dtype} from {low:.6g} to {high:.6g}, whose range is not known: set intensity to "
        '{"window": [low, high]} or {"percentiles": [0.5, 99.5]}.'
    )
