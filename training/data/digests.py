"""Digests of stored files and of what they decode to: they tell changed pictures from those only stored anew."""

import hashlib
from typing import NamedTuple

from hub_unets.training.data.reading import file_digest


class PairDigests(NamedTuple):
    """The sha256, in hex, of an image's and a mask's file, and of the pixels and the labels that they hold."""

    image: str
    image_pixels: str
    mask: str
    mask_pixels: str


def pixel_sha256(image):
    """The sha256, in hex, of decoded pixels: "WIDTHxHEIGHT" and a line's end, then the rows from the top.

    Args:
        image: a PIL image, whose RGB bytes are taken; labels, uint8 H x W; or values, float32 H x W x C.
    """
    if not hasattr(image, "shape"):
        image = image.convert("RGB")
        width, height = image.size
    else:
        height, width = image.shape[:2]
    digest = hashlib.sha256(f"{width}x{height}\n".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def pair_digests(row, image, labels):
    """The PairDigests of a row, its image as it was read, and its labels, uint8 H x W, as they are scored."""
    files = file_digest(row["image"]), file_digest(row["annotation"])
    return PairDigests(files[0], pixel_sha256(image), files[1], pixel_sha256(labels))
