"""Distillation: trained models' probabilities as a second target, on the pixels that the network sees.

Hinton et al. 2015, arXiv:1503.02531, pixel by pixel and at temperature 1.
"""

import torch
import torch.nn.functional as F

from hub_unets.training.errors import UserError
from hub_unets.training.fit.precision import depthwise_in_float32
from hub_unets.training.measure.flips import predict_with_flips
from hub_unets.training.measure.models import class_logits, load_model, pixel_values, polyp_labels_of


class Teacher:
    """The mean probability that several segmentation models give the pixels of a training batch.

    Args:
        names: of the models, each with its own image processor: folders or Hub ids, with or without @REVISION.
        processor: the UNetImageProcessor that made the batch.
        config: the learning network's.
        flips: of each model the mean over mirror images; see `training.measure.flips`.
        trust_remote_code: run the code that comes with a model.
        device: where the models compute.

    Raises:
        UserError: a model whose labels can't stand for the network's.
        OSError: nothing can be loaded.
    """

    def __init__(self, names, processor, config, flips=False, trust_remote_code=False, device="cpu"):
        self.processor, self.binary, self.flips, self.models = processor, config.binary_head, flips, []
        for name in names:
            source, _, revision = name.partition("@")
            model, its_processor = load_model(source, trust_remote_code, revision or None)
            if not self.binary and model.config.num_labels != config.num_labels:
                raise UserError(
                    f"teacher {name} has {model.config.num_labels} labels, the network {config.num_labels}: a network "
                    "of several classes learns from models of the same."
                )
            _require_alike(name, its_processor, processor)
            depthwise_in_float32(model)
            model.requires_grad_(False).to(device, memory_format=torch.channels_last)
            self.models.append((model, its_processor))

    def __call__(self, pixel_values, size):
        """Normalised pixels B x C x H x W to probabilities, float32 B x C x h x w.

        C is 1, the polyp's, for a binary head, else the number of labels. `size` is (h, w), of the field of view.
        """
        images = self._images(pixel_values)
        with torch.inference_mode():
            total = sum(self._probabilities(*teacher, images, size) for teacher in self.models)
        return (total / len(self.models)).clone()  # a tensor of inference mode can't be a target

    def _images(self, pixel_values):
        """The batch before its processor normalised and mirrored it: uint8 H x W x 3, or float32 H x W x C in 0..1."""
        processor = self.processor
        mean, std = (
            pixel_values.new_tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std)
        )
        margin = processor.mirror_margin
        height, width = pixel_values.shape[-2:]
        visible = pixel_values[..., margin : height - margin, margin : width - margin]
        values = (visible * std + mean).permute(0, 2, 3, 1)
        if not processor.takes_rgb:
            return list(values.cpu().numpy())
        return list((values / processor.rescale_factor).round().clamp(0, 255).to(torch.uint8).cpu().numpy())

    def _probabilities(self, model, processor, images, size):
        pixels = pixel_values(model, processor, images)
        logits = predict_with_flips(model, pixels).logits if self.flips else class_logits(model(pixel_values=pixels))
        logits = F.interpolate(logits.float(), size=tuple(size), mode="bilinear")
        if logits.shape[1] == 1:
            polyp = logits.sigmoid()
            return polyp if self.binary else torch.cat([1 - polyp, polyp], dim=1)
        softmax = logits.softmax(dim=1)
        return softmax[:, polyp_labels_of(model.config)].sum(dim=1, keepdim=True) if self.binary else softmax


def _require_alike(name, its_processor, processor):
    """Raise UserError unless a teacher sees the images as the learning network does."""
    theirs, ours = (
        (getattr(each, "num_channels", 3), getattr(each, "intensity", None)) for each in (its_processor, processor)
    )
    if theirs != ours:
        raise UserError(
            f"teacher {name} takes images of num_channels={theirs[0]} and intensity={theirs[1]}, the network of "
            f"{ours[0]} and {ours[1]}: they must be alike."
        )


def soft_cross_entropy(logits, probabilities):
    """Cross-entropy of logits B x C x H x W against probabilities of the same shape, mean over pixels; nats, B."""
    if logits.shape[1] == 1:
        losses = F.binary_cross_entropy_with_logits(logits.float(), probabilities, reduction="none")[:, 0]
    else:
        losses = -(probabilities * logits.float().log_softmax(dim=1)).sum(dim=1)
    return losses.flatten(1).mean(dim=1)
