"""U-Net++ (Zhou et al. 2018): nested, dense skips."""

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from hub_unets.configuration.configuration_unetplusplus import UNetPlusPlusConfig
from hub_unets.modeling.layers import DoubleConv, Upsample
from hub_unets.modeling.modeling_unet import DecoderOutput, UNetForSemanticSegmentation, decoder_widths


class UNetPlusPlusNode(GradientCheckpointingLayer):
    """One node X(i,j): the level's earlier maps and the map below, upsampled, convolved twice (equation 1)."""

    def __init__(self, config, below_channels, earlier_channels, out_channels):
        super().__init__()
        self.upsample = Upsample(below_channels, out_channels, config.upsample)
        self.conv = DoubleConv(earlier_channels + out_channels, out_channels, batch_norm=config.batch_norm)

    def forward(self, below, *earlier):
        return self.conv(torch.cat([*earlier, self.upsample(below)], dim=1))


class UNetPlusPlusDecoder(nn.Module):
    """Nodes X(i,j) of level i, 0 the shallowest, and column j (figure 1a); X(i,0) are the encoder's maps.

    A level without a skip has nothing to nest: it holds its last node alone.
    """

    def __init__(self, config, encoder_channels):
        super().__init__()
        *skips, _ = encoder_channels
        self.depth = len(skips)
        widths = decoder_widths(config, skips)[::-1]
        self.first_skip = next(level for level, channels in enumerate(encoder_channels) if channels)
        self.nodes = nn.ModuleDict()
        for level, column in self._order():
            below_channels = encoder_channels[level + 1] if column == 1 else widths[level + 1]
            earlier_channels = skips[level] + (column - 1) * widths[level] if level >= self.first_skip else 0
            self.nodes[f"{level}_{column}"] = UNetPlusPlusNode(config, below_channels, earlier_channels, widths[level])
        self.out_channels = widths[0]
        columns = self.depth - self.first_skip - 1 if config.deep_supervision else 0
        self.auxiliary_heads = nn.ModuleList(
            nn.Conv2d(widths[self.first_skip], config.head_channels, 1) for _ in range(columns)
        )

    def _order(self):
        """(level, column) of every node, each after those that it reads."""
        for column in range(1, self.depth + 1):
            for level in range(self.depth - column, -1, -1):
                if level >= self.first_skip or column == self.depth - level:
                    yield level, column

    def forward(self, features):
        maps = {(level, 0): level_map for level, level_map in enumerate(features) if level_map is not None}
        for level, column in self._order():
            node, below = self.nodes[f"{level}_{column}"], maps[level + 1, column - 1]
            earlier = [maps[level, index] for index in range(column) if (level, index) in maps]
            maps[level, column] = node(below, *earlier)
        auxiliary = None
        if self.training and len(self.auxiliary_heads):
            auxiliary = tuple(
                head(maps[self.first_skip, column]) for column, head in enumerate(self.auxiliary_heads, start=1)
            )
        return DecoderOutput(maps[0, self.depth], auxiliary_logits=auxiliary)


class UNetPlusPlusForSemanticSegmentation(UNetForSemanticSegmentation):
    """A U-Net with nested skips; the last node alone gives the logits, the paper can average the supervised nodes'."""

    config_class = UNetPlusPlusConfig
    decoder_class = UNetPlusPlusDecoder
    _no_split_modules = [*UNetForSemanticSegmentation._no_split_modules, "UNetPlusPlusNode"]
    paper = (
        "Zhou et al.: UNet++: A Nested U-Net Architecture for Medical Image Segmentation, DLMIA 2018, arXiv:1807.10165"
    )
