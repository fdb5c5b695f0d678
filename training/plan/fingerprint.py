"""What a data set is, as far as a recipe depends on it: sizes, channels, classes, objects, repeated frames.

The idea of a fingerprint is nnU-Net's (Isensee et al. 2021).
"""

from typing import NamedTuple

import cv2
import datasets
import numpy as np
from tqdm.auto import tqdm

from hub_unets.modeling.image_processing_unet import UNetImageProcessor
from hub_unets.training.data.check_data import SMALLEST_POLYP
from hub_unets.training.data.files import first_few
from hub_unets.training.data.reading import IGNORE, labels_of, read_image, read_mask, require_same_size
from hub_unets.training.errors import UserError
from hub_unets.training.plan.headers import Header, read_header

MOST_LABELS = 32  # a mask with larger values holds greys, not class indices
SPECK = 0.05  # of its image's largest object: what is smaller, and below SMALLEST_POLYP, is none
THUMBNAIL = 16  # pixels
ALIKE = 0.99  # correlation of two thumbnails above which they show one frame, or neighbours of a video
BLOCK = 1000  # thumbnails that are compared at once
INTENSITY = {"percentiles": [0.5, 99.5]}  # of images that are no RGB: most of their values' range, whatever it is


class Fingerprint(NamedTuple):
    """What was found in a data set.

    Attributes:
        images: number of pairs.
        width, height: median, in pixels.
        smallest_side, largest_side: over all images, in pixels.
        header: channels and bits of most images.
        num_labels: background included.
        images_of_label: how many images show each label from 1.
        share_of_label: median share of the image that a label from 1 covers where it is shown, in 0..1.
        empty: masks without foreground.
        objects: number of connected regions.
        smallest_width, median_width: the 5 % and 50 % quantile of the objects' widths (of the largest circle inside),
            as a share of the square root of their image's area; 0 without objects.
        alike: pairs of names whose images look the same.
    """

    images: int
    width: int
    height: int
    smallest_side: int
    largest_side: int
    header: Header
    num_labels: int
    images_of_label: tuple[int, ...]
    share_of_label: tuple[float, ...]
    empty: int
    objects: int
    smallest_width: float
    median_width: float
    alike: tuple[tuple[str, str], ...]

    @property
    def side(self) -> float:
        """The side of a square with the median image's area, in pixels."""
        return (self.width * self.height) ** 0.5

    @property
    def rarest_share(self) -> float:
        """The smallest of `share_of_label`, of the labels that are shown."""
        return min(share for share in self.share_of_label if share)


class _Pair(NamedTuple):
    header: Header
    width: int
    height: int
    labels: int  # that its mask must have, background included
    shares: dict[int, float]
    widths: tuple[float, ...]
    thumbnail: np.ndarray


def take_fingerprint(
    rows: datasets.Dataset, num_labels: int | None = None, boundary_width: int | None = None
) -> Fingerprint:
    """Reads every pair once, or twice where the masks turn out to hold several classes.

    Args:
        rows: name, image and annotation (encoded).
        num_labels: background included; None finds it in the masks: one more than the largest class index of a
            lossless mask, else 2.
        boundary_width: as in `training.data.reading.read_labels`.

    Raises:
        UserError: a pair that can't be read, or no mask with foreground.
    """
    pairs = _measure_all(rows, num_labels, boundary_width)
    found = max(pair.labels for pair in pairs)
    if num_labels is None and found > 2:
        return take_fingerprint(rows, found, boundary_width)
    num_labels = num_labels or found
    shares = [[pair.shares[label] for pair in pairs if label in pair.shares] for label in range(1, num_labels)]
    if not any(shares):
        raise UserError(
            f"none of the {len(rows)} masks has a foreground pixel, so there is nothing to learn: look at the masks "
            "(hub-unets check-data lists what they hold)"
        )
    widths = [width for pair in pairs for width in pair.widths]
    return Fingerprint(
        images=len(pairs),
        width=round(np.median([pair.width for pair in pairs])),
        height=round(np.median([pair.height for pair in pairs])),
        smallest_side=min(min(pair.width, pair.height) for pair in pairs),
        largest_side=max(max(pair.width, pair.height) for pair in pairs),
        header=header_of([pair.header for pair in pairs], rows["name"]),
        num_labels=num_labels,
        images_of_label=tuple(map(len, shares)),
        share_of_label=tuple(float(np.median(values)) if values else 0.0 for values in shares),
        empty=sum(not pair.shares for pair in pairs),
        objects=len(widths),
        smallest_width=float(np.quantile(widths, 0.05)) if widths else 0.0,
        median_width=float(np.median(widths)) if widths else 0.0,
        alike=look_alikes(rows["name"], np.stack([pair.thumbnail for pair in pairs])),
    )


