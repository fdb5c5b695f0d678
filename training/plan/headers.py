"""Channels and bits of an image file, from its header."""

import io

import numpy as np
from PIL import Image

BITS = {"1": 1, "I": 32, "F": 32}  # of Pillow's modes; I;16 and its kin have 16, all others 8


def read_header(value: dict, name: str) -> tuple[int, int]:
    """Channels and bits a channel of a stored image {"bytes", "path"}, which is not decoded.

    A palette has the three channels that it shows, transparency is no channel, and each page of a TIFF is one.
    """
    path = str(value.get("path") or name)
    stored = value["path"] if value.get("bytes") is None else io.BytesIO(value["bytes"])
    if path.lower().endswith(".npy"):
        array = np.load(stored, mmap_mode="r" if isinstance(stored, str) else None, allow_pickle=False)
        return (array.shape[-1] if array.ndim == 3 else 1), 8 * array.dtype.itemsize
    with Image.open(stored) as image:
        pages = getattr(image, "n_frames", 1) if image.format == "TIFF" else 1
        bits = 16 if image.mode.startswith("I;16") else BITS.get(image.mode, 8)
        colours = len([band for band in image.getbands() if band not in ("A", "a")])
        return pages * (3 if image.mode == "P" else colours), bits
