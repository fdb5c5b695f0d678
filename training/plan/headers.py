"""Channels and bits of an image file, from its header."""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from hub_unets.training.errors import UserError, first_line

BITS = {"1": 1, "I": 32, "F": 32}  # of Pillow's modes; I;16 and its kin have 16, all others 8
NUMPY, ZIP, PNG = b"\x93NUMPY", b"PK\x03\x04", b"\x89PNG"
PNG_BITS = 24  # where a PNG says how many bits a channel has: Pillow cuts colours of 16 to 8


class Header(NamedTuple):
    """Of one image file: channels, bits a channel, and whether it is a picture, not an array or a DICOM file."""

    channels: int
    bits: int
    is_picture: bool = True

    @property
    def is_rgb(self) -> bool:
        """Whether it is read as RGB of 8 bits without a loss; a grey picture is, too."""
        return self.is_picture and self.channels in (1, 3) and self.bits <= 8


def read_header(value: dict, name: str) -> Header:
    """The Header of a stored image {"bytes", "path"}.

    A palette has the three channels that it shows, transparency is no channel, and each page of a TIFF or frame of a
    DICOM file is one. Raises UserError, naming the file, where it can't be told.
    """
    try:
        content = value["bytes"] if value.get("bytes") is not None else Path(value["path"]).read_bytes()
        if content.startswith((NUMPY, ZIP)):
            return _of_array(content)
        if content[128:132] == b"DICM":
            return _of_dicom(content)
        with Image.open(io.BytesIO(content)) as image:
            return _of_picture(image, content)
    except ImportError as error:
        raise UserError(f"{name}: a DICOM file needs pydicom: pip install pydicom.") from error
    except Exception as error:  # Pillow, NumPy and pydicom each raise their own
        raise UserError(
            f"{name} ({value.get('path')}): its channels and bits can't be told ({first_line(error)}): replace the "
            "file, or train by a recipe that names model.num_channels and intensity."
        ) from error


def _of_array(content):
    array = np.load(io.BytesIO(content), allow_pickle=False)
    array = array if isinstance(array, np.ndarray) else array[array.files[0]]
    first_last = (array.shape[0], array.shape[-1])
    return Header(min(first_last) if array.ndim == 3 else 1, 8 * array.dtype.itemsize, False)


def _of_dicom(content):
    import pydicom

    header = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True)
    frames = int(header.get("NumberOfFrames", None) or 1)
    return Header(frames * int(header.SamplesPerPixel), int(header.BitsStored), False)


def _of_picture(image, content):
    pages = getattr(image, "n_frames", 1) if image.format == "TIFF" else 1
    bits = 16 if image.mode.startswith("I;16") else BITS.get(image.mode, 8)
    if content.startswith(PNG):
        bits = max(bits, content[PNG_BITS]) if bits == 8 else bits
    colours = len([band for band in image.getbands() if band not in ("A", "a")])
    return Header(pages * (3 if image.mode == "P" else colours), bits)
