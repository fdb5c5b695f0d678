"""Images to `pixel_values`, logits to masks and polyps at the images' own size, and the pipeline of both.

The pipeline stands in the processor's file because transformers copies that file when a user saves the processor; a
file of its own would stay behind.
"""

import contextlib
import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import ImageSegmentationPipeline
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature

from hub_unets.modeling.images import to_rgb


class UNetImageProcessor(BaseImageProcessor):
    """Resizes, mirrors borders, rescales and normalises; turns logits into masks at the original size.

    Args:
        size: {"height", "width"} in pixels of the field that the logits cover.
        do_resize: False keeps each image's size.
        resample: a PIL filter for images (2 is bilinear, antialiased); masks are always nearest.
        do_rescale: multiply 0..255 by `rescale_factor`.
        do_normalize: subtract `image_mean` and divide by `image_std`, three numbers each.
        mirror_margin: pixels mirrored at each border after resizing, for `valid` padding (92 at depth 4; figure 2 of
            the 2015 paper): `pixel_values` are `size` + 2 x `mirror_margin`.
        mask_threshold: a binary head's pixel is a polyp where its probability exceeds this, if no other is given.
        score_threshold: regions whose score, the mean probability over the region, is below this are background.
    """

    model_input_names = ["pixel_values"]

    def __init__(
        self,
        size=None,
        do_resize=True,
        resample=2,
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        image_mean=(0.485, 0.456, 0.406),
        image_std=(0.229, 0.224, 0.225),
        mirror_margin=0,
        mask_threshold=0.5,
        score_threshold=0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.size = _size_dict(256 if size is None else size)
        self.do_resize = do_resize
        self.resample = int(resample)
        self.do_rescale = do_rescale
        self.rescale_factor = rescale_factor
        self.do_normalize = do_normalize
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)
        self.mirror_margin = mirror_margin
        self.mask_threshold = mask_threshold
        self.score_threshold = score_threshold

    def __call__(self, images, **kwargs):
        return self.preprocess(images, **kwargs)

    def preprocess(self, images, segmentation_maps=None, return_tensors="pt", **kwargs):
        """A batch for the model.

        Args:
            images: one image or a list: path, PIL image, NumPy array or torch tensor (H x W, H x W x C or C x H x W;
                uint8, uint16, or floats in 0..1 or 0..255).
            segmentation_maps: optionally a mask of class indices for each image, H x W.
            return_tensors: `"pt"` or `"np"`.
            kwargs: any field of this processor, for this call.

        Returns:
            BatchFeature with `pixel_values` float32, B x 3 x H x W, and `labels` int64, B x H x W, if masks are given.

        Raises:
            ValueError: an image that can't be read as RGB, an unknown option, or without resizing images of different
                sizes.
        """
        options = self._options(kwargs)
        pixels = [np.asarray(options.resize(to_rgb(image))) for image in _as_list(images)]
        if len({image.shape for image in pixels}) > 1:
            raise ValueError("do_resize=False needs images of one size in a batch; pass them one by one.")
        data = {"pixel_values": options.normalize(np.stack(pixels))}
        if segmentation_maps is not None:
            labels = [options.resize_labels(np.asarray(mask)) for mask in _as_list(segmentation_maps)]
            data["labels"] = np.stack([options.mirror(mask) for mask in labels]).astype(np.int64)
        return BatchFeature(data=data, tensor_type=return_tensors)

    def _options(self, changes):
        """This processor, or a copy with the fields that a call changes."""
        changes = {name: value for name, value in changes.items() if value is not None}
        fields = {name: value for name, value in self.to_dict().items() if name in vars(self)}
        unknown = sorted(changes.keys() - fields.keys())
        if unknown:
            raise ValueError(f"Unknown option {unknown[0]!r}; this image processor has {', '.join(sorted(fields))}.")
        return type(self)(**{**fields, **changes}) if changes else self

    def resize(self, image):
        """An RGB PIL image at `size`."""
        if not self.do_resize:
            return image
        return image.resize((self.size["width"], self.size["height"]), Image.Resampling(self.resample))

    def resize_labels(self, labels):
        """Class indices H x W at `size`, by nearest neighbour."""
        if not self.do_resize:
            return labels
        mask = Image.fromarray(labels.astype(np.int32))
        resized = mask.resize((self.size["width"], self.size["height"]), Image.Resampling.NEAREST)
        return np.asarray(resized).astype(labels.dtype)

    def mirror(self, array):
        """An array ... x H x W with `mirror_margin` mirrored rows and columns on each side."""
        if not self.mirror_margin:
            return array
        if min(array.shape[-2:]) <= self.mirror_margin:
            raise ValueError(
                f"{array.shape[-2]} x {array.shape[-1]} pixels are too few to mirror {self.mirror_margin} at each "
                f"border (mirror_margin); size must be larger than {self.mirror_margin}."
            )
        margins = [(0, 0)] * (array.ndim - 2) + [(self.mirror_margin, self.mirror_margin)] * 2
        return np.pad(array, margins, mode="reflect")

    def normalize(self, pixels):
        """uint8 B x H x W x 3 at `size` to float32 `pixel_values`, B x 3 x H x W, mirrored where the model asks."""
        values = self.mirror(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))).astype(np.float32)
        if self.do_rescale:
            values *= np.float32(self.rescale_factor)
        if self.do_normalize:
            values -= np.array(self.image_mean, np.float32)[:, None, None]
            values /= np.array(self.image_std, np.float32)[:, None, None]
        return values

    def post_process_semantic_segmentation(self, outputs, target_sizes=None, threshold=None):
        """Class indices at the original size: the one place where logits become a mask.

        Args:
            outputs: a model's output, or its `logits`, B x C x h x w (C = 1: a binary head).
            target_sizes: B pairs (height, width); None keeps the size of the logits.
            threshold: probability above which a binary head's pixel is a polyp; None takes `mask_threshold`.

        Returns:
            list of B int64 tensors H x W.
        """
        return [self._without_unlikely(logits, threshold) for logits in upsample(_logits(outputs), target_sizes)]

    def post_process_instance_segmentation(
        self,
        outputs,
        threshold=None,
        mask_threshold=None,
        overlap_mask_area_threshold=None,
        target_sizes=None,
        return_coco_annotation=False,
    ):
        """One scored entry for each polyp: the connected components (8 neighbours) of the semantic mask.

        Args:
            outputs: a model's output, or its `logits`, B x C x h x w.
            threshold: drop entries whose score is below this; None takes `score_threshold`, as the semantic mask does,
                so that their union is the mask.
            mask_threshold: as `threshold` of `post_process_semantic_segmentation`.
            overlap_mask_area_threshold: taken for the pipeline's sake; components never overlap.
            target_sizes: B pairs (height, width); None keeps the size of the logits.
            return_coco_annotation: only False; the pipeline never asks for it.

        Returns:
            list of B dictionaries: `segmentation`, an int32 tensor H x W with 0 for background and the entry's id,
            and `segments_info`, dictionaries of `id`, `label_id` and `score`, the mean probability over the entry.
        """
        if return_coco_annotation:
            raise ValueError(
                "return_coco_annotation=True is not supported: take `segmentation`, an id for each pixel."
            )
        least = self.score_threshold if threshold is None else threshold
        return [
            _components_as_segments(self._to_mask(logits, mask_threshold), logits, least)
            for logits in upsample(_logits(outputs), target_sizes)
        ]

    def _without_unlikely(self, logits, threshold):
        """Logits C x H x W to class indices H x W, regions that score below `score_threshold` left out."""
        mask = self._to_mask(logits, threshold)
        if not self.score_threshold:
            return mask
        classes = mask.cpu().numpy()
        for label in range(1, max(2, len(logits))):
            of_label, regions, lengths, scores = _scored_regions(classes, logits, label)
            unlikely = scores < self.score_threshold
            if unlikely.any():
                of_label[of_label] = np.repeat(unlikely[regions], lengths)
                mask[torch.from_numpy(of_label).to(mask.device)] = 0
        return mask

    def _to_mask(self, logits, threshold):
        """Logits C x H x W at the original size to class indices H x W, every region kept."""
        if logits.shape[0] > 1:
            return logits.argmax(dim=0)
        threshold = self.mask_threshold if threshold is None else threshold
        if not 0 < threshold < 1:
            raise ValueError(f"mask_threshold must lie between 0 and 1, got {threshold}.")
        return (logits[0] > math.log(threshold / (1 - threshold))).long()


