"""UNet 3+ (Huang et al. 2020): full-scale skips."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from hub_unets.configuration.configuration_unet3plus import UNet3PlusConfig
from hub_unets.modeling.layers import ConvNormReLU
from hub_unets.modeling.modeling_unet import DecoderOutput, UNetDecoderBlock, UNetForSemanticSegmentation


class UNet3PlusNode(GradientCheckpointingLayer):
    """One level: every map brought to its resolution, convolved to one width, concatenated, convolved (section 2.1).

    Maps above are max-pooled, maps below upsampled bilinearly; `sources` maps their level to their width.
    """

    def __init__(self, config, level, sources, width):
        super().__init__()
        self.level, self.levels = level, list(sources)
        self.connections = nn.ModuleList(
            ConvNormReLU(channels, width, batch_norm=config.batch_norm) for channels in sources.values()
        )
        self.out_channels = width * len(sources)
        self.fusion = ConvNormReLU(self.out_channels, self.out_channels, batch_norm=config.batch_norm)

    def forward(self, *maps):
        connected = [
            connection(_to_level(features, source, self.level))
            for connection, source, features in zip(self.connections, self.levels, maps, strict=True)
        ]
        return self.fusion(torch.cat(connected, dim=1))


class UNet3PlusDecoder(nn.Module):
    """A node for each level with a skip, deepest first; it reads the encoder above and beside it, the decoder below.

    A level without a skip is a plain decoder block. The paper's classification-guided module, which switches whole
    images off, is not a part of it.
    """

    def __init__(self, config, encoder_channels):
        super().__init__()
        self.depth = len(encoder_channels) - 1
        widths = _connection_widths(config, self.depth)
        channels = dict(enumerate(encoder_channels))
        self.nodes = nn.ModuleList()
        for level in reversed(range(self.depth)):
            if encoder_channels[level]:
                encoder_widths = {source: width for source, width in enumerate(encoder_channels[: level + 1]) if width}
                decoder_widths = {source: channels[source] for source in range(level + 1, self.depth + 1)}
                node = UNet3PlusNode(config, level, encoder_widths | decoder_widths, widths[level])
                channels[level] = node.out_channels
            else:
                node = UNetDecoderBlock(config, channels[level + 1], 0, widths[level])
                channels[level] = widths[level]
            self.nodes.append(node)
        self.out_channels = channels[0]
        supervised = range(1, self.depth + 1) if config.deep_supervision else ()
        self.auxiliary_heads = nn.ModuleList(
            nn.Conv2d(channels[level], config.head_channels, 3, padding=1) for level in supervised
        )

    def forward(self, features):
        decoded = {self.depth: features[-1]}
        for level, node in zip(reversed(range(self.depth)), self.nodes, strict=True):
            if isinstance(node, UNet3PlusNode):
                maps = [features[source] if source <= level else decoded[source] for source in node.levels]
                decoded[level] = node(*maps)
            else:
                decoded[level], _ = node(decoded[level + 1], None)
        auxiliary = None
        if self.training and len(self.auxiliary_heads):
            auxiliary = tuple(head(decoded[level]) for level, head in enumerate(self.auxiliary_heads, start=1))
        return DecoderOutput(decoded[0], auxiliary_logits=auxiliary)


class UNet3PlusForSemanticSegmentation(UNetForSemanticSegmentation):
    """A U-Net whose decoder levels each read maps of all scales; its head is 1x1 where the paper's is 3x3."""

    config_class = UNet3PlusConfig
    decoder_class = UNet3PlusDecoder
    _no_split_modules = [*UNetForSemanticSegmentation._no_split_modules, "UNet3PlusNode"]
    paper = (
        "Huang et al.: UNet 3+: A Full-Scale Connected UNet for Medical Image Segmentation, ICASSP 2020, "
        "arXiv:2004.08790"
    )


def _to_level(features, source, level):
    """A map of stride 2**source at stride 2**level."""
    if source < level:
        return F.max_pool2d(features, 2 ** (level - source))
    if source > level:
        return F.interpolate(features, scale_factor=2.0 ** (source - level), mode="bilinear", align_corners=False)
    return features


def _connection_widths(config, depth):
    """The connections' width of each level, shallowest first."""
    widths = [64] * depth if config.decoder_channels is None else config.decoder_channels[::-1]
    if len(widths) != depth:
        raise ValueError(
            f"decoder_channels needs {depth} widths for backbone={config.backbone!r}, got {widths[::-1]}."
        )
    return widths
