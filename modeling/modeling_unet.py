"""U-Net (Ronneberger et al. 2015), and what every variant inherits: padding, head, loss, initialisation."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import SemanticSegmenterOutput

from hub_unets.configuration.configuration_unet import UNetConfig
from hub_unets.modeling.encoder import BackboneEncoder, PlainEncoder, create_encoder
from hub_unets.modeling.layers import ConvNormReLU, DoubleConv, Upsample, center_crop, concat_skip, initialize

IGNORED_LABELS = (255, -100)


class DecoderOutput(NamedTuple):
    """What a decoder returns.

    `features` is B x width x H x W; `attentions` the maps of its gates, deepest first; `auxiliary_logits`, in training
    with deep supervision, further B x num_logits x h x w.
    """

    features: torch.Tensor
    attentions: tuple | None = None
    auxiliary_logits: tuple | None = None


@dataclass
class UNetOutput(SemanticSegmenterOutput):
    """A SemanticSegmenterOutput with the logits of deep supervision, in training mode only, each of `logits`' size."""

    auxiliary_logits: tuple[torch.FloatTensor, ...] | None = None


class UNetDecoderBlock(GradientCheckpointingLayer):
    """Upsample, concatenate the skip, convolve twice; returns the features and, where there is a gate, its map."""

    def __init__(self, config, in_channels, skip_channels, out_channels):
        super().__init__()
        self.upsample = Upsample(in_channels, out_channels, config.upsample)
        self.conv = DoubleConv(
            skip_channels + self.upsample.out_channels, out_channels, config.padding, config.batch_norm
        )

    def forward(self, features, skip):
        return self.conv(concat_skip(skip, self.upsample(features))), None


class UNetDecoder(nn.Module):
    """The expanding path: maps of stride 1, 2, 4, ... (None where there is no skip) to a DecoderOutput."""

    block_class = UNetDecoderBlock

    def __init__(self, config, encoder_channels):
        super().__init__()
        *skips, bottom = encoder_channels
        widths = [bottom, *decoder_widths(config, skips)]
        self.blocks = nn.ModuleList(
            self.block_class(config, in_channels, skip_channels, out_channels)
            for in_channels, skip_channels, out_channels in zip(widths[:-1], reversed(skips), widths[1:], strict=True)
        )
        self.out_channels = widths[-1]

    def forward(self, features):
        *skips, decoded = features
        attentions = []
        for block, skip in zip(self.blocks, reversed(skips), strict=True):
            decoded, attention = block(decoded, skip)
            attentions += [] if attention is None else [attention]
        return DecoderOutput(decoded, tuple(attentions) or None)


