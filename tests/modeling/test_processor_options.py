"""Every option is checked wherever it is set; options of other processors are supported or refused by name."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from transformers.image_utils import ChannelDimension

from hub_unets.modeling.image_processing_unet import UNetImageProcessor

COLOUR = (np.arange(2 * 5 * 3) * 8).reshape(2, 5, 3).astype(np.uint8)  # height 2, width 5
IDENTITY = {"do_resize": False, "do_rescale": False, "do_normalize": False}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("size", {"shortest_edge": 8}, "shortest_edge and longest_edge have no meaning"),
        ("size", {"height": 8}, "size must be"),
        ("size", 0, "size must be"),
        ("size", 10**9, "1 to 16384"),
        ("size", "256", "size must be"),
        ("size", [8, 8, 8], "size must be"),
        ("size", {"height": 8, "width": True}, "size must be"),
        ("do_resize", "yes", "do_resize must be true or false, got 'yes'"),
        ("resample", 7, "resample must be a PIL filter, 0 to 5"),
        ("resample", "linear", "resample must be"),
        ("rescale_factor", 0, "rescale_factor must be a number and not 0"),
        ("rescale_factor", math.nan, "rescale_factor must be"),
        ("image_mean", [0.5] * 4, "image_mean must be three numbers"),
        ("image_mean", "0.5", "image_mean must be three numbers"),
        ("image_std", [1, 0, 1], "image_std must be three numbers"),
        ("mirror_margin", -1, "mirror_margin must be a whole number"),
        ("mirror_margin", 2.5, "mirror_margin must be a whole number"),
        ("mask_threshold", 1.1, "mask_threshold must be a number in 0..1"),
        ("score_threshold", [0.5], "score_threshold must be a number in 0..1"),
        ("do_center_crop", True, "do_center_crop=True is not supported .* crop the images first"),
        ("do_pad", True, "mirror_margin"),
        ("do_convert_rgb", False, "do_convert_rgb=False is not supported"),
        ("default_to_square", False, "height"),
    ],
)
def test_a_wrong_field_is_named_by_constructor_load_and_call(field, value, message):
    processor = UNetImageProcessor()
    for call in (
        lambda: UNetImageProcessor(**{field: value}),
        lambda: UNetImageProcessor.from_dict(processor.to_dict(), **{field: value}),
        lambda: UNetImageProcessor.from_dict({**processor.to_dict(), field: value}),
        lambda: processor(COLOUR, **{field: value}),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_fields_that_a_load_or_a_line_changes_are_taken_in_any_form(tmp_path):
    UNetImageProcessor().save_pretrained(tmp_path)
    changes = {"size": 8, "image_mean": 0.5, "image_std": np.full(3, 0.25), "resample": InterpolationMode.BICUBIC}
    loaded = UNetImageProcessor.from_pretrained(tmp_path, mask_threshold=0.3, **changes)
    assert (loaded.size, loaded.image_mean, loaded.resample) == ({"height": 8, "width": 8}, [0.5] * 3, 3)
    assert (loaded.mask_threshold, loaded.image_std) == (0.3, [0.25] * 3)
    edited = UNetImageProcessor(mask_threshold=0.3)
    for name, value in changes.items():
        setattr(edited, name, value)
    assert torch.equal(edited(COLOUR)["pixel_values"], loaded(COLOUR)["pixel_values"])


@pytest.mark.parametrize(
    ("name", "number"),
    [
        (InterpolationMode.BILINEAR, 2),
        (InterpolationMode.NEAREST_EXACT, 0),
        ("lanczos", 1),
        (Image.Resampling.BOX, 4),
        (np.int64(3), 3),
    ],
)
def test_filters_have_several_names(name, number):
    assert UNetImageProcessor(resample=name).resample == number


def test_options_of_stock_processors_that_change_nothing():
    processor = UNetImageProcessor(size=8)
    expected = processor(COLOUR)["pixel_values"]
    options = {"do_convert_rgb": True, "disable_grouping": True, "do_center_crop": False, "do_pad": None, "size": None}
    assert torch.equal(processor(COLOUR, default_to_square=True, **options)["pixel_values"], expected)
    batch = processor(COLOUR, COLOUR[..., 0] // 200, data_format="channels_last", device="cpu")
    assert torch.equal(batch["pixel_values"].permute(0, 3, 1, 2), expected) and batch["labels"].shape == (1, 8, 8)


@pytest.mark.parametrize("layout", ["channels_first", ChannelDimension.FIRST])
def test_the_layout_of_an_array_whose_shape_does_not_tell(layout):
    image = np.zeros((3, 5, 3), np.uint8)
    image[0] = 200
    (channels_last,) = UNetImageProcessor(**IDENTITY)(image)["pixel_values"]
    (channels_first,) = UNetImageProcessor(**IDENTITY)(image, input_data_format=layout)["pixel_values"]
    assert channels_last.shape == (3, 3, 5) and channels_last[:, 0].min() == 200
    assert channels_first.shape == (3, 5, 3) and channels_first[0].min() == 200 and channels_first[1:].max() == 0
    with pytest.raises(ValueError, match="gives 7 channels"):
        UNetImageProcessor()(np.zeros((3, 8, 7)), input_data_format="channels_last")
    with pytest.raises(ValueError, match="'channels_first' or 'channels_last', got 'HWC'"):
        UNetImageProcessor()(image, input_data_format="HWC")


def test_nested_lists_are_flat_and_none_is_an_error():
    grey = Image.fromarray(COLOUR[..., 0])
    assert UNetImageProcessor(size=8)([[COLOUR, COLOUR], [grey]])["pixel_values"].shape[0] == 3
    with pytest.raises(ValueError, match="images is empty"):
        UNetImageProcessor()([])


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy, lambda array: torch.from_numpy(array).bfloat16()])
def test_without_rescaling_floats_are_taken_as_they_are(kind):
    floats = (np.arange(2 * 4 * 3).reshape(2, 4, 3) / 16 - 0.5).astype(np.float32)  # normalised: from -.5 to .94
    pixel_values = UNetImageProcessor(**IDENTITY)(kind(floats))["pixel_values"]
    assert torch.equal(pixel_values, torch.from_numpy(floats).permute(2, 0, 1)[None])
    processor = UNetImageProcessor(size=(1, 2), do_rescale=False, image_mean=0.5, image_std=0.5)
    quarters = processor(kind(floats * 0 + 0.25))["pixel_values"]
    torch.testing.assert_close(quarters, torch.full((1, 3, 1, 2), -0.5))


def test_floats_are_resized_as_bytes_are():
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    options = {"size": (20, 13), "do_normalize": False, "resample": 3}
    float_pixels = UNetImageProcessor(do_rescale=False, **options)(image / 255)["pixel_values"]
    byte_pixels = UNetImageProcessor(**options)(image)["pixel_values"]
    unclipped = (byte_pixels > 0) & (byte_pixels < 1)  # bytes are clipped
    torch.testing.assert_close(float_pixels[unclipped], byte_pixels[unclipped], atol=2 / 255, rtol=0)
    grey = Image.fromarray(np.full((4, 4), 0.25, np.float32))
    pixel_values = UNetImageProcessor(size=4, do_rescale=False, do_normalize=False)(grey)["pixel_values"]
    assert pixel_values.unique().tolist() == [0.25]


def test_the_orientation_of_a_file_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for suffix in ("jpg", "tif", "png"):
        path = tmp_path / f"turned.{suffix}"
        Image.fromarray(COLOUR).save(path, exif=exif)
        assert UNetImageProcessor(**IDENTITY)(path)["pixel_values"].shape == (1, 3, 5, 2)
        assert UNetImageProcessor().read(path).size == (2, 5)
