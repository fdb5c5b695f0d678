"""Pixels to a pyramid of features: the contracting path of 2015, or any timm backbone that takes any size."""

import difflib
import functools
import itertools
from typing import NamedTuple

import timm
import torch
from torch import nn

from hub_unets.modeling.feature_pyramid import STRIDES, SimpleFeaturePyramid
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

    A plain vision transformer, whose maps are all of one stride, has a `SimpleFeaturePyramid` behind it.
    `channels[i]` is the width of the map of stride 2**i; 0, and None in the list returned, where there is none.
    """

    def __init__(self, config):
        super().__init__()
        layout = probe_backbone(config.backbone, config.num_channels)
        self.config = config
        self.channels_last = layout.channels_last
        self.backbone = create_backbone(config.backbone, config.num_channels)
        self.lacks_values = any(parameter.is_meta for parameter in self.backbone.parameters())
        for module in self.backbone.modules():
            module.keeps_own_init = True  # read by _init_weights
        isotropic = len(set(layout.strides)) == 1
        self.pyramid = SimpleFeaturePyramid(layout.widths[0], layout.strides[0]) if isotropic else None
        widths, strides = (self.pyramid.channels, STRIDES) if isotropic else (layout.widths, layout.strides)
        levels = strides[0].bit_length() - 1  # levels above the backbone's first map: 1 (stride 2) or 2 (stride 4)
        self.detail = DetailBranch(config, half=levels > 1) if config.detail_channels else None
        detail_channels = [config.detail_channels * 2**level for level in range(levels)]
        self.channels = [*detail_channels, *widths]

    def forward(self, pixel_values):
        levels = len(self.channels) - len(self.backbone.feature_info.channels())
        detail_maps = [None] * levels if self.detail is None else self.detail(pixel_values)
        return [*detail_maps, *self.backbone_maps(pixel_values)]

    def backbone_maps(self, pixel_values):
        """The backbone's maps, B x C x H x W, those of a plain transformer as a pyramid."""
        if self.pyramid is not None:
            return self.pyramid(self.backbone(self.pyramid.pad(pixel_values)), pixel_values.shape[-2:])
        features = self.backbone(pixel_values)
        if self.channels_last:
            features = [level.permute(0, 3, 1, 2).contiguous() for level in features]
        return features

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
        # timm wraps a plain transformer in a module that has not this method
        getattr(self.backbone, "model", self.backbone).set_grad_checkpointing(enable)

    _gradient_checkpointing = False


def create_encoder(config, plain_class=PlainEncoder):
    """The encoder that the config names: its backbone, or the variant's own plain path."""
    return plain_class(config) if config.backbone is None else BackboneEncoder(config)


def create_backbone(name, num_channels, **options):
    """The timm pyramid of `name`, with random weights: a checkpoint's are loaded later, ImageNet's in training."""
    return _create(name, num_channels, **probe_backbone(name, num_channels).options, **options)


class BackboneLayout(NamedTuple):
    """The maps of a backbone, shallow to deep: `channels_last` are B x H x W x C. `options` are timm's to build it."""

    widths: tuple
    strides: tuple
    channels_last: bool
    options: dict


@functools.cache
def probe_backbone(name, num_channels):
    """Run a backbone on the meta device; a BackboneLayout.

    Raises:
        ValueError: timm has no such model, or its maps are no pyramid of strides 2 or 4, 8, ... at any size, nor all
            of one stride.
    """
    if not timm.is_model(name):
        similar = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
        raise ValueError(f"backbone={name!r} is not a timm model; near it are: {', '.join(similar) or 'none'}.")
    try:
        with torch.device("meta"):
            return _layout(name, num_channels)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"backbone={name!r} can't be a U-Net encoder: {reason.rstrip('.')}. It needs maps of strides 2 or 4, 8, "
            "16, ... at any input size, as resnet50, efficientnet_b0, convnext_tiny, mobilenetv2_100, pvt_v2_b0 and "
            "Swin have, or of one stride, as plain vision transformers have."
        ) from error


# the first lets Swin take any size, the second plain transformers (timm 1.0.24's Swin takes it too, to no effect)
SIZE_OPTIONS = ({"strict_img_size": False}, {"dynamic_img_size": True})


def _create(name, num_channels, **options):
    return timm.create_model(name, **{"features_only": True, "pretrained": False, "in_chans": num_channels, **options})


def _layout(name, num_channels):
    backbone, options = _create_for_any_size(name, num_channels)
    strides, depth = backbone.feature_info.reduction(), len(backbone.feature_info.info)
    if len(set(strides)) == 1 and depth >= len(STRIDES):
        # the last block of each quarter
        options["out_indices"] = tuple(depth * quarter // len(STRIDES) - 1 for quarter in range(1, len(STRIDES) + 1))
        return _isotropic_layout(_create(name, num_channels, **options).eval(), num_channels, options)
    return _pyramid_layout(backbone.eval(), num_channels, options)


def _create_for_any_size(name, num_channels):
    """(backbone, the options it was built with)."""
    for options in SIZE_OPTIONS:
        try:
            return _create(name, num_channels, **options), dict(options)
        except TypeError:  # it does not have the option
            continue
    return _create(name, num_channels), {}


def _pyramid_layout(backbone, num_channels, options):
    maps = {size: backbone(torch.zeros(1, num_channels, size, size)) for size in (96, 256)}
    widths = backbone.feature_info.channels()
    channels_last = maps[256][0].shape[1] != widths[0]
    sides = {size: [level.shape[1 if channels_last else 2] for level in maps[size]] for size in maps}
    strides = [256 // side for side in sides[256]]
    pyramid = [strides[0] * 2**level for level in range(len(strides))]
    if strides[0] not in (2, 4) or strides != pyramid or sides[96] != [96 // stride for stride in strides]:
        raise ValueError(f"its maps have sides {sides[96]} at 96 px and {sides[256]} at 256 px")
    return BackboneLayout(tuple(widths), tuple(strides), channels_last, options)


def _isotropic_layout(backbone, num_channels, options):
    widths, strides = backbone.feature_info.channels(), backbone.feature_info.reduction()
    height, width = 6 * strides[0], 16 * strides[0]
    shapes = [tuple(level.shape[1:]) for level in backbone(torch.zeros(1, num_channels, height, width))]
    if shapes != [(channels, 6, 16) for channels in widths]:
        raise ValueError(f"its maps at {height} x {width} px are {shapes}, and not a grid of {strides[0]} px")
    return BackboneLayout(tuple(widths), tuple(strides), False, options)
