"""The regions of a mask with their scores: the mean probability of each."""

import numpy as np
import torch

from hub_unets.modeling.regions import regions_of


def probabilities(logits):
    """Logits C x ... to probabilities of every class: 1 x ... of the polyp (binary) or C x ... with the background."""
    return logits.sigmoid() if logits.shape[0] == 1 else logits.softmax(dim=0)


def scored_regions(classes, logits, label):
    """The regions of one label: (bool H x W, Regions, float64 scores).

    Only the label's own pixels are turned into probabilities.
    """
    mask = classes == label
    regions = regions_of(mask)
    if not regions.count:
        return mask, regions, np.zeros(0)
    pixels = torch.from_numpy(np.stack([channel[mask] for channel in logits.cpu().numpy()]))  # C x pixels
    label_probabilities = probabilities(pixels)[0 if len(pixels) == 1 else label].numpy()
    sums = np.add.reduceat(label_probabilities, np.cumsum(regions.lengths) - regions.lengths, dtype=np.float64)
    return mask, regions, np.bincount(regions.regions, sums) / regions.areas()


def components_as_segments(mask, logits, threshold):
    """A mask's regions that score `threshold` or more, as `post_process_instance_segmentation` gives them."""
    segmentation = np.zeros(mask.shape, np.int32)
    classes = mask.cpu().numpy()
    segments = []
    for label in range(1, max(2, len(logits))):
        label_mask, regions, scores = scored_regions(classes, logits, label)
        likely = np.flatnonzero(scores >= threshold)
        ids = np.zeros(len(scores), np.int32)
        ids[likely] = np.arange(len(segments) + 1, len(segments) + len(likely) + 1)
        segmentation[label_mask] = np.repeat(ids[regions.regions], regions.lengths)
        areas, boxes = regions.areas(), regions.boxes()
        segments += [
            {
                "id": int(ids[region]),
                "label_id": label,
                "score": float(scores[region]),
                "area": int(areas[region]),
                "bbox": boxes[region].tolist(),
            }
            for region in likely.tolist()
        ]
    return {"segmentation": torch.from_numpy(segmentation), "segments_info": segments}
