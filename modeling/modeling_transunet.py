"""TransUNet (Chen et al. 2021): a transformer over the deepest map of a U-Net."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hub_unets.configuration.configuration_transunet import TransUNetConfig
from hub_unets.modeling.layers import ConvNormReLU, initialize
from hub_unets.modeling.modeling_unet import UNetDecoder, UNetForSemanticSegmentation


def eager_attention(module, query, key, value, attention_mask=None, scaling=1.0, **kwargs):
    """Scaled dot-product attention that keeps its weights, with the arguments of transformers' attention functions.

    Query, key and value B x heads x tokens x width to B x tokens x heads x width, and B x heads x tokens x tokens.
    """
    weights = (query @ key.transpose(2, 3) * scaling).softmax(dim=-1)
    return (weights @ value).transpose(1, 2), weights


class TransUNetLayer(GradientCheckpointingLayer):
    """A pre-norm transformer layer, B x tokens x hidden_size to the same (equations 2 and 3).

    Its attention runs as `attn_implementation` says; `eager` alone gives the weights, B x heads x tokens x tokens.
    """

    is_causal = False  # read by transformers' attention functions

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.heads = config.num_attention_heads
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=1e-6)
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.projection = nn.Linear(config.hidden_size, config.hidden_size)
        self.perceptron = nn.Sequential(
            nn.LayerNorm(config.hidden_size, eps=1e-6),
            nn.Linear(config.hidden_size, config.intermediate_size),
            nn.GELU(),
            nn.Linear(config.intermediate_size, config.hidden_size),
        )

    def forward(self, tokens):
        attended, weights = self._attend(self.attention_norm(tokens))
        tokens = tokens + self.projection(attended)
        return tokens + self.perceptron(tokens), weights

    def _attend(self, tokens):
        # B x tokens x 3 hidden -> 3 of B x heads x tokens x hidden / heads
        query, key, value = self.query_key_value(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attend = ALL_ATTENTION_FUNCTIONS.get(self.config._attn_implementation, eager_attention)
        scaling = query.shape[-1] ** -0.5
        attended, weights = attend(self, query, key, value, attention_mask=None, scaling=scaling)
        return attended.flatten(2), weights


class TransUNetBottleneck(nn.Module):
    """The deepest map as tokens, one a pixel: B x C x h x w to the same (section 3.2, equation 1).

    Also returns the weights of each layer's attention, none unless it is `eager`. The position embeddings are a
    learned grid, interpolated bilinearly to h x w, so that any input size works; the paper's are of one size.
    """

    def __init__(self, config, channels):
        super().__init__()
        side = config.position_grid
        self.embedding = nn.Conv2d(channels, config.hidden_size, 1)
        self.positions = nn.Parameter(torch.zeros(1, config.hidden_size, side, side))
        self.layers = nn.ModuleList(TransUNetLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=1e-6)
        self.expansion = ConvNormReLU(config.hidden_size, channels, batch_norm=config.batch_norm)

    def forward(self, features):
        size = features.shape[-2:]
        positions = F.interpolate(self.positions, size=size, mode="bilinear", align_corners=False)
        tokens = (self.embedding(features) + positions).flatten(2).transpose(1, 2)
        attentions = []
        for layer in self.layers:
            tokens, weights = layer(tokens)
            attentions += [] if weights is None else [weights]
        return self.expansion(self.norm(tokens).transpose(1, 2).unflatten(2, size)), tuple(attentions)


class TransUNetDecoder(UNetDecoder):
    """The transformer, then the expanding path."""

    def __init__(self, config, encoder_channels):
        super().__init__(config, encoder_channels)
        self.bottleneck = TransUNetBottleneck(config, encoder_channels[-1])

    def forward(self, features):
        *skips, deepest = features
        deepest, attentions = self.bottleneck(deepest)
        return super().forward([*skips, deepest])._replace(attentions=attentions or None)


class TransUNetForSemanticSegmentation(UNetForSemanticSegmentation):
    """A U-Net whose deepest map passes a transformer.

    With `attn_implementation="eager"`, `output_attentions=True` returns each layer's attention, B x heads x tokens x
    tokens, the first layer's first; `sdpa`, the default, is faster and has none to return.

    The plain path or any backbone is its encoder: the tokens lie at its deepest stride, 16 or 32. The paper takes
    ResNet-50 up to stride 16, and its authors' code drops out a tenth of the tokens' features.
    """

    config_class = TransUNetConfig
    decoder_class = TransUNetDecoder
    _supports_sdpa = True
    _no_split_modules = [*UNetForSemanticSegmentation._no_split_modules, "TransUNetBottleneck"]
    paper = (
        "Chen et al.: TransUNet: Transformers Make Strong Encoders for Medical Image Segmentation, 2021, "
        "arXiv:2102.04306"
    )

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if getattr(module, "keeps_own_init", False):
            return
        if isinstance(module, nn.Linear):
            initialize(module.weight, nn.init.trunc_normal_, std=0.02)
        elif isinstance(module, TransUNetBottleneck):
            initialize(module.positions, nn.init.trunc_normal_, std=0.02)
