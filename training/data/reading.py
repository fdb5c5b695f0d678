"""From a row to arrays: the upright image as the network takes it, and the labels as class indices.

A mask is read as a viewer shows it, or refused by name, before it is resized. `labels_of` alone decides whether its
values are class indices, or black and white (perhaps with the noise of a lossy format) to be cut at 127. It also makes
a polyp's boundary a label of its own.
"""

import errno
import hashlib
import io
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError
from scipy import ndimage

from hub_unets.modeling.images import height_and_width, open_picture, to_rgb, upright
from hub_unets.training.data.files import VALUE_SUFFIXES, upright_size
from hub_unets.training.errors import UserError

IGNORE = 255
THRESHOLD = 127  # a grey value above it is foreground
BOUNDARY = 2  # the label of a polyp's boundary, where one is made
NOISE = 16  # how far a lossy format may lift black, or part the channels of a grey image
LOSSY = "JPEG", "MPO", "JPEG2000", "WEBP", "AVIF"
LOSSY_IN_TIFF = "jpeg", "tiff_jpeg", "webp"


class Mask(NamedTuple):
    """A mask as stored: H x W values, whether its format is lossy, and whether the values may be class indices.

    `shown` are the greys that a palette shows for `values`, its indices; None without a palette, or where it has
    colours.
    """

    values: np.ndarray
    lossy: bool
    indexed: bool
    shown: np.ndarray | None = None


def file_digest(value: dict) -> str:
    """The sha256, in hex, of the stored file {"bytes", "path"}. Raises UserError where it can't be read."""
    try:
        return hashlib.sha256(_stored(value).read()).hexdigest()
    except (OSError, ValueError) as error:  # ValueError: a name that no file has
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{value['path']}: can't be read ({reason}): replace the file") from error


def header_size(value: dict) -> tuple[int, int] | None:
    """Width and height of the stored image {"bytes", "path"}, upright, by its header; None where Pillow reads none."""
    try:
        with Image.open(_stored(value)) as image:
            return upright_size(image)
    except Exception:  # Pillow's decoders raise more than OSError; reading it says what is wrong
        return None


def read_image(value: dict, name: str, processor: object = None) -> Image.Image | np.ndarray:
    """The stored image {"bytes", "path"} as the processor reads it: upright RGB, or float32 H x W x C in 0..1.

    Without a processor, or for another project's, it is RGB. Raises UserError, naming the file, if unreadable.
    """
    try:
        if getattr(processor, "takes_rgb", True):
            return to_rgb(_open(value, name))
        return processor.read(_stored(value).read())
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{_source(value, name)}: not a readable image ({error}): replace the file") from error
    except ValueError as error:
        raise UserError(f"{_source(value, name)}: {error}") from error


def read_mask(value: dict, name: str) -> Mask:
    """The stored mask as one upright channel.

    Raises UserError, naming the file, where it can't be decoded, holds colours, several pictures or what is no number
    from 0, or where what it shows isn't clear: see `_palette_mask` and `_on_black`.
    """
    source = _source(value, name)
    if Path(value.get("path") or "").suffix.lower() == ".npy":
        return _numpy_mask(value, source)
    image = _open(value, name, one_picture=True)
    lossy = image.format in LOSSY or image.info.get("compression") in LOSSY_IN_TIFF
    image = upright(image)
    if image.mode == "P":
        return _palette_mask(image, lossy, source)
    values = np.asarray(_plain(image))
    if values.ndim == 3:
        values = _on_black(values, source) if values.shape[-1] in (2, 4) else values
        spread = np.ptp(values, axis=2).max()
        if spread > NOISE:
            raise UserError(
                f"{source}: a mask in colours: which colour is which class is not known; save it as class indices "
                "(PNG, one channel), or as black and white"
            )
        dark = values[..., 0].max() <= NOISE  # then another channel may hold more
        return Mask(values.max(axis=2) if dark else values[..., 0], lossy, indexed=not lossy and spread == 0)
    is_valid = np.isfinite(values) & (values >= 0)
    if not is_valid.all():
        raise UserError(f"{source}: a mask with the value {values[~is_valid][0]}: write class indices, or 0 and 255")
    return Mask(values, lossy, indexed=not lossy and image.mode != "1")