def look_alikes(names: list[str], thumbnails: np.ndarray) -> tuple[tuple[str, str], ...]:
    """The pairs of names whose thumbnails, N x 16 x 16, correlate above .99: one frame twice, or neighbours."""
    flat = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
    pairs = []
    for start in range(0, len(flat), BLOCK):
        first, second = np.nonzero(flat[start : start + BLOCK] @ flat.T > ALIKE)
        pairs += [(names[a + start], names[b]) for a, b in zip(first, second, strict=True) if a + start < b]
    return tuple(pairs)


def object_widths(labels: np.ndarray) -> tuple[float, ...]:
    """The widths of the objects of a mask of class indices, uint8 H x W, as shares of the square root of its area.

    An object is an 8-connected region of one label above 0; specks are left out. Its width is the diameter of the
    largest circle inside, so that a vessel is as wide as it is thick.
    """
    widths = []
    for label in np.flatnonzero(np.bincount(labels.ravel())[1:IGNORE]) + 1:
        _, regions, stats, _ = cv2.connectedComponentsWithStats((labels == label).astype(np.uint8), connectivity=8)
        areas = stats[1:, cv2.CC_STAT_AREA]
        matters = (areas >= SMALLEST_POLYP * labels.size) | (areas >= SPECK * areas.max())
        for number in np.flatnonzero(matters) + 1:
            left, top, width, height = stats[number, :4]
            region = (regions[top : top + height, left : left + width] == number).astype(np.uint8)
            distances = cv2.distanceTransform(np.pad(region, 1), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
            widths.append((2 * distances.max() - 1) / labels.size**0.5)
    return tuple(float(width) for width in widths)


def header_of(headers: list[Header], names: list[str]) -> Header:
    """The header of most images. Raises UserError where not all are pictures in RGB or grey, and channels differ."""
    if not all(header.is_rgb for header in headers):
        first = {header.channels: name for name, header in zip(reversed(names), reversed(headers), strict=True)}
        if len(first) > 1:
            examples = ", ".join(f"{channels} ({name})" for channels, name in sorted(first.items()))
            raise UserError(f"the images differ in channels: {examples}: save them all with the same ones.")
    return max(set(headers), key=headers.count)


def _measure_all(rows, num_labels, boundary_width):
    pairs, bad = [], []
    for row in tqdm(rows, desc="Look at the data", disable=None):
        try:
            pairs.append(_measure(row, num_labels, boundary_width))
        except (UserError, OSError) as error:
            bad.append(str(error))
    if bad:
        raise UserError(
            f"{len(bad)} of {len(rows)} pairs can't be used: {first_few(bad, 2)}; hub-unets check-data lists them all"
        )
    return pairs


def _measure(row, num_labels, boundary_width):
    header = read_header(row["image"], row["name"])
    image, mask = _read(row, header), read_mask(row["annotation"], row["name"])
    own_labels = num_labels or _labels_in(mask)
    labels = labels_of(mask, row["name"], own_labels, boundary_width)
    require_same_size(image, labels, row["name"])
    counts = np.bincount(labels.ravel(), minlength=IGNORE + 1)
    shares = {label: counts[label] / labels.size for label in np.flatnonzero(counts[:IGNORE]).tolist() if label}
    height, width = labels.shape
    return _Pair(header, width, height, own_labels, shares, object_widths(labels), _thumbnail(image))


def _read(row, header):
    """The image as RGB, or as float32 H x W x C in 0..1."""
    if header.is_rgb:
        return read_image(row["image"], row["name"])
    processor = UNetImageProcessor(num_channels=header.channels, intensity=INTENSITY)
    return read_image(row["image"], row["name"], processor)


def _labels_in(mask):
    """The number of labels, background included, that a mask's values ask for; 2 for black and white and for greys."""
    if not mask.indexed or mask.values.max() > IGNORE:
        return 2
    counts = np.bincount(mask.values.ravel().astype(np.uint8), minlength=IGNORE + 1)
    largest = max(np.flatnonzero(counts[:IGNORE]), default=0)
    is_white = counts[IGNORE] > counts[1:IGNORE].sum()  # specks of grey in black and white
    return 2 if is_white or largest >= MOST_LABELS else max(2, int(largest) + 1)


def _thumbnail(image):
    pixels = np.asarray(image)
    if pixels.ndim == 3 and pixels.shape[-1] > 4:  # more than OpenCV takes
        pixels = pixels.mean(axis=-1)
    small = cv2.resize(pixels, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
    return small if small.ndim == 2 else small.mean(axis=-1)
