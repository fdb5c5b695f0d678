"""Deep residual U-Net (Zhang, Liu, Wang 2018): residual units in the plain path and in the decoder."""

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from hub_unets.configuration.configuration_resunet import ResUNetConfig
from hub_unets.modeling.encoder import PlainEncoder
from hub_unets.modeling.modeling_unet import UNetDecoder, UNetDecoderBlock, UNetForSemanticSegmentation


class ResidualUnit(nn.Module):
    """Full pre-activation unit (figure 1): two times batch norm, ReLU and 3x3 convolution, plus a shortcut.

    B x in x H x W to B x out x H/stride x W/stride. `first` drops the batch norm and ReLU that would
    act on the image. The shortcut is the paper's identity where size and width stay, else a 1x1 convolution and batch
    norm, as in most implementations.
    """

    def __init__(self, in_channels, out_channels, stride=1, batch_norm=True, first=False):
        super().__init__()
        self.residual = nn.Sequential(
            *([] if first else _activation(in_channels, batch_norm)),
            nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=not batch_norm),
            *_activation(out_channels, batch_norm),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
        )
        self.shortcut = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            convolution = nn.Conv2d(in_channels, out_channels, 1, stride, bias=not batch_norm)
            norm = [nn.BatchNorm2d(out_channels)] if batch_norm else []
            self.shortcut = nn.Sequential(convolution, *norm)

    def forward(self, features):
        return self.residual(features) + self.shortcut(features)


class CheckpointedResidualUnit(GradientCheckpointingLayer, ResidualUnit):
    """A residual unit by itself, as a stage of the plain path."""


class ResUNetEncoder(PlainEncoder):
    """The plain path of residual units; a stride of 2 in the first convolution takes the place of pooling."""

    def __init__(self, config):
        super().__init__(config)
        self.pool = nn.Identity()

    def create_stage(self, config, level, in_channels, out_channels):
        stride = 1 if level == 0 else 2
        return CheckpointedResidualUnit(in_channels, out_channels, stride, config.batch_norm, first=level == 0)


class ResUNetDecoderBlock(UNetDecoderBlock):
    """Upsample, concatenate the skip, one residual unit."""

    def __init__(self, config, in_channels, skip_channels, out_channels):
        super().__init__(config, in_channels, skip_channels, out_channels)
        in_channels = skip_channels + self.upsample.out_channels
        self.conv = ResidualUnit(in_channels, out_channels, batch_norm=config.batch_norm)


class ResUNetDecoder(UNetDecoder):
    """The expanding path of residual units."""

    block_class = ResUNetDecoderBlock


class ResUNetForSemanticSegmentation(UNetForSemanticSegmentation):
    """A U-Net of residual units; most implementations upsample without weights, this one as `upsample` says."""

    config_class = ResUNetConfig
    plain_encoder_class = ResUNetEncoder
    decoder_class = ResUNetDecoder
    _no_split_modules = ["BackboneEncoder", "CheckpointedResidualUnit", "ResUNetDecoderBlock"]
    paper = "Zhang, Liu, Wang: Road Extraction by Deep Residual U-Net, IEEE GRSL 2018, arXiv:1711.10684"


def _activation(channels, batch_norm):
    """Batch norm and ReLU; not in place, as the shortcut reads the same map."""
    return [*([nn.BatchNorm2d(channels)] if batch_norm else []), nn.ReLU()]
