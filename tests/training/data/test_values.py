"""Images of any channels and bits on their way to the network: reading, cache, augmentation, check, frames."""

import numpy as np
import pytest
import torch
from PIL import Image

from hub_unets.modeling.image_processing_unet import UNetImageProcessor
from hub_unets.training.data.augmentation import Augmentation
from hub_unets.training.data.check_data import check, format_check
from hub_unets.training.data.partition import make_partition
from hub_unets.training.data.polyp_free import largest_free_crop
from hub_unets.training.data.reading import cropped, read_image, read_labels
from hub_unets.training.data.samples import EvaluationSamples, TrainingSamples, cached_samples
from hub_unets.training.data.sources import load_frames, load_source
from hub_unets.training.errors import UserError

RANGE = {"window": [0, 4095]}
GEOMETRY = [{"HorizontalFlip": {"p": 1}}, {"Affine": {"rotate": [-20, 20], "p": 1}}, {"PolypFreeCrop": {"p": 1}}]


def values(number, channels):
    return np.random.default_rng(number).integers(0, 4096, (24, 32, channels), np.uint16)


@pytest.fixture(params=[1, 5])
def data(request, tmp_path):
    """(a folder of ten pairs, the processor of their number of channels): PNG of one channel, else NumPy files."""
    for name in ("images", "masks"):
        (tmp_path / "set" / name).mkdir(parents=True)
    for number in range(10):
        image, mask = values(number, request.param), np.zeros((24, 32), np.uint8)
        mask[4:12, number : number + 10] = 1
        if request.param == 1:
            Image.fromarray(image[..., 0]).save(tmp_path / f"set/images/{number:02}.png")
        else:
            np.save(tmp_path / f"set/images/{number:02}.npy", image)
        np.save(tmp_path / f"set/masks/{number:02}.npy", mask)
    return tmp_path / "set", UNetImageProcessor(size=24, num_channels=request.param, intensity=RANGE)


def test_samples_are_what_the_processor_makes_of_the_file(data, tmp_path):
    folder, processor = data
    rows, partition = make_partition(load_source(str(folder)), "80/10/10")
    samples = cached_samples(rows, partition.digests, processor, 2, cache_folder=tmp_path / "cache")
    batch = EvaluationSamples(samples, processor)
    for index, row in enumerate(rows):
        expected = processor(row["image"]["path"])["pixel_values"][0]
        assert torch.equal(batch[index]["pixel_values"], expected)
        assert set(batch[index]["native"].ravel()) == {0, 1}
    augmented = TrainingSamples(samples, processor, Augmentation(GEOMETRY, 0))[0, 0]["pixel_values"]
    assert augmented.shape == (processor.num_channels, 24, 24)
    assert len(augmented.unique()) > 257  # still no 8 bits


def test_another_range_is_another_cache(data, tmp_path):
    folder, processor = data
    rows, partition = make_partition(load_source(str(folder)), "80/10/10")
    other = UNetImageProcessor(size=24, num_channels=processor.num_channels, intensity={"window": [0, 100]})
    pixels = [
        cached_samples(rows, partition.digests, each, 2, cache_folder=tmp_path / "cache")[0]["pixels"]
        for each in (processor, other)
    ]
    assert pixels[0] != pixels[1]


def test_the_check_reads_them_and_names_what_does_not_fit(data):
    folder, processor = data
    np.save(folder / "images/extra.npy", np.zeros((24, 32, 2), np.uint16))
    np.save(folder / "masks/extra.npy", np.zeros((24, 32), np.uint8))
    rows, partition = make_partition(load_source(str(folder)), "80/10/10")
    report = check(rows, partition, processor=processor)
    assert report["sizes"]["width"] == {"min": 32, "median": 32, "max": 32}
    assert "extra.npy" in format_check(report) and "2 channels" in report["bad"][0]["reason"]
    assert len(report["bad"]) == 1


def test_frames_without_a_mask_may_be_values(data):
    folder, processor = data
    frames = load_frames(str(folder / "images"), processor)
    assert len(frames) == 10
    assert read_labels(frames[0]["annotation"], "a").shape == (24, 32)


def test_rgb_says_what_reads_a_numpy_file(tmp_path):
    np.save(tmp_path / "a.npy", values(0, 5))
    stored = {"bytes": None, "path": str(tmp_path / "a.npy")}
    with pytest.raises(UserError, match=r"a.npy\): .*hold values: set model.num_channels"):
        read_image(stored, "a")
    with pytest.raises(UserError, match=r"a.npy\): it has 5 channels, the network takes 1 channels"):
        read_image(stored, "a", UNetImageProcessor(num_channels=1))
    with pytest.raises(UserError, match="gone.npy.*No such file"):
        read_image({"bytes": None, "path": str(tmp_path / "gone.npy")}, "b", UNetImageProcessor(num_channels=1))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((4, 4, 2), np.uint8), "a mask of uint8"),
        (np.full((4, 4), 0.5), "a mask of float64"),
        (np.full((4, 4), -1), "a mask with the value -1"),
        (np.array([None]), "not a readable NumPy file"),
        (np.full((4, 4), 7), "labels out of range: found 7"),
    ],
)
def test_a_numpy_mask_that_is_none_is_refused(tmp_path, mask, message):
    np.save(tmp_path / "m.npy", mask)
    with pytest.raises(UserError, match=rf"m.npy\): {message}"):
        read_labels({"bytes": None, "path": str(tmp_path / "m.npy")}, "m")


def test_crops_of_values_are_their_parts():
    image = np.random.default_rng(0).random((24, 32, 5), np.float32)
    np.testing.assert_array_equal(cropped(image, (3, 1, 9, 5)), image[1:5, 3:9])
    labels = np.zeros((24, 32), np.uint8)
    labels[:, :8] = 1
    assert largest_free_crop(image, labels).shape == (24, 24, 5)
    assert largest_free_crop(image * 0.1, labels) is None  # dark


@pytest.mark.parametrize(
    ("name", "channels"), [("HueSaturationValue", 5), ("ToGray", 5), ("Dye", 1), ("Screen", 3), ("ShrinkPolyp", 5)]
)
def test_a_transform_that_can_t_take_them_is_named_with_those_that_can(name, channels):
    spec = [{"HorizontalFlip": {}}, {name: {}}]
    with pytest.raises(UserError, match=rf"augmentation {name} can't take images of {channels} .*Affine, .*Rotate"):
        Augmentation(spec, 0).require_channels(channels)


@pytest.mark.parametrize("channels", [1, 2, 7])
def test_the_usual_transforms_take_any_channels(channels):
    names = ["RandomBrightnessContrast", "GaussNoise", "RandomGamma", "ElasticTransform", "CoarseDropout", "CloseUp"]
    augmentation = Augmentation([*GEOMETRY, *({name: {"p": 0.5}} for name in names)], 0)
    augmentation.require_channels(channels)
    assert [transform.p for transform in augmentation.compose.transforms][-1] == 0.5
