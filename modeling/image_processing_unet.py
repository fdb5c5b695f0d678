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
from transformers.image_utils import load_image

from hub_unets.modeling.image_files import MOST_VALUES, read_values
from hub_unets.modeling.images import channels_last, format_name, is_float, laid_out, opened, to_rgb, upright
from hub_unets.modeling.intensities import as_stored, to_unit
from hub_unets.modeling.label_maps import check_pair, flat_list, split_maps, to_labels
from hub_unets.modeling.processor_options import FIELDS, check_fields, refuse_unsupported
from hub_unets.modeling.segments import components_as_segments, scored_regions
from hub_unets.modeling.view import view_of, without_marks_outside

NO_EFFECT = ["do_convert_rgb", "do_center_crop", "do_pad", "default_to_square", "disable_grouping"]  # once checked
STOCK_THRESHOLD, STOCK_MASK_THRESHOLD = 0.9, 0.5  # what transformers' own pipeline passes if its user says nothing


class UNetImageProcessor(BaseImageProcessor):
    """Resizes, mirrors borders, rescales and normalises; turns logits into masks at the original size.

    Args:
        size: {"height", "width"} in pixels of the field that the logits cover.
        do_resize: False keeps each image's size.
        resample: a PIL filter for images (2 is bilinear, antialiased), or torchvision's; masks are always nearest.
        do_rescale: bring values to 0..1: of RGB, 0..255 is multiplied by `rescale_factor`; of other images `intensity`
            says how. False takes floats, or the values of other images, as they are, of any range.
        do_normalize: subtract `image_mean` and divide by `image_std`, a number for each channel, or one for all; None
            is ImageNet's, and of channels that are not RGB the mean of its three.
        mirror_margin: pixels mirrored at each border after resizing, for `valid` padding (92 at depth 4; figure 2 of
            the 2015 paper): `pixel_values` are `size` + 2 x `mirror_margin`.
        mask_threshold: a binary head's pixel is a polyp where its probability exceeds this, if no other is given.
        score_threshold: regions whose score, the mean probability over the region, is below this are background.
        do_reduce_labels: subtract 1 from the labels of segmentation maps; 0 becomes 255, which is ignored.
        drop_outside_view: regions that lie wholly outside the endoscope's view (`view.view_of`) are background;
            post-processing needs the images then.
        num_channels: of the network. 3 without `intensity` means that every image becomes RGB of 8 bits; otherwise
            images keep the values of their 8 or 16 bits or floats; see `image_files.read_values`.
        intensity: what becomes 0..1; see `intensities.to_unit`.

    Raises:
        ValueError: a value of another type or range, or an option of other processors that this one lacks.
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
        image_mean=None,
        image_std=None,
        mirror_margin=0,
        mask_threshold=0.5,
        score_threshold=0.0,
        do_reduce_labels=False,
        drop_outside_view=False,
        num_channels=3,
        intensity=None,
        **kwargs,
    ):
        refuse_unsupported(kwargs)
        super().__init__(**kwargs)
        fields = {
            "size": 256 if size is None else size,
            "do_resize": do_resize,
            "resample": resample,
            "do_rescale": do_rescale,
            "rescale_factor": rescale_factor,
            "do_normalize": do_normalize,
            "image_mean": image_mean,
            "image_std": image_std,
            "mirror_margin": mirror_margin,
            "mask_threshold": mask_threshold,
            "score_threshold": score_threshold,
            "do_reduce_labels": do_reduce_labels,
            "drop_outside_view": drop_outside_view,
            "num_channels": num_channels,
            "intensity": intensity,
        }
        vars(self).update(check_fields(fields))

    @classmethod
    def from_dict(cls, image_processor_dict, **kwargs):
        """Fields that the caller of `from_pretrained` changes are checked, whatever the version of transformers."""
        changed = {name: kwargs.pop(name) for name in list(kwargs) if name in FIELDS}
        refuse_unsupported(kwargs)
        return super().from_dict({**image_processor_dict, **changed}, **kwargs)

    def __call__(self, images, segmentation_maps=None, **kwargs):
        return self.preprocess(images, segmentation_maps, **kwargs)

    def preprocess(
        self,
        images,
        segmentation_maps=None,
        return_tensors="pt",
        input_data_format=None,
        data_format=None,
        device=None,
        **kwargs,
    ):
        """A batch for the model.

        Args:
            images: one image or a list, at any depth: path, PIL image, NumPy array or torch tensor (H x W, H x W x C
                or C x H x W; uint8, uint16, or floats in 0..1, 0..255 or 0..65535), or an array B x C x H x W. If
                images do not become RGB, also a file's bytes, and arrays of any numbers.
            segmentation_maps: optionally class indices for each image, as large as the image: see
                `label_maps.to_labels`; of several images also as one array B x H x W.
            return_tensors: `"pt"` or `"np"`.
            input_data_format: `"channels_first"` or `"channels_last"` of arrays whose shape does not tell.
            data_format: `"channels_last"` gives `pixel_values` as B x H x W x C.
            device: where the tensors go.
            kwargs: any field of this processor, for this call. `do_convert_rgb` (always) and `disable_grouping`
                (no effect) are taken for the sake of code for other processors.

        Returns:
            BatchFeature with `pixel_values` float32, B x num_channels x H x W, and `labels` int64, B x H x W, if masks
            are given.

        Raises:
            ValueError: an image that can't be read, a map that does not fit its image, an unknown option, or
                without resizing images of different sizes.
        """
        options = self._options(kwargs)
        listed = flat_list(images)
        if not listed:
            raise ValueError("images is empty: give at least one image.")
        maps = [None] * len(listed) if segmentation_maps is None else split_maps(segmentation_maps, len(listed))
        layout = format_name(input_data_format)
        prepared = [options._prepared(image, label_map, layout) for image, label_map in zip(listed, maps, strict=True)]
        pixels, labels = zip(*prepared, strict=True)
        if len({image.shape for image in pixels}) > 1:
            raise ValueError("do_resize=False needs images of one size in a batch; pass them one by one.")
        data = {"pixel_values": options.normalize(np.stack(pixels))}
        if format_name(data_format) == "channels_last":
            data["pixel_values"] = np.ascontiguousarray(np.moveaxis(data["pixel_values"], 1, -1))
        if segmentation_maps is not None:
            data["labels"] = np.stack(labels)
        batch = BatchFeature(data=data, tensor_type=return_tensors)
        return batch if device is None else batch.to(device)

    def _options(self, changes):
        """This processor with the fields that a call changes, all of them checked."""
        refuse_unsupported(changes)
        changes = {name: value for name, value in changes.items() if name not in NO_EFFECT}
        changes = {name: value for name, value in changes.items() if value is not None or name == "intensity"}
        fields = {name: getattr(self, name) for name in FIELDS}
        unknown = sorted(changes.keys() - fields.keys())
        if unknown:
            raise ValueError(f"Unknown option {unknown[0]!r}; this image processor has {', '.join(sorted(fields))}.")
        return type(self)(**{**fields, **changes})

    @property
    def takes_rgb(self):
        """Whether every image becomes RGB of 8 bits."""
        return self.num_channels == 3 and self.intensity is None

    @property
    def read_options(self):
        """What a call needs beside images that `read` gave: their values are in the network's range already."""
        return {} if self.takes_rgb else {"do_rescale": False}

    def read(self, image, most=MOST_VALUES):
        """An image as the network sees it before it is resized, upright.

        Args:
            image: as of `preprocess`.
            most: values that an image may have where images do not become RGB; see `image_files.read_values`.

        Returns:
            an RGB PIL image of 8 bits (see `images.to_rgb`); or where images do not become RGB, an array float32
            H x W x num_channels in 0..1, which takes its place in a call with `read_options`.
        """
        return to_rgb(image) if self.takes_rgb else self._measured(image, most=most)

    def _measured(self, image, layout=None, most=MOST_VALUES):
        values = read_values(image, self.num_channels, layout, most)
        return to_unit(values, self.intensity) if self.do_rescale else as_stored(values)

    def _prepared(self, image, label_map, layout):
        """One image as array H x W x C at `size`, uint8 or float32, and its labels for the network, int64 or None."""
        image, label_map = opened(image) if self.takes_rgb else image, opened(label_map)
        picture = self._picture(image, layout)
        labels = None if label_map is None else to_labels(label_map)
        if labels is not None:
            size = picture.size[::-1] if isinstance(picture, Image.Image) else picture.shape[:2]
            check_pair(image, size, label_map, labels)
            labels = self.mirror(self.resize_labels(self._reduced(labels)))
        return self.resized(picture), labels

    def _picture(self, image, layout):
        """An image as RGB PIL image, or where its floats or other values are kept, as array float32 H x W x C."""
        if not self.takes_rgb:
            return self._measured(image, layout)
        if isinstance(image, Image.Image):
            if image.mode != "F" or self.do_rescale:
                return to_rgb(image)
            image = np.asarray(upright(image))
        if layout is not None and getattr(image, "ndim", 2) == 3:
            image = laid_out(image, layout)
        return channels_last(image).astype(np.float32) if is_float(image) and not self.do_rescale else to_rgb(image)

    def _reduced(self, labels):
        if not self.do_reduce_labels:
            return labels
        ignored = (labels == 0) | (labels == 255)
        return np.where(ignored, 255, np.where(labels < 0, labels, labels - 1))

    def resize(self, image):
        """A PIL image at `size`."""
        if not self.do_resize:
            return image
        return image.resize((self.size["width"], self.size["height"]), Image.Resampling(self.resample))

    def resized(self, image):
        """An RGB PIL image or an array float32 H x W x C, at `size`, as array of the same type."""
        if isinstance(image, Image.Image):
            return np.asarray(self.resize(image))
        channels = [Image.fromarray(np.ascontiguousarray(channel)) for channel in np.moveaxis(image, -1, 0)]
        return np.stack([np.asarray(self.resize(channel)) for channel in channels], axis=-1)

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
        """uint8 or float32 B x H x W x C at `size` to float32 `pixel_values`, B x C x H x W, with mirrored borders."""
        values = self.mirror(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))).astype(np.float32)
        if self.do_rescale and self.takes_rgb:
            values *= np.float32(self.rescale_factor)
        if self.do_normalize:
            values -= np.array(self.image_mean, np.float32)[:, None, None]
            values /= np.array(self.image_std, np.float32)[:, None, None]
        return values

    def post_process_semantic_segmentation(
        self, outputs, target_sizes=None, threshold=None, return_segmentation_scores=False, images=None
    ):
        """Class indices at the original size: the one place where logits become a mask.

        Args:
            outputs: a model's output, or its `logits`, B x C x h x w (C = 1: a binary head).
            target_sizes: B pairs (height, width); None keeps the size of the logits.
            threshold: probability above which a binary head's pixel is a polyp; None takes `mask_threshold`.
            return_segmentation_scores: give the logits, too, those of a binary head as (0, z).
            images: the B images, as the processor takes them, for `drop_outside_view`; None takes `outputs["images"]`.

        Returns:
            list of B int64 tensors H x W; with scores, of B BatchFeatures of `segmentation`, that tensor, and
            `segmentation_scores`, float32 num_labels x H x W.
        """
        upsampled = upsample(_logits(outputs), target_sizes)
        views = self._views(outputs, images, upsampled)
        masks = [
            self._without_unlikely(logits, threshold, view) for logits, view in zip(upsampled, views, strict=True)
        ]
        if not return_segmentation_scores:
            return masks
        return [
            BatchFeature(data={"segmentation": mask, "segmentation_scores": _of_every_label(logits)})
            for mask, logits in zip(masks, upsampled, strict=True)
        ]

    def post_process_instance_segmentation(
        self,
        outputs,
        threshold=None,
        mask_threshold=None,
        overlap_mask_area_threshold=None,
        target_sizes=None,
        return_coco_annotation=False,
        images=None,
    ):
        """One scored entry for each polyp: the connected components (8 neighbours) of the semantic mask.

        Args:
            outputs: a model's output, or its `logits`, B x C x h x w.
            threshold: drop entries whose score is below this; None takes `score_threshold`, as the semantic mask does,
                so that their union is the mask.
            mask_threshold: as `threshold` of `post_process_semantic_segmentation`.
            overlap_mask_area_threshold: without effect, as components never overlap. Where it is given, as the stock
                pipeline class always does, that class's defaults, `threshold` .9 and `mask_threshold` .5, count as not
                given: `pipeline(model=OBJECT)` would drop true polyps by them.
            target_sizes: B pairs (height, width); None keeps the size of the logits.
            return_coco_annotation: only False; the pipeline never asks for it.
            images: as of `post_process_semantic_segmentation`.

        Returns:
            list of B dictionaries: `segmentation`, an int32 tensor H x W with 0 for background and the entry's id,
            and `segments_info`, dictionaries of `id`, `label_id`, `score`, the mean probability over the entry,
            `area` in pixels and `bbox`, x, y, width and height in pixels.
        """
        if return_coco_annotation:
            raise ValueError(
                "return_coco_annotation=True is not supported: take `segmentation`, an id for each pixel."
            )
        if overlap_mask_area_threshold is not None:
            threshold = None if threshold == STOCK_THRESHOLD else threshold
            mask_threshold = None if mask_threshold == STOCK_MASK_THRESHOLD else mask_threshold
        lowest_score = self.score_threshold if threshold is None else threshold
        upsampled = upsample(_logits(outputs), target_sizes)
        views = self._views(outputs, images, upsampled)
        return [
            components_as_segments(self._in_view(logits, mask_threshold, view), logits, lowest_score)
            for logits, view in zip(upsampled, views, strict=True)
        ]

    def _views(self, outputs, images, upsampled):
        """The endoscope's view in each image, bool H x W at its logits' size; None unless `drop_outside_view`."""
        if not self.drop_outside_view:
            return [None] * len(upsampled)
        if images is None and not isinstance(outputs, torch.Tensor):
            images = outputs.get("images")
        if images is None:
            raise ValueError("drop_outside_view=True needs the images: pass images=[...], or set it to False.")
        if len(images) != len(upsampled):
            raise ValueError(f"images needs one image for each of {len(upsampled)} outputs, got {len(images)}.")
        return [
            view_of(np.asarray(self.read(image)), logits.shape[-2:])
            for image, logits in zip(images, upsampled, strict=True)
        ]

    def _in_view(self, logits, threshold, view):
        mask = self._to_mask(logits, threshold)
        return mask if view is None else without_marks_outside(mask, view)

    def _without_unlikely(self, logits, threshold, view):
        """Logits C x H x W to class indices H x W, regions that score below `score_threshold` left out."""
        mask = self._in_view(logits, threshold, view)
        if not self.score_threshold:
            return mask.long()
        classes = mask.cpu().numpy()
        for label in range(1, max(2, len(logits))):
            label_mask, regions, scores = scored_regions(classes, logits, label)
            unlikely = scores < self.score_threshold
            if unlikely.any():
                label_mask[label_mask] = np.repeat(unlikely[regions.regions], regions.lengths)
                mask[torch.from_numpy(label_mask).to(mask.device)] = 0
        return mask.long()

    def _to_mask(self, logits, threshold):
        """Logits C x H x W at the original size to class indices H x W, bool of a binary head; every region kept."""
        if logits.shape[0] > 1:
            return logits.argmax(dim=0)
        threshold = self.mask_threshold if threshold is None else threshold
        if not 0 <= threshold <= 1:
            raise ValueError(f"mask_threshold must lie between 0 and 1, got {threshold}.")
        if threshold in (0, 1):  # every probability exceeds 0, and none 1
            return torch.full_like(logits[0], threshold == 0, dtype=torch.bool)
        return logits[0] > math.log(threshold / (1 - threshold))


