"""The ranges that become 0..1, by hand, and what a person is shown of values."""

import numpy as np
import pytest
from PIL import Image

from hub_unets.modeling.image_files import ImageValues, read_values
from hub_unets.modeling.intensities import as_stored, picture, to_unit


def unit(pixels, intensity=None, **said):
    pixels = np.asarray(pixels)
    return to_unit(ImageValues(pixels.reshape(1, -1, 1), **said), intensity).ravel().tolist()


def test_a_window_is_cut_and_stretched():
    assert unit([-50, 0, 50, 100, 150], {"window": [0, 100]}) == [0, 0, 0.5, 1, 1]


def test_percentiles_are_of_each_image_and_channel():
    ramp = np.arange(101, dtype=np.uint16)  # its percentile p is p
    pixels = np.stack([ramp, 1000 - 5 * ramp], axis=-1)[None]
    unit_pixels = to_unit(ImageValues(pixels), {"percentiles": [10, 90]})
    assert unit_pixels.dtype == np.float32
    np.testing.assert_allclose(unit_pixels[0, [0, 10, 30, 90, 100], 0], [0, 0, 0.25, 1, 1], rtol=1e-6)
    np.testing.assert_allclose(unit_pixels[0, [0, 10, 30, 90, 100], 1], [1, 1, 0.75, 0, 0], rtol=1e-6)


def test_without_a_range_it_is_the_type_s():
    assert to_unit(read_values(np.array([[0, 65535]], np.uint16), 1)).ravel().tolist() == [0, 1]
    assert to_unit(read_values(np.array([[0, 255]], np.uint8), 1)).ravel().tolist() == [0, 1]
    assert to_unit(read_values(np.array([[-32768, 32767]], np.int16), 1)).ravel().tolist() == [0, 1]
    assert to_unit(read_values(np.array([[False, True]]), 1)).ravel().tolist() == [0, 1]
    assert unit([0.25, 0.5]) == [0.25, 0.5]
    assert unit([0, 4095], full_range=(0, 4095)) == [0, 1]


def test_a_dicom_file_s_own_window_is_taken_where_the_field_says_so():
    said = {"window": (100, 300), "full_range": (0, 400), "is_dicom": True}
    assert unit([100, 200, 300], {"window": "dicom"}, **said) == [0, 0.5, 1]
    assert unit([100, 200, 300], **said) == [0.25, 0.5, 0.75]
    assert unit([0, 200], {"window": "dicom"}, full_range=(0, 400)) == [0, 0.5]  # another file
    with pytest.raises(ValueError, match="a DICOM file without a window of its own"):
        unit([1], {"window": "dicom"}, full_range=(0, 400), is_dicom=True)


def test_where_low_is_white_the_unit_range_is_turned():
    assert unit([0, 25, 100], {"window": [0, 100]}, is_inverted=True) == [1, 0.75, 0]
    with pytest.raises(ValueError, match="MONOCHROME1"):
        as_stored(ImageValues(np.zeros((1, 1, 1)), is_inverted=True))


def test_an_image_of_one_value_is_black():
    assert unit([7, 7], {"percentiles": [0, 100]}) == [0, 0]


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        ([0.0, np.nan], "not finite"),
        ([0.0, 255.0], r"type float64 from 0 to 255, whose range is not known: set intensity"),
        (np.array([0, 7], np.int32), "type int32 from 0 to 7, whose range is not known"),
    ],
)
def test_values_without_a_known_range_are_refused(pixels, message):
    with pytest.raises(ValueError, match=message):
        unit(pixels)


def test_a_picture_shows_the_first_channels_stretched():
    grey = np.float32([[0.25, 0.5], [0.75, 0.25]])[..., None]
    assert picture(np.dstack([grey, grey * 0]))[..., 2].tolist() == [[0, 128], [255, 0]]
    assert picture(np.dstack([grey, grey / 2, grey / 4, grey])).shape == (2, 2, 3)
    colours = Image.new("RGB", (2, 3), (9, 8, 7))
    np.testing.assert_array_equal(picture(colours), colours)
