"""Pixels to a pyramid of features: the contracting path of 2015, or any timm backbone that takes any size."""

import difflib
import functools
import itertools

import timm
import torch
from torch import nn

from hub_unets.modeling.layers import CheckpointedDoubleConv, ConvNormReLU


class PlainEncoder(nn.Module):
    """The contracting path (Ronneberger et al. 2015, figure 1): B x C x H x W to maps of stride 1, 2, 4, ...

    `channels[i]` is the width of the map of stride 2**i.
    """

    def __init__(self, config):
        super().__init__()
        self.channels = [config.base_channels * 2**level for level in range(config.depth + 1)]
        widths = [config.num_channels, *self.channels]
        self.stages = nn.ModuleList(
            self.create_stage(config, level, in_channels, out_channels)
            for level, (in_channels, out_channels) in enumerate(itertools.pairwise(widths))
        )
        self.pool = nn.MaxPool2d(2)

    def create_stage(self, config, level, in_channels, out_channels):
        """The module that maps a level's input (pooled, except at level 0) to its features."""
        return CheckpointedDoubleConv(in_channels, out_channels, config.padding, config.batch_norm)

    def forward(self, pixel_values):
        features = []
        for stage in self.stages:
            features.append(stage(self.pool(features[-1]) if features else pixel_values))
        return features


class DetailBranch(nn.Module):
    """Small convolutions at full and half resolution: the skips that a backbone of stride 4 has no map for."""

    def __init__(self, config, half):
        super().__init__()
        width = config.detail_channels
        self.full_resolution = ConvNormReLU(config.num_channels, width, batch_norm=config.batch_norm)
        self.half_resolution = ConvNormReLU(width, 2 * width, stride=2, batch_norm=config.batch_norm) if half else None

    def forward(self, pixel_values):
        full = self.full_resolution(pixel_values)
        return [full] if self.half_resolution is None else [full, self.half_resolution(full)]


class BackboneEncoder(nn.Module):
    """A timm backbone, and in front of it the optional detail branch: maps of stride 1, 2, 4, ..., 32.

    `channels[i]` is the width of the map of stride 2**i; 0, and None in the list returned, where there is none.
    """

    def __init__(self, config):
        super().__init__()
        widths, strides, self.channels_last = probe_backbone(config.backbone, config.num_channels)
        self.config = config
        self.backbone = create_backbone(config.backbone, config.num_channels)
        self.lacks_values = any(parameter.is_meta for parameter in self.backbone.parameters())
        for module in self.backbone.modules():
            module.keeps_own_init = True  # read by _init_weights
        levels = strides[0].bit_length() - 1  # levels above the backbone's first map: 1 (stride 2) or 2 (stride 4)
        self.detail = DetailBranch(config, half=levels > 1) if config.detail_channels else None
        detail_channels = [config.detail_channels * 2**level for level in range(levels)]
        self.channels = [*detail_channels, *widths]

    def forward(self, pixel_values):
        levels = len(self.channels) - len(self.backbone.feature_info.channels())
        detail_maps = [None] * levels if self.detail is None else self.detail(pixel_values)
        features = self.backbone(pixel_values)
        if self.channels_last:
            features = [level.permute(0, 3, 1, 2).contiguous() for level in features]
        return [*detail_maps, *features]

    @torch.no_grad()
    def initialize_backbone(self):
        """Give a backbone built on the meta device timm's initial values, where no checkpoint gave any."""
        missing = {
            name: tensor
            for name, tensor in self.backbone.state_dict(keep_vars=True).items()
            if self.lacks_values and not getattr(tensor, "_is_hf_initialized", False)
        }
        if not missing or any(tensor.is_meta for tensor in missing.values()):
            return
        with torch.device("cpu"):
            initial_values = create_backbone(self.config.backbone, self.config.num_channels).state_dict()
        for name, tensor in missing.items():
            tensor.copy_(initial_values[name])
        self.lacks_values = False

    @property
    def gradient_checkpointing(self):
        return self._gradient_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, enable):
        self._gradient_checkpointing = enable
        self.backbone.set_grad_checkpointing(enable)

    _gradient_checkpointing = False


def create_encoder(config, plain_class=PlainEncoder):
    """The encoder that the config names: its backbone, or the variant's own plain path."""
    return plain_class(config) if config.backbone is None else BackboneEncoder(config)


def create_backbone(name, num_channels, **options):
    """The timm pyramid of `name`, with random weights: a checkpoint's are loaded later, ImageNet's in training."""
    options = {"features_only": True, "pretrained": False, "in_chans": num_channels, **options}
    try:
        # Swin takes one input size only without this option; other families do not have it
        return timm.create_model(name, strict_img_size=False, **options)
    except TypeError:
        return timm.create_model(name, **options)


@functools.cache
def probe_backbone(name, num_channels):
    """Run a backbone on the meta device: (widths, strides, whether its maps are B x H x W x C).

    Raises:
        ValueError: timm has no such model, or its maps are no pyramid of strides 2 or 4, 8, ... at any size.
    """
    if not timm.is_model(name):
        similar = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
        raise ValueError(f"backbone={name!r} is not a timm model; near it are: {', '.join(similar) or 'none'}.")
    try:
        with torch.device("meta"):
            backbone = create_backbone(name, num_channels).eval()
            maps = {size: backbone(torch.zeros(1, num_channels, size, size)) for size in (96, 256)}
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(_refusal(name, reason.rstrip("."))) from error
    widths = backbone.feature_info.channels()
    channels_last = maps[256][0].shape[1] != widths[0]
    sides = {size: [level.shape[1 if channels_last else 2] for level in maps[size]] for size in maps}
    strides = [256 // side for side in sides[256]]
    pyramid = [strides[0] * 2**level for level in range(len(strides))]
    if strides[0] not in (2, 4) or strides != pyramid or sides[96] != [96 // stride for stride in strides]:
        raise ValueError(_refusal(name, f"its maps have sides {sides[96]} at 96 px and {sides[256]} at 256 px"))
    return tuple(widths), tuple(strides), channels_last


def _refusal(name, reason):
    return (
        f"backbone={name!r} can't be a U-Net encoder: {reason}. It needs maps of strides 2 or 4, 8, 16, ... at any "
        "input size, as resnet50, efficientnet_b0, convnext_tiny, mobilenetv2_100, pvt_v2_b0 and Swin have."
    )
