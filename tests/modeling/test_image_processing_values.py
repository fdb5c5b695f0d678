"""The image processor and the pipeline where images keep their values."""

import numpy as np
import pytest
import torch
from PIL import Image

from hub_unets.modeling.image_processing_unet import UNetImageProcessor, UNetImageSegmentationPipeline
from tests.variants import small_model

WORDS = np.random.default_rng(0).integers(0, 65536, (40, 56), np.uint16)
PLAIN = {"size": 32, "do_normalize": False}


@pytest.fixture
def png(tmp_path):
    Image.fromarray(WORDS).save(tmp_path / "words.png")
    return tmp_path / "words.png"


def test_every_form_of_an_image_gives_the_same_pixels(png):
    processor = UNetImageProcessor(num_channels=1, **PLAIN)
    forms = [
        png,
        str(png),
        png.read_bytes(),
        Image.open(png),
        WORDS,
        WORDS[..., None],
        WORDS[None],
        torch.from_numpy(WORDS),
    ]
    pixels = processor(forms)["pixel_values"]
    assert pixels.shape == (8, 1, 32, 32)
    assert all(torch.equal(each, pixels[0]) for each in pixels)
    assert len(pixels[0].unique()) > 900  # 8 bits would leave 256


def test_pixels_are_the_values_range_resized_and_normalised():
    blocks = np.kron(np.array([[0, 1000], [3000, 2000]], np.uint16), np.ones((2, 2), np.uint16))
    processor = UNetImageProcessor(
        num_channels=1, size=2, resample="box", intensity={"window": [0, 2000]}, image_mean=0.5, image_std=0.25
    )
    expected = (np.array([[0, 0.5], [1, 1]]) - 0.5) / 0.25
    np.testing.assert_allclose(processor(blocks)["pixel_values"][0, 0], expected, atol=1e-6)
    raw = processor(blocks, do_rescale=False, do_normalize=False)["pixel_values"][0, 0]
    assert raw.tolist() == [[0, 1000], [3000, 2000]]


def test_a_call_changes_intensity_and_none_is_the_full_range(png):
    options = {"num_channels": 1, **PLAIN}
    window = {"window": [0, 30000]}
    for processor in (UNetImageProcessor(**options), UNetImageProcessor(intensity={"window": [1, 2]}, **options)):
        for intensity in (window, None):
            expected = UNetImageProcessor(intensity=intensity, **options)(png)["pixel_values"]
            assert torch.equal(processor(png, intensity=intensity)["pixel_values"], expected)
    rgb = UNetImageProcessor(**PLAIN)(np.dstack([WORDS] * 3), intensity=window)["pixel_values"]
    assert len(rgb.unique()) > 900


def test_what_read_gives_takes_the_image_s_place(png):
    processor = UNetImageProcessor(num_channels=1, size=32, intensity={"percentiles": [2, 98]})
    image = processor.read(png)
    assert (image.shape, image.dtype, image.min(), image.max()) == ((40, 56, 1), np.float32, 0, 1)
    again = processor(image, **processor.read_options)["pixel_values"]
    assert torch.equal(again, processor(png)["pixel_values"])
    rgb = UNetImageProcessor(size=32)
    assert rgb.read_options == {} and rgb.read(png).mode == "RGB"