class UNetImageSegmentationPipeline(ImageSegmentationPipeline):
    """As the stock pipeline, but the union of its entries is the semantic mask.

    The stock class drops entries that score below .9, and with them many true polyps.
    """

    def check_model_type(self, supported_models):
        """Accept any model: the stock list names the architectures inside transformers only."""

    def preprocess(self, image, subtask=None, timeout=None):
        with contextlib.suppress(OSError):  # an address or base64 text: left to the stock class
            image = to_rgb(image)  # the stock class clips images of 16 bits to white
        return super().preprocess(image, subtask, timeout)

    def postprocess(
        self, model_outputs, subtask=None, threshold=None, mask_threshold=None, overlap_mask_area_threshold=None
    ):
        return super().postprocess(model_outputs, subtask, threshold, mask_threshold, overlap_mask_area_threshold)


def upsample(logits, target_sizes=None):
    """float32 logits C x H x W of each image, interpolated (bilinear) to its (height, width)."""
    if target_sizes is None:
        return list(logits.float())
    if len(target_sizes) != len(logits):
        raise ValueError(f"target_sizes needs one (height, width) for each of {len(logits)} images.")
    return [
        F.interpolate(one[None].float(), size=tuple(int(side) for side in size), mode="bilinear")[0]
        for one, size in zip(logits, target_sizes, strict=True)
    ]