def _numpy_mask(value: dict, source: str) -> Mask:
    """A mask of class indices, or of 0 and 255, in a NumPy file: H x W, with or without a dimension of 1."""
    try:
        values = np.load(_stored(value), allow_pickle=False).squeeze()
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{source}: not a readable NumPy file ({error}): replace the file") from error
    if values.ndim != 2 or values.dtype.kind not in "bui":
        raise UserError(f"{source}: a mask of {values.dtype} {values.shape}: save class indices, whole numbers H x W")
    if (values < 0).any():
        raise UserError(f"{source}: a mask with the value {values.min()}: write class indices, or 0 and 255")
    return Mask(values.astype(np.int64), lossy=False, indexed=True)


def _plain(image: Image.Image) -> Image.Image:
    """An image without a palette as L, LA, RGB, RGBA, or of one channel with more bits."""
    clear = image.has_transparency_data
    if image.mode in ("1", "L", "LA", "La"):
        return image.convert("LA" if clear else "L")
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        return image
    return image.convert("RGBA" if clear else "RGB")


def read_labels(value: dict, name: str, num_labels: int = 2, boundary_width: int | None = None) -> np.ndarray:
    """The stored mask as class indices, uint8, H x W, 255 where the pixel is to be ignored.

    - lossy: 1 above 127, else 0
    - lossless, of one channel or of equal ones: the class indices as they are where all lie in 0..num_labels - 1 or
      are 255 and one of 1..num_labels - 1 occurs; else black and white, 1 above 127
    - a palette: its indices where its entry 0 shows black; else, or where they are no classes, the greys it shows
    With `boundary_width` the polyp's boundary then becomes label 2; see `with_boundary`.
    Raises UserError where a mask fits neither, so that cutting at 127 would silently give nothing.
    """
    return labels_of(read_mask(value, name), _source(value, name), num_labels, boundary_width)


def cropped(image: Image.Image | np.ndarray, box: tuple[int, int, int, int]) -> Image.Image | np.ndarray:
    """The part of an image, as `read_image` gives it, inside of (left, top, right, bottom)."""
    left, top, right, bottom = box
    return image.crop(box) if isinstance(image, Image.Image) else image[top:bottom, left:right]


def read_pair(
    row: dict, num_labels: int = 2, boundary_width: int | None = None, processor: object = None
) -> tuple[Image.Image | np.ndarray, np.ndarray]:
    """A row's image, as `read_image`, and labels (uint8, H x W). Raises UserError when their sizes differ."""
    image = read_image(row["image"], row["name"], processor)
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
    if mask.indexed and _are_classes(mask.values, num_labels):
        return mask.values.astype(np.uint8)
    if mask.shown is not None:
        return _class_indices(Mask(mask.shown, mask.lossy, mask.indexed), name, num_labels)
    _require_black_and_white(mask, name, num_labels)
    return (mask.values > THRESHOLD).astype(np.uint8)


def _are_classes(values: np.ndarray, num_labels: int) -> bool:
    classes = np.setdiff1d(values, [IGNORE])  # 255 is white, or to be ignored
    return bool(classes.any() and np.isin(classes, np.arange(num_labels)).all())


def require_same_size(image: Image.Image | np.ndarray, labels: np.ndarray, name: str) -> None:
    """Raises UserError, naming both sizes, unless `labels` (H x W) covers `image` pixel by pixel."""
    height, width = labels.shape
    rows, columns = height_and_width(image)
    if (rows, columns) != (height, width):
        raise UserError(
            f"{name}: the image is {columns} x {rows} pixels, its mask {width} x {height} (both upright): "
            "they must agree; export the mask again, or resize it with nearest"
        )


def _require_black_and_white(mask: Mask, name: str, num_labels: int) -> None:
    values = np.unique(mask.values)
    largest = max(values[values != IGNORE], default=0)
    if mask.lossy and len(values) > 1 and values[-1] <= NOISE:  # plain black may come back as one dark grey
        raise UserError(
            f"{name}: all but black, found {_listed(values)}: class indices do not survive a lossy format: export the "
            "masks as PNG"
        )
    if mask.lossy:
        is_wrong = NOISE < values[-1] <= THRESHOLD
    else:
        classes = mask.indexed and num_labels > 2 and largest > 0
        is_wrong = 0 < largest <= THRESHOLD or values[-1] > IGNORE or classes
    if is_wrong:
        raise UserError(
            f"{name}: labels out of range: found {_listed(values)}; a mask holds class indices 0..{num_labels - 1} "
            "(one channel, lossless; 255 is ignored), or 0 and 255: raise num_labels or export the mask again"
        )


