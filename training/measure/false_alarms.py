"""How often a model marks a polyp where there is none: on polyp-free parts of the images, or on a folder of frames."""

import numpy as np
from tqdm import tqdm

from hub_unets.training.data.polyp_free import largest_free_crop
from hub_unets.training.data.reading import read_image
from hub_unets.training.measure.metrics import mean_with_interval

ALARM_COLUMNS = ("crop_pixels",)
MIN_SIDE = 1 / 3  # of a crop, as a share of the image's
DEFINITION = (
    "Of each image the largest rectangle without a polyp, if it has a third of the image's height and width and is "
    "mostly bright, is cut out and segmented as an image of its own. A false alarm is a crop in which the mask has a "
    "pixel. A crop shows less than a frame, and enlarged: a stand-in where no frame without a polyp is at hand."
)


def summarize_crops(pixels):
    """Marked pixels of each image's crop, None where it has none, to how many crops there are and the share marked."""
    return share_marked((count for count in pixels if count is not None), "crops")


def marked_on_frames(segment, labels, rows, progress=""):
    """Marked pixels of each of some frames that show no polyp.

    Args:
        segment: a `training.measure.segmenter.Segmenter`.
        labels: the model's labels that count as polyp.
        rows: Dataset with name and image (encoded).
        progress: what the progress bar says; empty shows none.
    """
    bar = tqdm(rows, desc=progress, unit="image", disable=not progress, leave=False)
    return [marked_pixels(segment, labels, read_image(row["image"], row["name"], segment.processor)) for row in bar]


def marked_in_crop(segment, labels, image, truth):
    """Marked pixels of the polyp-free crop of one image with its true labels H x W; None where it has none."""
    crop = largest_free_crop(image, truth, MIN_SIDE)
    return None if crop is None else marked_pixels(segment, labels, crop)


def marked_pixels(segment, labels, image):
    """How many pixels of an image get one of these labels."""
    (mask,), _ = segment([image])
    return int(np.isin(mask, labels).sum())


def share_marked(pixels, unit="frames"):
    """How many there are, and the share with a marked pixel with its 95 % bootstrap interval; None without any."""
    alarms = np.fromiter((count > 0 for count in pixels), bool)
    return {unit: len(alarms), "marked": mean_with_interval(alarms) if len(alarms) else None}