class UNetHead(nn.Module):
    """Optional reduction, then a convolution, 1x1 as a rule: B x width x H x W to B x num_logits x H x W."""

    def __init__(self, config, in_channels):
        super().__init__()
        reduced = config.reduction_channels
        self.reduction = ConvNormReLU(in_channels, reduced) if reduced else nn.Identity()
        size = config.head_kernel_size
        self.classifier = nn.Conv2d(reduced or in_channels, config.head_channels, size, padding=size // 2)

    def forward(self, features):
        return self.classifier(self.reduction(features))


class UNetPreTrainedModel(PreTrainedModel):
    """Initialisation and what transformers must know of every variant."""

    config_class = UNetConfig
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _no_split_modules = ["BackboneEncoder", "CheckpointedDoubleConv", "UNetDecoderBlock"]
    accepts_loss_kwargs = False  # the loss is a mean over images; a Trainer divides it by the accumulation steps

    @torch.no_grad()
    def _init_weights(self, module):
        """Initial values of a module's own tensors: He's (section 3 of the paper), norms are the identity.

        A timm backbone keeps its own; tensors of a checkpoint are not changed.
        """
        if getattr(module, "keeps_own_init", False):
            if hasattr(module, "init_non_persistent_buffers"):
                module.init_non_persistent_buffers()  # Swin's index tables are not in a checkpoint
            return
        if isinstance(module, nn.ConvTranspose2d):
            initialize(module.weight, nn.init.normal_, std=module.in_channels**-0.5)  # one tap a pixel
        elif isinstance(module, nn.Conv2d):
            initialize(module.weight, nn.init.kaiming_normal_, nonlinearity="relu")
        elif isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
            initialize(module.weight, nn.init.ones_)
            initialize(getattr(module, "running_var", None), nn.init.ones_)
        initialize(getattr(module, "bias", None), nn.init.zeros_)
        initialize(getattr(module, "running_mean", None), nn.init.zeros_)
        initialize(getattr(module, "num_batches_tracked", None), nn.init.zeros_)

    def initialize_weights(self):
        """As transformers does: at construction, and when a checkpoint has been read, for all that it lacks."""
        super().initialize_weights()
        if isinstance(self.encoder, BackboneEncoder):
            self.encoder.initialize_backbone()


class UNetForSemanticSegmentation(UNetPreTrainedModel):
    """Encoder, decoder with concatenated skips, and head; any input size with `same` padding.

    The network of 2015 has `padding="valid"`, no batch norm, and dropout at the end of its contracting path, which is
    left out here.

    There is no base model apart: AutoModel gives the whole network too, with the encoder's features as
    `hidden_states` if `output_hidden_states=True` asks for them.

    A variant sets `config_class`, `decoder_class`, `paper` and, where its plain path differs, `plain_encoder_class`;
    `encoder.*`, `decoder.*` and `head.*` are everyone's keys.
    """

    plain_encoder_class = PlainEncoder
    decoder_class = UNetDecoder
    paper = (
        "Ronneberger, Fischer, Brox: U-Net: Convolutional Networks for Biomedical Image Segmentation, MICCAI "
        "2015, arXiv:1505.04597"
    )

    def __init__(self, config):
        super().__init__(config)
        config.check_fields()
        self.encoder = create_encoder(config, self.plain_encoder_class)
        self.decoder = self.decoder_class(config, self.encoder.channels)
        self.head = UNetHead(config, self.decoder.out_channels)
        self.stride = 2 ** (len(self.encoder.channels) - 1)
        self.encoder_frozen = False
        self.gradient_checkpointing = False  # set by transformers, here and in the layers
        self.post_init()

    def forward(self, pixel_values, labels=None, output_hidden_states=None, output_attentions=None, return_dict=None):
        """Logits at the size of the input, and with labels the loss.

        Args:
            pixel_values: float tensor, B x num_channels x H x W.
            labels: whole numbers in 0..num_labels-1, B x H x W or B x 1 x H x W, 255 and -100 ignored; with `valid`
                padding as large as the input (their centre is taken) or as the logits.
            output_hidden_states: also return the encoder's maps, full resolution first. This and the next two are the
                config's where the call does not say.
            output_attentions: also return the gates' maps, deepest first, B x 1 x h x w in 0..1, or a transformer's
                weights; None where there are none.
            return_dict: False returns a tuple (loss, logits, hidden_states, attentions, auxiliary_logits) without what
                is None.

        Returns:
            UNetOutput, a SemanticSegmenterOutput: `logits` B x num_logits x H x W (184 fewer rows and columns with
            `valid` padding at depth 4); `loss` is binary cross-entropy for a binary head, else cross-entropy, over the
            pixels that are not ignored; with deep supervision, in training, the mean of it over all logits.

        Raises:
            ValueError: wrong number of channels, a size that `valid` padding can't map, labels of another size or
                out of range.
        """
        config = self.config
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        padded = self._pad(pixel_values)
        features = self.encoder(self._tracked(padded) if self._pretrained_part().training else padded)
        decoded = self.decoder([self._tracked(level) for level in features])
        logits = self.head(decoded.features)
        auxiliary = [_resize(maps, logits.shape[-2:]) for maps in decoded.auxiliary_logits or ()]
        if self.config.padding == "same":
            logits, *auxiliary = (
                maps[..., : pixel_values.shape[-2], : pixel_values.shape[-1]] for maps in (logits, *auxiliary)
            )
        loss = None if labels is None else self._loss([logits, *auxiliary], labels)
        if config.num_logits > config.head_channels:
            logits, *auxiliary = (torch.cat([torch.zeros_like(maps), maps], dim=1) for maps in (logits, *auxiliary))
        output = UNetOutput(
            loss=loss,
            logits=logits,
            hidden_states=tuple(level for level in features if level is not None) if output_hidden_states else None,
            attentions=decoded.attentions if output_attentions else None,
            auxiliary_logits=tuple(auxiliary) or None,
        )
        return output if (config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def _tracked(self, tensor):
        """With a gradient where layers are checkpointed: the reentrant kind needs one at the input of each."""
        checkpointed = self.gradient_checkpointing and self.training and torch.is_grad_enabled()
        if tensor is None or tensor.requires_grad or not checkpointed:
            return tensor
        return tensor.detach().requires_grad_()

    def _loss(self, all_logits, labels):
        labels = align_labels(labels, all_logits[0], self.config)
        return torch.stack([segmentation_loss(logits, labels) for logits in all_logits]).mean()

    def _pad(self, pixel_values):
        """Rows and columns of zeros up to the next multiple of the deepest stride; `valid` checks the size instead."""
        if pixel_values.shape[1] != self.config.num_channels:
            raise ValueError(
                f"pixel_values must be B x {self.config.num_channels} x H x W (num_channels), "
                f"got {tuple(pixel_values.shape)}."
            )
        height, width = pixel_values.shape[-2:]
        if self.config.padding == "valid":
            self.config.check_valid_size(height)
            self.config.check_valid_size(width)
            return pixel_values
        # -height % stride would break torch.compile at the second size
        bottom = (height + self.stride - 1) // self.stride * self.stride - height
        right = (width + self.stride - 1) // self.stride * self.stride - width
        return F.pad(pixel_values, (0, right, 0, bottom))

    def freeze_encoder(self):
        """Keep the encoder's weights and batch-norm statistics as they are, also through `train()`.

        Of a backbone's encoder the backbone alone: no pretrained file has the detail branch and the feature pyramid.
        """
        self._set_encoder_frozen(True)

    def unfreeze_encoder(self):
        """Train the encoder again."""
        self._set_encoder_frozen(False)

    def _set_encoder_frozen(self, frozen):
        self.encoder_frozen = frozen
        self._pretrained_part().requires_grad_(not frozen)
        self.train(self.training)

    def train(self, mode=True):
        super().train(mode)
        if getattr(self, "encoder_frozen", False):
            self._pretrained_part().eval()
        return self

    def _pretrained_part(self):
        return getattr(self.encoder, "backbone", self.encoder)


def decoder_widths(config, skips):
    """One width for each upsampling, deepest first: the config's, the plain path's, or 256 halved to 16."""
    steps = len(skips)
    widths = config.decoder_channels
    if widths is None:
        widths = list(reversed(skips)) if config.backbone is None else [256, 128, 64, 32, 16][:steps]
    if len(widths) != steps:
        raise ValueError(f"decoder_channels needs {steps} widths for backbone={config.backbone!r}, got {widths}.")
    return widths


def _resize(logits, size):
    if logits.shape[-2:] == size:
        return logits
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def align_labels(labels, logits, config):
    """Labels as B x H x W integers at the size of the logits.

    Raises:
        ValueError: the size or a value does not fit the logits or the config's labels.
    """
    if labels.dim() == 4 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dim() != 3 or labels.shape[0] != logits.shape[0]:
        raise ValueError(
            f"labels must be B x H x W or B x 1 x H x W with B = {logits.shape[0]}, got {tuple(labels.shape)}."
        )
    size, logits_size = tuple(labels.shape[-2:]), tuple(logits.shape[-2:])
    size_with_margin = tuple(side + 2 * config.valid_margin for side in logits_size)
    if size not in (logits_size, size_with_margin):
        raise ValueError(f"labels of {size} pixels do not fit logits of {logits_size}: give them the input's size.")
    labels = center_crop(labels, logits_size)
    if not labels.is_floating_point():
        labels = labels.long()  # in uint8, -100 would be 156
    if not torch.compiler.is_compiling():
        _check_label_values(labels, config.num_labels)
    return labels.long()


def _check_label_values(labels, num_labels):
    if labels.is_floating_point() and not torch.equal(labels, labels.round()):
        raise ValueError("labels must be whole numbers; these look like probabilities: threshold them first.")
    wrong = (labels < 0) | (labels >= num_labels)
    for ignored in IGNORED_LABELS:
        wrong &= labels != ignored
    if wrong.any():
        values = sorted({int(value) for value in labels[wrong].unique()[:5]})
        raise ValueError(
            f"labels must lie in 0..{num_labels - 1}, or be 255 or -100 to be ignored; found {values}. A mask of 0 "
            "and 255 must be thresholded, or set num_labels."
        )


def segmentation_loss(logits, labels):
    """Mean binary cross-entropy (one channel) or cross-entropy over the pixels whose label is not ignored; a scalar.

    Args:
        logits: B x C x H x W.
        labels: integers, B x H x W, as `align_labels` returns them.
    """
    logits = logits.float()
    counted = torch.ones_like(labels, dtype=torch.bool)
    for ignored in IGNORED_LABELS:
        counted &= labels != ignored
    labels = labels.where(counted, 0)
    if logits.shape[1] == 1:
        losses = F.binary_cross_entropy_with_logits(logits[:, 0], labels.to(logits.dtype), reduction="none")
    else:
        losses = F.cross_entropy(logits, labels, reduction="none")
    return losses.where(counted, 0.0).sum() / counted.sum().clamp(min=1)
