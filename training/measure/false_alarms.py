"""How often a model marks a polyp where there is none: on polyp-free parts of the images, or on a folder of frames."""

import numpy as np
import torch
from tqdm import tqdm

from hub_unets.training.data.reading import read_image
from hub_unets.training.measure.metrics import mean_with_interval
from hub_unets.training.measure.models import pixel_values

ALARM_COLUMNS = ("crop_pixels",)
MIN_SIDE = 1 / 3  # of a crop, as a share of the image's
DEFINITION = (
    "Of each image the largest rectangle without a polyp, if it has a third of the image's height and width and is "
    "mostly bright, is cut out and segmented as an image of its own. A false alarm is a crop in which the mask has a "
    "pixel. A crop shows less than a frame, and enlarged: a stand-in where no frame without a polyp is at hand."
)


def summarize_crops(pixels):
    """Marked pixels of each image's crop, None where it has none, to how many crops there are and the share marked."""
    return share_marked([one for one in pixels if one is not None], "crops")


def on_frames(model, processor, rows, progress=""):
    """Marked pixels of each of some frames that show no polyp.

    Args:
        model, processor: as of `training.evaluate.score`.
        rows: Dataset with name and image (encoded).
        progress: what the progress bar says; empty shows none.
    """
    bar = tqdm(rows, desc=progress, unit="image", disable=not progress, leave=False)
    return [marked_pixels(model, processor, read_image(row["image"], row["name"])) for row in bar]


@torch.inference_mode()
def marked_pixels(model, processor, image, **options):
    """How many pixels of a PIL image the model gives another label than 0; `options` are those of the processor."""
    outputs = model(pixel_values=pixel_values(model, processor, image))
    (mask,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[image.size[::-1]], **options)
    return int((mask > 0).sum())


def share_marked(pixels, of="frames"):
    """How many there are, and the share with a marked pixel with its 95 % bootstrap interval; None without any."""
    alarms = np.array(pixels) > 0
    return {of: len(alarms), "marked": mean_with_interval(alarms) if len(alarms) else None}
