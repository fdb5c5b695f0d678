"""From a row to arrays: the upright RGB image, and the labels as class indices.

A mask is understood before it is resized: whether its values are class indices, or black and white (perhaps with the
noise of a lossy format) to be cut at 127, is decided by `labels_of` and nowhere else. There, too, a polyp's boundary
becomes a label of its own.
"""

import hashlib
import io
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy import ndimage

from hub_unets.modeling.images import to_rgb
from hub_unets.training.errors import UserError

IGNORE = 255
THRESHOLD = 127  # a grey value above it is foreground
BOUNDARY = 2  # the label of a polyp's boundary, where one is made
NOISE = 16  # how far a lossy format may lift black, or part the channels of a grey image
LOSSY = "JPEG", "MPO", "JPEG2000", "WEBP"


class Mask(NamedTuple):
    """A mask as stored: H x W values, whether its format is lossy, and whether the values may be class indices."""

    values: np.ndarray
    lossy: bool
    indexed: bool


def file_digest(value: dict) -> str:
    """The sha256, in hex, of the stored file {"bytes", "path"}."""
    return hashlib.sha256(_stored(value).read()).hexdigest()


def read_image(value: dict, name: str) -> Image.Image:
    """The stored image {"bytes", "path"} as upright RGB. Raises UserError, naming the file, if unreadable."""
    return to_rgb(_open(value, name))


def read_mask(value: dict, name: str) -> Mask:
    """The stored mask as one upright channel. Raises UserError when it can't be decoded, or holds colours."""
    image = _open(value, name)
    lossy = image.format in LOSSY
    image = ImageOps.exif_transpose(image)
    if image.mode in ("RGBA", "CMYK", "YCbCr", "LAB", "HSV", "RGBX", "RGBa"):
        image = image.convert("RGB")
    values = np.asarray(image.convert("L") if image.mode == "1" else image)
    indexed = not lossy and image.mode not in ("RGB", "1")
    if values.ndim == 3:
        values = _one_channel(values, image.mode, _where(value, name))
    return Mask(values, lossy, indexed)


def read_labels(value: dict, name: str, num_labels: int = 2, boundary_width: int | None = None) -> np.ndarray:
    """The stored mask as class indices, uint8, H x W, 255 where the pixel is to be ignored.

    - lossy, or of several grey channels: 1 above 127, else 0
    - lossless, one channel (or a palette's indices): the class indices as they are where all lie in
      0..num_labels - 1 or are 255 and one of 1..num_labels - 1 occurs; else black and white, 1 above 127
    With `boundary_width` the polyp's boundary then becomes label 2; see `with_boundary`.
    Raises UserError where a mask fits neither, so that cutting at 127 would silently give nothing.
    """
    return labels_of(read_mask(value, name), _where(value, name), num_labels, boundary_width)


def read_pair(row: dict, num_labels: int = 2, boundary_width: int | None = None) -> tuple[Image.Image, np.ndarray]:
    """A row's image (RGB) and labels (uint8, H x W). Raises UserError when their sizes differ."""
    image = read_image(row["image"], row["name"])
    labels = read_labels(row["annotation"], row["name"], num_labels, boundary_width)
    require_same_size(image, labels, row["name"])
    return image, labels


def labels_of(mask: Mask, name: str, num_labels: int = 2, boundary_width: int | None = None) -> np.ndarray:
    """`read_labels` for a mask that is read already; `name` is for the errors."""
    if num_labels < 2:
        raise UserError(f"num_labels must be 2 or more, got {num_labels}: background counts as a label")
    labels = _class_indices(mask, name, num_labels)
    return labels if boundary_width is None else with_boundary(labels, boundary_width, name)