def _listed(values: np.ndarray) -> str:
    texts = [str(value) for value in values.tolist()]
    return ", ".join(texts if len(texts) <= 8 else [*texts[:4], "...", *texts[-3:]])


def _palette_mask(image: Image.Image, lossy: bool, source: str) -> Mask:
    """A mask of mode P, upright.

    Its indices are classes where entry 0 shows black and each other one that occurs a colour of its own. Where those
    that occur are greys, the mask may be read as what it shows. Raises UserError where neither holds.
    """
    indices = np.asarray(image)
    used_indices, inverse = np.unique(indices, return_inverse=True)
    palette = _palette(image)
    colours = _on_black(palette[used_indices][None], source)[0]
    background = palette[0, :3] * (palette[0, 3:] / 255)
    foreground = colours[used_indices > 0]
    are_distinct = len(np.unique(foreground, axis=0)) == len(foreground) and (foreground.max(axis=1) > NOISE).all()
    are_grey = np.ptp(colours, axis=1).max() <= NOISE
    shown_greys = colours[:, 0][inverse].reshape(indices.shape) if are_grey else None
    if are_grey and (colours[:, 0] == used_indices).all():
        return Mask(indices, lossy, indexed=not lossy)
    if background.max() <= NOISE and are_distinct:
        return Mask(indices, lossy, not lossy, shown_greys)
    if are_grey:
        return Mask(shown_greys, lossy, indexed=not lossy)
    raise UserError(
        f"{source}: a palette whose entry 0 is not black, or which shows two classes alike: which colour is "
        "background is not known; save the class indices without a palette (PNG, one channel), or black and white"
    )


def _palette(image: Image.Image) -> np.ndarray:
    """The 256 entries of a P image as RGBA, uint8; black where the file gives fewer."""
    image = image.copy()
    image.apply_transparency()
    entries = np.array(image.getpalette("RGBA"), np.uint8).reshape(-1, 4)[:256]
    palette = np.tile(np.array([0, 0, 0, IGNORE], np.uint8), (256, 1))
    palette[: len(entries)] = entries
    return palette


def _on_black(values: np.ndarray, source: str) -> np.ndarray:
    """H x W x (colours, opacity) as H x W x colours, uint8: what is transparent is background.

    Raises UserError where opacity and colours do not say the same: something black is opaque beside what is
    transparent, or all is transparent and not black.
    """
    colours, opacity = values[..., :-1], values[..., -1]
    if opacity.min() >= IGNORE - NOISE:
        return colours
    opaque, bright = opacity > THRESHOLD, colours.max(axis=-1) > NOISE
    if (opaque & ~bright).any() or (bright.any() and not opaque.any()):
        raise UserError(
            f"{source}: a mask whose transparency and colours disagree about what is background: flatten it to black "
            "and white, without transparency"
        )
    return (colours * (opacity[..., None] / IGNORE)).astype(np.uint8)


def _open(value: dict, name: str, one_picture: bool = False) -> Image.Image:
    count = 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = open_picture(_stored(value))  # never EPS, which would run a program
            if one_picture and image.format != "MPO":  # its second picture is a preview
                count = getattr(image, "n_frames", 1)
            image.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = f"the limit is {Image.MAX_IMAGE_PIXELS:,} pixels: make it smaller"
        raise UserError(f"{_source(value, name)}: too large an image ({error}); {limit}") from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "of no known format" if unknown else str(error) or type(error).__name__
        if one_picture and unknown:
            reason = "a mask is a picture, or a .npy file of class indices"
        elif Path(value.get("path") or "").suffix.lower() in VALUE_SUFFIXES:
            reason = "NumPy and DICOM files hold values: set model.num_channels, or of three channels intensity"
        raise UserError(f"{_source(value, name)}: not a readable image ({reason}): replace the file") from error
    if count > 1:
        raise UserError(f"{_source(value, name)}: a mask of {count} pictures: join them into one")
    return image


def _stored(value: dict) -> io.BytesIO:
    content = value.get("bytes")
    if content is not None:
        return io.BytesIO(content)
    path = Path(value["path"])
    if path.exists() and not path.is_file():  # a FIFO would be waited for
        raise OSError(errno.EINVAL, "not a plain file", str(path))
    return io.BytesIO(path.read_bytes())


def _source(value: dict, name: str) -> str:
    return f"{name} ({value['path']})" if value.get("path") else name
