"""Images to masks by the path that a user of the model takes: processor, model, processor."""

import itertools

import torch
from transformers.modeling_outputs import SemanticSegmenterOutput

from hub_unets.modeling.images import height_and_width
from hub_unets.training.errors import UserError
from hub_unets.training.measure.flips import predict_with_flips
from hub_unets.training.measure.models import MASK_CLASSIFIERS, class_logits, gives_one_size, pixel_values


class Segmenter:
    """A model with its processor and how they are used.

    Args:
        model: a semantic segmentation model, in eval mode.
        processor: its image processor, with `post_process_semantic_segmentation`.
        threshold: for our binary heads; None takes the processor's `mask_threshold`.
        flips: take the mean logits of each image and its mirror images; see `training.measure.flips`.

    Raises:
        UserError: a threshold, or flips, for a model that has none.
    """

    def __init__(self, model, processor, threshold=None, flips=False):
        if threshold is not None and not getattr(model.config, "binary_head", False):
            raise UserError("threshold is for a binary head; this model's most probable label is taken: leave it out.")
        if flips and model.config.model_type in MASK_CLASSIFIERS:
            raise UserError(f"flips takes the mean of pixels' logits, and {model.config.model_type} has none.")
        self.model, self.processor, self.flips = model, processor, flips
        self.options = {} if threshold is None else {"threshold": threshold}

    @torch.inference_mode()
    def __call__(self, images):
        """Images, as `read_image` gives them, to masks, integer H x W at their own sizes, and each one's logits."""
        batches = [images] if gives_one_size(self.processor) else [[image] for image in images]
        masks, logits = zip(*map(self._segment, batches), strict=True)
        return list(itertools.chain(*masks)), list(itertools.chain(*logits))

    def _segment(self, images):
        pixels = pixel_values(self.model, self.processor, images)
        if self.flips:
            outputs = SemanticSegmenterOutput(logits=predict_with_flips(self.model, pixels).logits)
        else:
            outputs = self.model(pixel_values=pixels)
        sizes = list(map(height_and_width, images))
        options = self.options | frames(self.processor, images)
        masks = self.processor.post_process_semantic_segmentation(outputs, target_sizes=sizes, **options)
        return [mask.cpu().numpy() for mask in masks], class_logits(outputs)


def frames(processor, images):
    """What post-processing needs beside the logits: the images, where the processor drops marks outside the view."""
    return {"images": images} if getattr(processor, "drop_outside_view", False) else {}
