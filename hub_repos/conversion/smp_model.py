"""smp's checkpoint to one of ours: config.json, model.safetensors and preprocessor_config.json."""

import timm
import transformers

from hub_unets.hub_repos.conversion.smp_checkpoint import HEAD
from hub_unets.hub_repos.conversion.smp_weights import BLOCKS, converted_state
from hub_unets.modeling.encoder import probe_backbone
from hub_unets.modeling.image_processing_unet import UNetImageProcessor
from hub_unets.modeling.variants import find_variant
from hub_unets.training.errors import UserError, about_input

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def converted_model(checkpoint, labels=None):
    """Our network with equal logits, in evaluation mode.

    Args:
        checkpoint: SmpCheckpoint.
        labels: names of the labels, the background's first; None takes the config's defaults.

    Raises:
        UserError: the backbone is none of timm's, or tensors do not fit it; another number of labels.
    """
    with about_input():
        layout = probe_backbone(checkpoint.backbone, 3)
    encoder_channels = [0] * (layout.strides[0].bit_length() - 1) + list(layout.widths)
    tensors = checkpoint.tensors
    blocks, decoder_channels = BLOCKS[checkpoint.variant](tensors, encoder_channels)
    config_class, model_class = find_variant(checkpoint.variant)
    config = config_class(
        backbone=checkpoint.backbone,
        decoder_channels=decoder_channels,
        batch_norm=f"{blocks[0].smp_name}.conv1.1.running_mean" in tensors,
        upsample="nearest",
        head_kernel_size=3,
        **_label_fields(len(tensors[HEAD]), labels),
    )
    transformers.set_seed(0)  # of the channels that smp does not have
    model = model_class(config).eval()
    model.load_state_dict(converted_state(tensors, model.state_dict(), blocks))
    return model


def converted_processor(checkpoint, size, image_mean=None, image_std=None):
    """The image processor that shows the network what the encoder's ImageNet weights expect.

    Args:
        checkpoint: SmpCheckpoint.
        size: pixels of a side, a multiple of 32.
        image_mean, image_std: of each channel; None takes timm's of a tu- encoder, else ImageNet's, as smp does.

    Raises:
        UserError: the size does not fit.
    """
    if size < 32 or size % 32:
        raise UserError(f"--size must be a multiple of 32, as smp's networks take it, got {size}.")
    pretrained = timm.get_pretrained_cfg(checkpoint.backbone) if checkpoint.encoder.startswith("tu-") else None
    mean, std = (pretrained.mean, pretrained.std) if pretrained else (IMAGENET_MEAN, IMAGENET_STD)
    with about_input():
        return UNetImageProcessor(size=size, image_mean=image_mean or mean, image_std=image_std or std)


def _label_fields(classes, labels):
    count = max(2, classes)
    if labels is not None and len(labels) != count:
        raise UserError(f"--labels must be {count} names, the background's first, got {', '.join(labels)}.")
    names = {} if labels is None else {"id2label": dict(enumerate(labels))}
    return {"num_labels": count, "binary_head": classes == 1, **names}