def probabilities(logits):
    """Logits C x ... to probabilities of every class: 1 x ... of the polyp (binary) or C x ... with the background."""
    return logits.sigmoid() if logits.shape[0] == 1 else logits.softmax(dim=0)


def _scored_regions(classes, logits, label):
    """The regions of one label: (bool H x W, each run's region from 0, each run's length, float64 scores).

    Only the label's own pixels are turned into probabilities.
    """
    mask = classes == label
    regions, lengths, count = _regions_of_runs(mask)
    if not count:
        return mask, regions, lengths, np.zeros(0)
    pixels = torch.from_numpy(np.stack([one[mask] for one in logits.cpu().numpy()]))  # C x pixels
    of_label = probabilities(pixels)[0 if len(pixels) == 1 else label].numpy()
    sums = np.add.reduceat(of_label, np.cumsum(lengths) - lengths, dtype=np.float64)
    return mask, regions, lengths, np.bincount(regions, sums) / np.bincount(regions, lengths)


def _components_as_segments(mask, logits, threshold):
    segmentation = np.zeros(mask.shape, np.int32)
    classes = mask.cpu().numpy()
    segments = []
    for label in range(1, max(2, len(logits))):
        of_label, regions, lengths, scores = _scored_regions(classes, logits, label)
        kept = np.flatnonzero(scores >= threshold)
        ids = np.zeros(len(scores), np.int32)
        ids[kept] = np.arange(len(segments) + 1, len(segments) + len(kept) + 1)
        segmentation[of_label] = np.repeat(ids[regions], lengths)
        segments += [
            {"id": int(ids[region]), "label_id": label, "score": float(scores[region])} for region in kept.tolist()
        ]
    return {"segmentation": torch.from_numpy(segmentation), "segments_info": segments}


def connected_components(mask):
    """Number the connected regions (8 neighbours) of a boolean mask H x W: (int32 H x W from 1, count)."""
    regions, lengths, count = _regions_of_runs(mask)
    numbers = np.zeros(mask.shape, np.int32)
    numbers[mask] = np.repeat(regions + 1, lengths)
    return numbers, count


def _regions_of_runs(mask):
    """Each row's runs of a boolean mask H x W, row by row: (int64 region of each from 0, lengths, count of regions).

    Each run hangs below the first run that it touches in the row above; where it touches further ones, their trees are
    joined by union-find.
    """
    height, width = mask.shape
    padded = np.zeros((height, width + 2), bool)  # so that no run goes over a row's end
    padded[:, 1:-1] = mask
    padded = padded.ravel()
    changes = np.flatnonzero(padded[1:] != padded[:-1])
    starts, ends = changes[::2], changes[1::2]  # ends exclusive
    # the runs of the row above that touch run i are first[i] .. last[i] - 1, diagonals included
    first = np.searchsorted(ends, starts - (width + 2), side="left")
    last = np.searchsorted(starts, ends - (width + 2), side="right")
    parents = _roots(np.where(last > first, first, np.arange(len(starts))))
    joined = parents.tolist()

    def root(run):
        while joined[run] != run:
            joined[run] = joined[joined[run]]
            run = joined[run]
        return run

    for run in np.flatnonzero(last - first > 1).tolist():
        for above in range(first[run] + 1, last[run]):
            low, high = sorted((root(run), root(above)))
            joined[high] = low
    roots, regions = np.unique(_roots(np.array(joined, np.int64)), return_inverse=True)
    return regions, ends - starts, len(roots)


def _roots(parents):
    """The root of each node of a forest of parent indices, halving every path until none is left."""
    while True:
        above = parents[parents]
        if np.array_equal(above, parents):
            return parents
        parents = above


def _logits(outputs):
    return outputs if isinstance(outputs, torch.Tensor) else outputs["logits"]


def _as_list(images):
    if isinstance(images, (list, tuple)):
        return list(images)
    if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4:
        return list(images)
    return [images]


def _size_dict(size):
    if isinstance(size, int):
        return {"height": size, "width": size}
    if isinstance(size, (list, tuple)) and len(size) == 2:
        return {"height": int(size[0]), "width": int(size[1])}
    if {"height", "width"} <= dict(size).keys():
        return {"height": int(size["height"]), "width": int(size["width"])}
    raise ValueError(f'size must be {{"height", "width"}} in pixels, or one number for both; got {size!r}.')