def test_three_channels_with_a_range_keep_16_bits():
    processor = UNetImageProcessor(intensity={"window": [0, 255]}, **PLAIN)
    assert not processor.takes_rgb
    faint = (WORDS // 256).astype(np.uint16)
    expected = UNetImageProcessor(num_channels=1, intensity={"window": [0, 255]}, **PLAIN)(faint)["pixel_values"]
    assert torch.equal(processor(faint)["pixel_values"], expected.expand(-1, 3, -1, -1))


def test_the_layout_of_an_array_may_be_said():
    array = np.random.default_rng(0).random((5, 32, 5))
    processor = UNetImageProcessor(num_channels=5, size=None, do_resize=False, do_normalize=False)
    assert processor(array)["pixel_values"].shape == (1, 5, 5, 32)
    assert processor(array, input_data_format="channels_first")["pixel_values"].shape == (1, 5, 32, 5)
    assert processor(array[None])["pixel_values"].shape == (1, 5, 5, 32)  # a batch of one
    with pytest.raises(ValueError, match="32 channels, the network takes 5"):
        processor(np.zeros((5, 40, 32)), input_data_format="channels_last")


def test_label_maps_are_resized_along():
    labels = (WORDS > 40000).astype(np.uint8)
    batch = UNetImageProcessor(num_channels=1, size=20)(WORDS, labels)
    expected = UNetImageProcessor(size=20)(np.zeros((40, 56, 3), np.uint8), labels)["labels"]
    assert torch.equal(batch["labels"], expected)
    with pytest.raises(ValueError, match="as large as its image"):
        UNetImageProcessor(num_channels=1)(WORDS, labels[:-1])


def test_the_fields_survive_a_save(tmp_path):
    processor = UNetImageProcessor(num_channels=2, intensity={"percentiles": (1, 99)}, image_mean=[0.1, 0.2])
    processor.save_pretrained(tmp_path)
    loaded = UNetImageProcessor.from_pretrained(tmp_path)
    assert (loaded.num_channels, loaded.intensity, loaded.image_mean) == (2, {"percentiles": [1, 99]}, [0.1, 0.2])
    assert UNetImageProcessor.from_pretrained(tmp_path, intensity=None).intensity is None


def test_the_usual_mean_and_deviation_are_imagenets():
    assert UNetImageProcessor().image_mean == [0.485, 0.456, 0.406]
    assert UNetImageProcessor(num_channels=2).image_mean == [0.449, 0.449]
    assert UNetImageProcessor(num_channels=2).image_std == [0.226, 0.226]
    assert UNetImageProcessor(num_channels=2, image_mean=[0.5], image_std=0.25).image_mean == [0.5, 0.5]  # one for all


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_channels": 0}, "num_channels must be a whole number of channels, 1 to 1024, got 0"),
        ({"num_channels": True}, "num_channels must be a whole number"),
        ({"num_channels": 2, "image_mean": [0.5] * 3}, "image_mean must be 2 numbers, one for each channel"),
        ({"intensity": "dicom"}, "intensity must be null"),
        ({"intensity": {"window": [1, 1]}}, "intensity must be null"),
        ({"intensity": {"window": [0, 1], "percentiles": [0, 1]}}, "intensity must be null"),
        ({"intensity": {"percentiles": [0, 101]}}, "intensity must be null"),
        ({"intensity": {"percentiles": "dicom"}}, "intensity must be null"),
        ({"intensity": {"level": [0, 1]}}, "low below high; got {'level'"),
        ({"drop_outside_view": True, "num_channels": 1}, "drop_outside_view=True is for RGB images"),
        ({"drop_outside_view": True, "intensity": {"window": [0, 9]}}, "drop_outside_view=True is for RGB images"),
    ],
)
def test_a_wrong_field_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        UNetImageProcessor(**fields)


@pytest.mark.parametrize("num_channels", [1, 5])
@torch.no_grad()
def test_the_pipeline_takes_paths_images_and_arrays(tmp_path, num_channels):
    model = small_model(num_channels=num_channels).eval()
    image = np.random.default_rng(1).integers(0, 65536, (40, 56, num_channels), np.uint16)
    np.save(tmp_path / "image.npy", image)
    processor = UNetImageProcessor(size=32, num_channels=num_channels, intensity={"percentiles": [1, 99]})
    outputs = model(**processor(image))
    model.head.classifier.bias -= outputs.logits.median()
    mask = processor.post_process_semantic_segmentation(model(**processor(image)), [(40, 56)])[0].numpy()
    assert 0 < mask.sum() < mask.size
    segment = UNetImageSegmentationPipeline(model=model, image_processor=processor)
    forms = [image, str(tmp_path / "image.npy"), *([Image.fromarray(image[..., 0])] if num_channels == 1 else [])]
    for entries in [segment(form) for form in forms] + segment(forms, batch_size=2):
        union = sum((np.asarray(entry["mask"]) > 0).astype(int) for entry in entries)
        np.testing.assert_array_equal(union, mask)
