"""Large images in overlapping tiles, each at the processor's size, blended into the whole image's logits."""

import itertools
import math

import torch

from hub_unets.modeling.image_processing_unet import upsample
from hub_unets.modeling.images import height_and_width
from hub_unets.training.data.reading import cropped


def logits_of(forward, images, tile=None, overlap=0.25, batch_size=8):
    """Each image's logits, 1 x C x h x w, in order.

    Args:
        forward: a function from a list of images to logits, B x C x h x w.
        images: as `training.data.reading.read_image` gives them.
        tile: side of the tiles in the image's pixels; None, or a side as large as the image, leaves the image whole.
        overlap: the least share of a tile that its neighbour covers too.
        batch_size: tiles a forward pass.

    Yields:
        of a whole image the logits that `forward` gives; of a tiled one logits at its own size, h = H and w = W: the
        tiles' mean, weighted by a window that falls off towards the tile's border (Hann).
    """
    boxes_of_images = [tile_boxes(*height_and_width(image)[::-1], tile, overlap) for image in images]
    crops = (
        image if len(boxes) == 1 else cropped(image, box)
        for image, boxes in zip(images, boxes_of_images, strict=True)
        for box in boxes
    )
    logits = (tile_logits[None] for batch in in_batches(crops, batch_size) for tile_logits in forward(batch))
    for image, boxes in zip(images, boxes_of_images, strict=True):
        if len(boxes) == 1:
            yield next(logits)
        else:
            yield blend(zip(boxes, logits, strict=False), *height_and_width(image))


def tile_boxes(width, height, tile, overlap):
    """Boxes (left, top, right, bottom) in pixels that cover an image; a box beyond the border is shifted inside."""
    spans = [_spans(side, tile or side, overlap) for side in (height, width)]
    return [(left, top, right, bottom) for (top, bottom), (left, right) in itertools.product(*spans)]


def _spans(length, tile, overlap):
    step = max(1, math.floor(tile * (1 - overlap)))
    starts = [*range(0, max(0, length - tile), step), max(0, length - tile)]
    return [(start, min(start + tile, length)) for start in starts]


def blend(tiles, height, width):
    """Pairs of box and logits 1 x C x h x w to the weighted mean of the logits, float32 1 x C x H x W."""
    total = weights = None
    for (left, top, right, bottom), logits in tiles:
        weight = hann(bottom - top, right - left).to(logits.device)
        if total is None:
            total = logits.new_zeros((1, logits.shape[1], height, width), dtype=torch.float32)
            weights = total.new_zeros((height, width))
        total[..., top:bottom, left:right] += upsample(logits, [(bottom - top, right - left)])[0] * weight
        weights[top:bottom, left:right] += weight
    return total / weights


def hann(height, width):
    """Weights above 0, float32 H x W, that fall off like sin² towards the four borders."""
    rows, columns = (torch.sin(math.pi * (torch.arange(side) + 0.5) / side).square() for side in (height, width))
    return rows[:, None] * columns


def in_batches(items, size):
    """Lists of `size` items, the last one shorter."""
    items = iter(items)
    while batch := list(itertools.islice(items, size)):
        yield batch