class UNetImageSegmentationPipeline(ImageSegmentationPipeline):
    """As the stock pipeline, but the union of its entries is the semantic mask.

    The stock class drops entries that score below .9, and with them many true polyps.
    """

    def check_model_type(self, supported_models):
        """Accept any model: the stock list names the architectures inside transformers only."""

    def preprocess(self, image, subtask=None, timeout=None):
        processor = self.image_processor
        if not processor.takes_rgb:  # the stock class makes RGB of each image
            image = processor.read(image)
            inputs = processor(image, **processor.read_options).to(self.dtype)
            inputs["target_size"] = [image.shape[:2]]
            return inputs
        with contextlib.suppress(OSError):  # an address or base64 text: left to the stock class
            image = to_rgb(image)  # the stock class clips images of 16 bits to white
        if not self.image_processor.drop_outside_view:
            return super().preprocess(image, subtask, timeout)
        image = load_image(image, timeout=timeout)
        return {**super().preprocess(image, subtask, timeout), "images": image}

    def _forward(self, model_inputs):
        images = model_inputs.pop("images", None)
        outputs = super()._forward(model_inputs)
        if images is not None:
            outputs["images"] = images
        return outputs

    def postprocess(
        self, model_outputs, subtask=None, threshold=None, mask_threshold=None, overlap_mask_area_threshold=None
    ):
        if "images" in model_outputs:  # of one image, also where several were a batch
            model_outputs["images"] = [model_outputs["images"]]
        return super().postprocess(model_outputs, subtask, threshold, mask_threshold, None)  # entries never overlap


def upsample(logits, target_sizes=None):
    """float32 logits C x H x W of each image, interpolated (bilinear) to its (height, width)."""
    if target_sizes is None:
        return list(logits.float())
    if len(target_sizes) != len(logits):
        raise ValueError(f"target_sizes needs one (height, width) for each of {len(logits)} images.")
    return [
        F.interpolate(image_logits[None].float(), size=tuple(int(side) for side in size), mode="bilinear")[0]
        for image_logits, size in zip(logits, target_sizes, strict=True)
    ]


def _of_every_label(logits):
    """Logits C x H x W with a channel for each label: a binary head's background has the logit 0."""
    return torch.cat([torch.zeros_like(logits), logits]) if len(logits) == 1 else logits


def _logits(outputs):
    """Logits B x C x h x w; two channels as one, the log-odds of the second, which `mask_threshold` is for."""
    logits = (outputs if isinstance(outputs, torch.Tensor) else outputs["logits"]).detach()
    return logits[:, 1:] - logits[:, :1] if logits.shape[1] == 2 else logits