def with_boundary(labels: np.ndarray, width: int, name: str) -> np.ndarray:
    """Labels 0 and 1, uint8, H x W, with the inside of the polyp's boundary as label 2.

    The band lies inside the polyp: its pixels at most `width` pixels (Euclidean, from centre to centre) from the
    nearest background pixel. Neither what lies beyond the image nor an ignored pixel is background.
    Raises UserError, naming the file, where label 2 is there already.
    """
    if (labels == BOUNDARY).any():
        raise UserError(
            f"{name}: boundary_width={width} makes label {BOUNDARY} from a mask of two labels, and this mask holds a "
            f"label {BOUNDARY} already: leave boundary_width out, and its own classes are used"
        )
    if not (labels == 0).any():  # no distance to it, then
        return labels
    distances = ndimage.distance_transform_edt(labels != 0)
    return np.where((labels == 1) & (distances <= width), BOUNDARY, labels).astype(np.uint8)


def check_boundary_width(width: int | None, num_labels: int) -> None:
    """Raises UserError unless a boundary, where one is asked for, is the third of three labels."""
    if width is not None and num_labels != BOUNDARY + 1:
        raise UserError(
            f"boundary_width={width} needs three labels (background, polyp, boundary), got num_labels={num_labels}: "
            f"set num_labels to {BOUNDARY + 1}, or leave boundary_width out"
        )
    if width is not None and width < 1:
        raise UserError(f"boundary_width must be at least 1 pixel, got {width}; leave it out for no boundary")


def _class_indices(mask: Mask, name: str, num_labels: int) -> np.ndarray:
    found = np.unique(mask.values)
    inner = found[found != IGNORE]  # 255 is white, or to be ignored
    if mask.indexed and inner.any() and np.isin(inner, np.arange(num_labels)).all():
        return mask.values.astype(np.uint8)
    _require_black_and_white(mask, found, name, num_labels)
    return (mask.values > THRESHOLD).astype(np.uint8)


def require_same_size(image: Image.Image, labels: np.ndarray, name: str) -> None:
    """Raises UserError, naming both sizes, unless `labels` (H x W) covers `image` pixel by pixel."""
    height, width = labels.shape
    if image.size != (width, height):
        raise UserError(
            f"{name}: the image is {image.width} x {image.height} pixels, its mask {width} x {height} (both upright): "
            "they must agree; export the mask again, or resize it with nearest"
        )


def _require_black_and_white(mask: Mask, found: np.ndarray, name: str, num_labels: int) -> None:
    inner = found[found != IGNORE]
    largest = inner[-1] if inner.size else 0
    if mask.lossy:
        odd = NOISE < found[-1] <= THRESHOLD
    else:
        classes = mask.indexed and num_labels > 2 and largest > 0
        odd = 0 < largest <= THRESHOLD or found[-1] > IGNORE or classes
    if odd:
        raise UserError(
            f"{name}: labels out of range: found {_listed(found)}; a mask holds class indices 0..{num_labels - 1} "
            "(one channel, lossless; 255 is ignored), or 0 and 255: raise num_labels or export the mask again"
        )


def _listed(values: np.ndarray) -> str:
    few = [str(value) for value in values.tolist()]
    return ", ".join(few if len(few) <= 8 else [*few[:4], "...", *few[-3:]])


def _one_channel(values: np.ndarray, mode: str, where: str) -> np.ndarray:
    if mode != "RGB":  # LA, PA: the second channel is the opacity
        return values[..., 0]
    if np.ptp(values, axis=2).max() > NOISE:
        raise UserError(
            f"{where}: a mask in colours: which colour is which class is not known; save it as class indices "
            "(PNG, one channel), or as black and white"
        )
    return values[..., 0]


def _open(value: dict, name: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(_stored(value))
            image.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = f"the limit is {Image.MAX_IMAGE_PIXELS:,} pixels: make it smaller"
        raise UserError(f"{_where(value, name)}: too large an image ({error}); {limit}") from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "of no known format" if unknown else str(error) or type(error).__name__
        raise UserError(f"{_where(value, name)}: not a readable image ({reason}): replace the file") from error
    return image


def _stored(value: dict) -> io.BytesIO:
    content = value.get("bytes")
    return io.BytesIO(Path(value["path"]).read_bytes() if content is None else content)


def _where(value: dict, name: str) -> str:
    return f"{name} ({value['path']})" if value.get("path") else name
