"""How often a model marks a polyp where there is none: on polyp-free parts of the images, or on a folder of frames."""

import numpy as np
import torch
from tqdm import tqdm

from training.metrics import mean_with_interval
from training.polyp_free import largest_free_crop
from training.reading import read_image, read_pair

MIN_SIDE = 1 / 3  # of a crop, as a share of the image's


def on_crops(model, processor, rows, num_labels=2, boundary_width=None, progress=""):
    """False alarms on the largest polyp-free crop of each row, where there is one; see `marked_pixels` and `summary`.

    Args:
        rows: Dataset with name, image, annotation (encoded); the other arguments are those of `marked_pixels` and of
            `training.reading.read_pair`.

    Returns:
        dict: the name of each image that has such a crop, to the pixels marked in it.
    """
    crops = ((row["name"], largest_free_crop(*read_pair(row, num_labels, boundary_width), MIN_SIDE)) for row in rows)
    return marked_pixels(model, processor, crops, len(rows), progress)


def on_frames(model, processor, rows, progress=""):
    """As `on_crops`, on whole frames none of which holds a polyp."""
    frames = ((row["name"], read_image(row["image"], row["name"])) for row in rows)
    return marked_pixels(model, processor, frames, len(rows), progress)


def marked_pixels(model, processor, frames, total, progress=""):
    """Pixels of any label but background that a model marks in each of some frames.

    Args:
        model, processor: as of `training.evaluate.score`.
        frames: pairs of name and PIL image, or None to leave it out.
        total: how many pairs there are.
        progress: what the progress bar says; empty shows none.

    Returns:
        dict: name to int, the frames left out not among them.
    """
    marked = {}
    for name, frame in tqdm(frames, total=total, desc=progress, unit="image", disable=not progress, leave=False):
        if frame is not None:
            marked[name] = _marked(model, processor, frame)
    return marked


@torch.inference_mode()
def _marked(model, processor, frame):
    pixel_values = processor(frame, return_tensors="pt")["pixel_values"].to(model.device, model.dtype)
    outputs = model(pixel_values=pixel_values)
    (mask,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[frame.size[::-1]])
    return int((mask > 0).sum())


def summary(marked):
    """How many frames, and the share of them in which any pixel is marked, with its 95 % bootstrap interval."""
    alarms = np.array([pixels > 0 for pixels in marked], np.float64)
    return {"frames": len(alarms), "marked": mean_with_interval(alarms) if len(alarms) else None}
