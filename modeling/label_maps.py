"""Label maps of any form to class indices: a map is what a viewer shows, or is refused."""

import warnings

import numpy as np
from PIL import Image

from hub_unets.modeling.images import opened, orientation, to_array, upright

LOSSY = "JPEG", "MPO", "JPEG2000", "WEBP"
NOISE = 16  # how far a lossy format may lift black, lower white, or part the channels of a grey image
THRESHOLD = 127  # a grey value above it is white
BLACK_AND_WHITE = (
    "A label map of 0 and 255 alone is read as black and white: 255 becomes label 1. Use -100 for pixels to be "
    "ignored; maps of labels 0 and 1 are read without this warning."
)


def to_labels(label_map):
    """A label map as class indices, int64 H x W.

    Values are class indices as they are (255 and -100 are ignored in training), but for maps of black and white: those
    of 0 and 255 alone, those a JPEG has put noise on, and palettes that show nothing else become labels 0 and 1.

    Args:
        label_map: path, PIL image, array or tensor, H x W, 1 x H x W, H x W x 1 or with three equal channels.

    Raises:
        ValueError: colours, transparency, probabilities, another shape, or class indices in a lossy format.
    """
    label_map = opened(label_map)
    try:
        return _labels(label_map)
    except ValueError as error:
        name = getattr(label_map, "filename", "")  # of an image that was opened from a path
        raise ValueError(f"{name}: {error}" if name else str(error)) from error


def _labels(label_map):
    if isinstance(label_map, Image.Image):
        lossy = label_map.format in LOSSY
        values = _one_channel(_shown(upright(label_map)))
    else:
        lossy, values = False, _one_channel(to_array(label_map))
    levels = np.unique(values)
    if levels[-1] != levels[-1] or (values.dtype.kind == "f" and (np.rint(levels) != levels).any()):
        raise ValueError("A label map must hold whole numbers; these look like probabilities: threshold them first.")
    return _white(values, levels, lossy) if _is_black_and_white(levels, lossy) else values.astype(np.int64)


def split_maps(label_maps, count):
    """The label maps of `count` images as a list.

    Raises:
        ValueError: there are not as many.
    """
    several = count > 1 and getattr(label_maps, "ndim", 0) == 3 and len(label_maps) == count
    maps = list(label_maps) if several else flat_list(label_maps)
    if len(maps) != count:
        raise ValueError(f"segmentation_maps must be one for each image: got {len(maps)} for {count} images.")
    return maps


def flat_list(images):
    """Images, or lists of them at any depth, or an array B x ... of four dimensions, as a list."""
    if isinstance(images, (list, tuple)):
        return [item for image in images for item in flat_list(image)]
    return list(images) if getattr(images, "ndim", 0) == 4 else [images]


def check_pair(image, size, label_map, labels):
    """Raise ValueError unless labels H x W cover an image of upright `size` (height, width); warn where EXIF hides it.

    Args:
        image, label_map: as they were given; only PIL images have an orientation.
    """
    turn = orientation(image) if isinstance(image, Image.Image) else 1
    if labels.shape != size:
        cause = " after its EXIF tag turned it: turn the map, too, or remove the tag" if turn > 1 else ""
        raise ValueError(
            f"A label map must be as large as its image: the map is {labels.shape[1]} x {labels.shape[0]} pixels, the "
            f"image {size[1]} x {size[0]}{cause}."
        )
    map_turn = orientation(label_map) if isinstance(label_map, Image.Image) else 1
    if turn not in (1, map_turn) and (turn < 5 or size[0] == size[1]):
        warnings.warn(
            "An image is turned by its EXIF tag, its label map has no such tag, and their sizes don't tell whether it "
            "was drawn on the turned image: look at the pair.",
            stacklevel=2,
        )


def _shown(image):
    """An upright PIL image's values, H x W or H x W x 3: a palette's indices unless it shows black and white alone."""
    if image.mode in ("P", "PA"):
        colours = np.asarray(image.convert("RGB"))
        grey = (colours == colours[..., :1]).all()
        if not (grey and _is_black_and_white(np.unique(colours), False)):
            return np.asarray(image)[..., 0] if image.mode == "PA" else np.asarray(image)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema()[0] < 255:
            raise ValueError("A label map with transparent pixels: what they mean is not known; save it without.")
    grey_mode = image.mode in ("1", "L", "F") or image.mode.startswith("I")
    return np.asarray(image if grey_mode else image.convert("RGB"))


def _one_channel(values):
    """Values H x W of an array H x W, 1 x H x W, H x W x 1, H x W x 3 or 3 x H x W."""
    if values.ndim == 3 and values.shape[0] in (1, 3) and values.shape[-1] not in (1, 3):
        values = np.moveaxis(values, 0, -1)
    if values.ndim == 3 and values.shape[-1] == 3:
        floats = values.astype(np.float32)
        if (abs(floats - floats[..., :1]) > NOISE).any():
            raise ValueError(
                "A label map in colours: which colour is which class is not known; save class indices in one channel."
            )
    if values.ndim == 3 and values.shape[-1] in (1, 3):
        values = values[..., 0]
    if values.ndim != 2 or not values.size:
        raise ValueError(f"A label map must be H x W, 1 x H x W or three equal channels; got {values.shape}.")
    return values


def _is_black_and_white(levels, lossy):
    """Whether sorted values are black and white, perhaps with the noise of a lossy format."""
    highest = levels[-1]
    if lossy and 0 < highest <= THRESHOLD:
        raise ValueError(
            f"A label map in a lossy format holds no white (its largest value is {highest}): class indices don't "
            "survive JPEG or WebP; save them as PNG."
        )
    if lossy or (highest in (255, 65535) and ((levels == 0) | (levels == highest)).all()):
        return True
    noisy = ((levels > 255 - NOISE) & (levels < 255)).any()
    return bool(noisy and levels[0] >= 0 and highest <= 255 and ((levels <= NOISE) | (levels >= 255 - NOISE)).all())


def _white(values, levels, lossy):
    if not lossy and len(levels) <= 2:
        warnings.warn(BLACK_AND_WHITE, stacklevel=5)
    return (values > (THRESHOLD if levels[-1] <= 255 else 32767)).astype(np.int64)
