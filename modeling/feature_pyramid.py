"""Maps of one stride, as a plain vision transformer has them, to a pyramid (Li et al. 2022, arXiv:2203.16527)."""

import math

import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import nn

STRIDES = (4, 8, 16, 32)


class SimpleFeaturePyramid(nn.Module):
    """Four maps B x `channels` x h x w of stride `patch_size`, shallow to deep, to maps of strides 4, 8, 16 and 32.

    As in figure 2 of the paper, a 2x2 transposed convolution doubles a side and halves the width, and max pooling
    halves a side. The paper takes the last block's map for all four strides; here each has its own, the shallowest the
    finest, as the segmentation networks of BEiT and MAE do: a U-Net's fine skips are to hold what is local. Each map
    is normalised first, because the blocks of a transformer leave their sum as it is.

    `channels[i]` of the pyramid is the width of the map of stride `STRIDES[i]`.
    """

    def __init__(self, channels, patch_size):
        super().__init__()
        self.patch_size = patch_size
        self.stride = 2 ** round(math.log2(patch_size))  # of the resampled maps: 16 for patches of 14 pixels
        self.channels = [channels // max(1, self.stride // stride) for stride in STRIDES]
        self.levels = nn.ModuleList(resize_level(channels, self.stride, stride) for stride in STRIDES)

    def pad(self, pixel_values):
        """Zeros on the right and below, up to whole patches."""
        patch_size, (height, width) = self.patch_size, pixel_values.shape[-2:]
        # -height % patch_size would be another number in ONNX
        bottom = (height + patch_size - 1) // patch_size * patch_size - height
        right = (width + patch_size - 1) // patch_size * patch_size - width
        return F.pad(pixel_values, (0, right, 0, bottom))

    def forward(self, features, size):
        """The pyramid of an image of `size`, (height, width), multiples of 32, from the maps of the padded image."""
        if self.stride != self.patch_size:
            height, width = size
            features = [
                self.resample(level)[..., : height // self.stride, : width // self.stride] for level in features
            ]
        return [resize(level) for resize, level in zip(self.levels, features, strict=True)]

    def resample(self, features):
        """From the grid of patches to that of the power of two next to it; a pixel keeps its place in the image."""
        scale = self.patch_size / self.stride
        return F.interpolate(features, scale_factor=scale, mode="bilinear", align_corners=False)


def resize_level(channels, stride, target):
    """Layers from a map of `stride` to one of `target`, both powers of two."""
    layers = [LayerNorm2d(channels)]
    while stride > target:
        activation = [] if len(layers) == 1 else [LayerNorm2d(channels), nn.GELU()]
        layers += [*activation, nn.ConvTranspose2d(channels, channels // 2, 2, stride=2)]
        channels, stride = channels // 2, stride // 2
    if stride < target:
        layers.append(nn.MaxPool2d(target // stride))
    return nn.Sequential(*layers)
