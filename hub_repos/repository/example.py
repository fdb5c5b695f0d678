"""The generated frame to try a repository on, as its network takes it."""

import numpy as np
from PIL import Image

from hub_unets.training.data.phantoms import phantom

EXAMPLE, EXAMPLE_VALUES = "example.png", "example.npy"
SIDE = 64  # pixels, of a frame of other channels than grey or RGB


def example_name(num_channels):
    """The file's name: a PNG where PNG has so many channels, else a NumPy file."""
    return EXAMPLE if num_channels in (1, 3) else EXAMPLE_VALUES


def example_pixels(num_channels, side=None):
    """The frame: RGB uint8 H x W x 3; grey uint16 H x W; or uint16 H x W x C, red, green, blue and so on again."""
    if num_channels == 3:
        return phantom(7, 0, side or 256)[0]
    colours = phantom(7, 0, side or (256 if num_channels == 1 else SIDE))[0].astype(np.uint16) * 257
    return colours[..., 1] if num_channels == 1 else colours[..., np.arange(num_channels) % 3]


def write_example(path, num_channels, side=None):
    """Write the frame; the path ends as `example_name` does."""
    pixels = example_pixels(num_channels, side)
    if path.suffix == ".npy":
        np.save(path, pixels)
    else:
        Image.fromarray(pixels).save(path)
