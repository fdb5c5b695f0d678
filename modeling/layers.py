"""The blocks that several variants share."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


class ConvNormReLU(nn.Sequential):
    """3x3 convolution, optional batch norm, ReLU: B x in x H x W to B x out x H x W, or H-2 x W-2 unpadded."""

    def __init__(self, in_channels, out_channels, stride=1, padding="same", batch_norm=True):
        conv = nn.Conv2d(
            in_channels, out_channels, 3, stride, padding=1 if padding == "same" else 0, bias=not batch_norm
        )
        norm = [nn.BatchNorm2d(out_channels)] if batch_norm else []
        super().__init__(conv, *norm, nn.ReLU(inplace=True))


class DoubleConv(nn.Sequential):
    """Two 3x3 convolutions: the block of every level (Ronneberger et al. 2015, figure 1)."""

    def __init__(self, in_channels, out_channels, padding="same", batch_norm=True):
        super().__init__(
            ConvNormReLU(in_channels, out_channels, padding=padding, batch_norm=batch_norm),
            ConvNormReLU(out_channels, out_channels, padding=padding, batch_norm=batch_norm),
        )


class CheckpointedDoubleConv(GradientCheckpointingLayer, DoubleConv):
    """A DoubleConv by itself, as a stage of the plain path; checkpointed where gradient checkpointing is on."""


class Upsample(nn.Module):
    """Doubles height and width and brings the width to `out_channels`: B x in x H x W to B x out x 2H x 2W."""

    def __init__(self, in_channels, out_channels, mode="transpose"):
        super().__init__()
        self.bilinear = mode == "bilinear"
        if self.bilinear:
            # a 1x1 convolution and an interpolation commute: the convolution runs on a quarter of the pixels
            self.conv = nn.Conv2d(in_channels, out_channels, 1)
        else:
            self.conv = nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)

    def forward(self, features):
        features = self.conv(features)
        if self.bilinear:
            features = F.interpolate(features, scale_factor=2.0, mode="bilinear", align_corners=False)
        return features


def initialize(tensor, function, *arguments, **options):
    """Call a function of torch.nn.init on a tensor, unless there is none or a checkpoint gave its values."""
    if tensor is not None and not getattr(tensor, "_is_hf_initialized", False):
        function(tensor, *arguments, **options)


def center_crop(tensor, size):
    """The middle of a ... x H x W tensor: ... x size[0] x size[1]; the tensor itself where nothing is cut."""
    height, width = tensor.shape[-2:]
    if (height, width) == tuple(size):
        return tensor
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    return tensor[..., top : top + size[0], left : left + size[1]]


def concat_skip(skip, features):
    """Skip first, as in figure 1 of the 2015 paper, cropped to the features' size; no skip leaves the features."""
    if skip is None:
        return features
    return torch.cat([center_crop(skip, features.shape[-2:]), features], dim=1)
