"""Attention U-Net (Oktay et al. 2018): an additive gate on every skip."""

import torch.nn.functional as F
from torch import nn

from hub_unets.configuration.configuration_attention_unet import AttentionUNetConfig
from hub_unets.modeling.layers import center_crop, concat_skip
from hub_unets.modeling.modeling_unet import UNetDecoder, UNetDecoderBlock, UNetForSemanticSegmentation


class AttentionGate(nn.Module):
    """Weighs each pixel of a skip by a map in 0..1 (equations 1 and 2).

    The gating signal is the decoder's map after upsampling, at the skip's own resolution, so nothing is resampled
    inside; the paper takes it before, brings the skip down to it and the map up again. Half the skip's width inside.
    """

    def __init__(self, gating_channels, skip_channels, batch_norm=True):
        super().__init__()
        inner = max(1, skip_channels // 2)
        self.gating = _convolution(gating_channels, inner, batch_norm)
        self.skip = _convolution(skip_channels, inner, batch_norm)
        self.map = _convolution(inner, 1, batch_norm)

    def forward(self, skip, gating):
        """Skip B x s x H x W and gating signal B x g x H x W to the gated skip and the map B x 1 x H x W."""
        attention = self.map(F.relu(self.gating(gating) + self.skip(skip))).sigmoid()
        return skip * attention, attention


class AttentionUNetDecoderBlock(UNetDecoderBlock):
    """Upsample, gate the skip by the result, concatenate, convolve twice."""

    def __init__(self, config, in_channels, skip_channels, out_channels):
        super().__init__(config, in_channels, skip_channels, out_channels)
        self.gate = None
        if skip_channels:
            self.gate = AttentionGate(self.upsample.out_channels, skip_channels, config.batch_norm)

    def forward(self, features, skip):
        features = self.upsample(features)
        attention = None
        if self.gate is not None:
            skip, attention = self.gate(center_crop(skip, features.shape[-2:]), features)
        return self.conv(concat_skip(skip, features)), attention


class AttentionUNetDecoder(UNetDecoder):
    """The expanding path with a gate on every skip."""

    block_class = AttentionUNetDecoderBlock


class AttentionUNetForSemanticSegmentation(UNetForSemanticSegmentation):
    """A U-Net whose skips are gated; `output_attentions=True` returns the gates' maps, deepest first.

    Unlike in the paper, the skip of full resolution has a gate too, and there is no deep supervision.
    """

    config_class = AttentionUNetConfig
    decoder_class = AttentionUNetDecoder
    _no_split_modules = [*UNetForSemanticSegmentation._no_split_modules, "AttentionUNetDecoderBlock"]
    paper = "Oktay et al.: Attention U-Net: Learning Where to Look for the Pancreas, MIDL 2018, arXiv:1804.03999"


def _convolution(in_channels, out_channels, batch_norm):
    norm = [nn.BatchNorm2d(out_channels)] if batch_norm else []
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, bias=not batch_norm), *norm)
