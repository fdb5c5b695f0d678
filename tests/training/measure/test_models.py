"""Models of others that are scored: their processors show the network the whole image."""

import numpy as np
import pytest
from PIL import Image
from transformers import MobileNetV2ImageProcessor, MobileViTImageProcessor, SegformerImageProcessor

from hub_unets.training.errors import UserError
from hub_unets.training.measure.models import of_whole_images


@pytest.mark.parametrize(
    ("processor", "side"),
    [(MobileViTImageProcessor(), 256), (MobileNetV2ImageProcessor(), 224), (SegformerImageProcessor(), 512)],
)
def test_nothing_of_an_image_is_cut_off(processor, side):
    pixels = np.zeros((60, 120, 3), np.uint8)
    pixels[:, 108:] = 255  # which a crop of the centre does not show
    pixel_values = of_whole_images(processor)([Image.fromarray(pixels)], return_tensors="np")["pixel_values"]
    assert pixel_values.shape == (1, 3, side, side)
    bright = (pixel_values[0] > pixel_values[0].mean()).any(axis=0).mean(axis=0)
    assert bright[: round(0.88 * side)].max() == 0 and bright[round(0.93 * side) :].min() == 1


@pytest.mark.parametrize("processor", [MobileViTImageProcessor(), MobileNetV2ImageProcessor()])
def test_a_size_that_is_asked_for_stands_instead_of_the_crops(processor):
    image = Image.new("RGB", (60, 40))
    processor = of_whole_images(processor, {"height": 96, "width": 64})
    assert processor([image], return_tensors="np")["pixel_values"].shape == (1, 3, 96, 64)


def test_padding_is_refused():
    processor = SegformerImageProcessor()
    processor.do_pad = True
    with pytest.raises(UserError, match="SegformerImageProcessor pads images .*set do_pad to false"):
        of_whole_images(processor)
