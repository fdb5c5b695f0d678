"""The simple feature pyramid: widths, strides, and that a pixel keeps its place in the image."""

import pytest
import torch
from torch import nn

from hub_unets.modeling.feature_pyramid import SimpleFeaturePyramid

KINDS = {
    8: [["ConvTranspose2d"], [], ["MaxPool2d"], ["MaxPool2d"]],
    14: [["ConvTranspose2d", "ConvTranspose2d"], ["ConvTranspose2d"], [], ["MaxPool2d"]],
    16: [["ConvTranspose2d", "ConvTranspose2d"], ["ConvTranspose2d"], [], ["MaxPool2d"]],
    32: [["ConvTranspose2d"] * 3, ["ConvTranspose2d"] * 2, ["ConvTranspose2d"], []],
}


@pytest.mark.parametrize(
    ("patch_size", "channels"),
    [(8, [8, 16, 16, 16]), (14, [4, 8, 16, 16]), (16, [4, 8, 16, 16]), (32, [2, 4, 8, 16])],
)
@pytest.mark.parametrize("size", [(32, 32), (96, 160), (224, 448)])
def test_maps_have_strides_4_to_32(patch_size, channels, size):
    pyramid = SimpleFeaturePyramid(16, patch_size)
    padded = pyramid.pad(torch.rand(1, 3, *size))
    assert all(0 <= side - original < patch_size for side, original in zip(padded.shape[-2:], size, strict=True))
    features = [torch.rand(1, 16, *(side // patch_size for side in padded.shape[-2:])) for _ in range(4)]
    maps = pyramid(features, size)
    assert pyramid.channels == channels == [level.shape[1] for level in maps]
    assert [tuple(level.shape[-2:]) for level in maps] == [
        (size[0] // stride, size[1] // stride) for stride in (4, 8, 16, 32)
    ]


@pytest.mark.parametrize("patch_size", KINDS)
def test_figure_2_of_the_paper(patch_size):
    levels = SimpleFeaturePyramid(16, patch_size).levels
    resizing = (nn.ConvTranspose2d, nn.MaxPool2d)
    assert [[type(layer).__name__ for layer in level if isinstance(layer, resizing)] for level in levels] == (
        KINDS[patch_size]
    )


@pytest.mark.parametrize("patch_size", [12, 14, 18])
def test_a_pixel_of_a_resampled_map_keeps_its_place(patch_size):
    pyramid = SimpleFeaturePyramid(4, patch_size)
    centres = (torch.arange(20) + 0.5) * patch_size  # pixels of the image
    rows = pyramid.resample(centres.expand(1, 1, 20, 20))[0, 0, 0]
    torch.testing.assert_close(rows[1:14], ((torch.arange(20) + 0.5) * 16)[1:14])
