import io

import cv2
import datasets
import numpy as np
import pytest
from PIL import Image

from hub_unets.training.data.phantoms import PARTS, phantom, phantom_dataset, phantom_parts


def channels(image):
    """R, G, B, grey, H, S, V and Lab a of an RGB image, uint8 H x W x 8."""
    grey, hsv, lab = (cv2.cvtColor(image, code) for code in (cv2.COLOR_RGB2GRAY, cv2.COLOR_RGB2HSV, cv2.COLOR_RGB2LAB))
    return np.dstack([image, grey, hsv, lab[..., 1]])


def threshold_dice(frames):
    """Mean per-image Dice of every rule "channel <= level" and "channel > level", float 8 x 2 x 256."""
    scores = []
    for image, mask in frames:
        values = channels(image)
        chosen = np.stack([np.bincount(v.ravel(), minlength=256).cumsum() for v in np.moveaxis(values, -1, 0)])
        hits = np.stack([np.bincount(v, minlength=256).cumsum() for v in values[mask > 0].T])
        area, lesion = mask.size, hits[:, -1:]
        low, high = 2 * hits / (chosen + lesion), 2 * (lesion - hits) / (area - chosen + lesion)
        scores.append(np.stack([low, high], 1))
    return np.mean(scores, 0)


def decode(cell):
    return np.asarray(Image.open(io.BytesIO(cell["bytes"])))


@pytest.fixture(scope="module")
def frames():
    return [phantom(0, index) for index in range(60)]


@pytest.fixture(scope="module")
def parts():
    return phantom_parts(24, size=64)


def test_threshold_dice_of_a_plain_square():
    image, mask = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8)
    image[:2], mask[:4] = (200, 0, 0), 255
    scores = threshold_dice([(image, mask)])
    assert scores[0, 1, 100] == pytest.approx(2 * 16 / (16 + 32))
    assert scores[0, 0, 100] == pytest.approx(2 * 16 / (48 + 32))


def test_no_threshold_segments_the_phantoms(frames):
    training = threshold_dice(frames)
    best = np.unravel_index(training.argmax(), training.shape)
    assert threshold_dice([phantom(2, index) for index in range(40)])[best] < 0.5


def test_same_seed_same_bytes(parts):
    first, repeated, other = (phantom_dataset(3, seed, size=64) for seed in (5, 5, 6))
    assert first.to_list() == repeated.to_list()
    assert all(a["image"] != b["image"] for a, b in zip(first, other, strict=True))


def test_a_frame_depends_on_no_global_generator_and_no_other_frame():
    expected = phantom(3, 7, 64)
    np.random.seed(1)
    phantom(3, 6, 64)
    assert all(np.array_equal(a, b) for a, b in zip(expected, phantom(3, 7, 64), strict=True))


def test_columns_features_and_names():
    data = phantom_dataset(2, seed=4, size=64)
    assert data.column_names == ["name", "image", "annotation"]
    assert data.features["name"] == datasets.Value("string")
    assert data.features["image"] == data.features["annotation"] == datasets.Image(decode=False)
    assert data["name"][:] == ["phantom-4-00000", "phantom-4-00001"]
    assert data[1]["image"]["path"] == "phantom-4-00001.jpg"
    assert data[1]["annotation"]["path"] == "phantom-4-00001.png"


def test_files_decode_to_the_frame(parts):
    for index, row in enumerate(parts["validation"]):
        image, mask = phantom(1, index, 64)
        stored = decode(row["image"])
        assert stored.shape == image.shape
        assert np.abs(stored.astype(int) - image).mean() < 8
        assert np.array_equal(decode(row["annotation"]), mask)


@pytest.mark.parametrize("size", [64, 256])
def test_shapes_dtypes_and_mask_values(size):
    for index in range(8):
        image, mask = phantom(0, index, size)
        height, width = mask.shape
        assert image.dtype == mask.dtype == np.uint8
        assert image.shape == (height, width, 3)
        assert set(np.unique(mask)) == {0, 255}
        assert 0.89 * size <= height <= 1.11 * size
        assert 0.99 * height <= width <= 1.36 * height


def test_native_sizes_vary(frames):
    assert len({mask.shape for _, mask in frames}) > 30


def test_one_to_three_lesions_of_very_different_areas(frames):
    counts = [cv2.connectedComponents(mask)[0] - 1 for _, mask in frames]
    assert set(counts) == {1, 2, 3}
    areas = [(mask > 0).mean() for _, mask in frames]
    assert min(areas) > 0.004
    assert min(areas) < 0.03
    assert max(areas) > 0.25
    assert np.mean(np.array(areas) > 0.015) > 0.9


def test_lesions_lie_in_the_visible_field(frames):
    dark = [np.mean(image[mask > 0].max(-1) < 12) for image, mask in frames]
    assert max(dark) < 0.05


def test_parts_and_their_counts(parts):
    assert tuple(parts) == PARTS
    assert [len(parts[part]) for part in PARTS] == [24, 4, 6]
    assert [len(part) for part in phantom_parts(1, size=64).values()] == [1, 1, 1]


@pytest.mark.parametrize("column", ["name", "image"])
def test_no_frame_is_in_two_parts_or_two_seeds(parts, column):
    values = [
        row[column] for data in (parts, phantom_parts(8, seed=1, size=64)) for part in data.values() for row in part
    ]
    keys = [value if column == "name" else value["bytes"] for value in values]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: phantom(0, 0, 63), "size must be 64 or more, got 63: pass size=64"),
        (lambda: phantom_dataset(2, size=32), "size must be 64 or more, got 32"),
        (lambda: phantom_dataset(0), "count must be 1 or more, got 0: pass count=1"),
        (lambda: phantom_parts(-3), "count must be 1 or more, got -3"),
        (lambda: phantom_parts(4, size=8), "size must be 64 or more, got 8"),
    ],
)
def test_errors_name_field_rule_value_and_cure(make, message):
    with pytest.raises(ValueError, match=message):
        make()
