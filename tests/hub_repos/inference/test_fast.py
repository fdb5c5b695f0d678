"""The fast path against the plain one, on phantom frames as JPEG."""

import io
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from hub_unets.hub_repos.inference.fast import FastSegmenter, bf16_graphs, decode, infer, requests_of, resize
from hub_unets.hub_repos.repository.int8 import INT8, export_int8
from hub_unets.modeling.image_processing_unet import UNetImageProcessor
from hub_unets.training.data.phantoms import phantom
from hub_unets.training.measure.models import load_model
from tests.variants import small_model


def jpeg(image, **options):
    stored = io.BytesIO()
    image.save(stored, "JPEG", quality=92, **options)
    return stored.getvalue()


@pytest.fixture(scope="module")
def frames():
    return [jpeg(Image.fromarray(phantom(1, index, 96)[0])) for index in range(3)]


@pytest.fixture(scope="module")
def with_int8(checkpoint, frames, tmp_path_factory):
    """A run's folder with its network in int8."""
    folder = shutil.copytree(checkpoint, tmp_path_factory.mktemp("int8") / "run")
    (folder / INT8).write_bytes(export_int8(folder, [Image.open(io.BytesIO(frame)) for frame in frames]))
    return folder


@torch.inference_mode()
def plain_masks(folder, frames):
    model, processor = load_model(folder)
    images = [Image.open(io.BytesIO(frame)) for frame in frames]
    outputs = model(**processor(images))
    return processor.post_process_semantic_segmentation(outputs, [(image.height, image.width) for image in images])


def agreement(masks, references):
    """The share of pixels on which two lists of masks agree; raises where their sizes differ."""
    return np.mean(
        [(mask == reference).float().mean().item() for mask, reference in zip(masks, references, strict=True)]
    )


@pytest.mark.parametrize(("mode", "least_agreement"), [("bf16", 0.99), ("openvino", 0.99), ("int8", 0.95)])
def test_masks_are_the_plain_paths(with_int8, frames, mode, least_agreement):
    segment = FastSegmenter(with_int8, mode)
    masks, plain = segment(frames), plain_masks(with_int8, frames)
    assert 0.1 < torch.cat([mask.flatten() for mask in plain]).float().mean() < 0.9
    assert agreement(masks, plain) > least_agreement
    assert agreement([segment([frame])[0] for frame in frames], masks) > 0.99


@pytest.mark.parametrize("mode", ["bf16", "openvino"])
def test_several_classes_and_any_variant(make_checkpoint, frames, mode):
    folder = make_checkpoint("unetplusplus", "resnet18", id2label={0: "background", 1: "polyp", 2: "boundary"},
                             detail_channels=0)  # fmt: skip
    assert agreement(FastSegmenter(folder, mode)(frames), plain_masks(folder, frames)) > 0.95


@pytest.mark.parametrize(
    ("variant", "encoder", "first_shape"),
    [
        ("unet", "plain", (1, 64, 64, 4)),
        ("transunet", "mobilenetv2_100", (1, 32, 32, 16)),
        ("attention_unet", "resnet18", (1, 32, 32, 64)),
        # none of its maps is the input of the next: the whole encoder
        pytest.param("unet", "swin_tiny", (1, 2, 2, 768), marks=pytest.mark.long),
    ],
)
def test_both_graphs_together_are_the_network(variant, encoder, first_shape, tmp_path):
    torch.manual_seed(0)
    network = small_model(variant, encoder).eval()
    network.save_pretrained(tmp_path)
    processor, pixels = UNetImageProcessor(size=64), np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    graphs = bf16_graphs(tmp_path, processor)
    assert [precision for _, precision in graphs] == ["f32", "bf16"]
    assert first_shape in [tuple(output.shape) for output in graphs[0][0].outputs]
    logits = infer(requests_of([(graph, "f32") for graph, _ in graphs], "LATENCY", 1), pixels.transpose(2, 0, 1))
    with torch.inference_mode():
        expected = network(**processor(pixels)).logits.numpy()
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()


def test_int8_is_for_one_size_and_must_be_there(checkpoint, with_int8, tmp_path):
    with pytest.raises(ValueError, match=f"has no {INT8}: `hub-unets quantise RUN DATA` writes it"):
        FastSegmenter(checkpoint, "int8")
    folder = shutil.copytree(with_int8, tmp_path / "run")
    UNetImageProcessor(size=96).save_pretrained(folder)
    with pytest.raises(ValueError, match="not for images of 96 x 96 pixels: `hub-unets quantise` it again"):
        FastSegmenter(folder, "int8")


def test_threshold_reaches_the_processor(checkpoint, frames):
    segment = FastSegmenter(checkpoint, "bf16")
    large_area, small_area = (
        sum(int(mask.sum()) for mask in segment(frames, threshold)) for threshold in (0.01, 0.99)
    )
    assert large_area > small_area and segment([]) == []


def test_only_a_large_jpeg_is_reduced():
    target_size = {"height": 50, "width": 80}
    for width, height, reduced in ((300, 210, 1), (340, 210, 2), (340, 190, 1), (640, 400, 4)):
        image, size = decode(jpeg(Image.new("RGB", (width, height))), target_size)
        assert size == (height, width) and image.size == (width // reduced, height // reduced)


def test_exif_orientation_turns_image_and_size():
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = jpeg(Image.new("RGB", (400, 330)), exif=exif)
    image, size = decode(stored, {"height": 200, "width": 100})
    assert size == (400, 330) and image.size == (165 * 2, 200 * 2)
    image, _ = decode(stored, {"height": 100, "width": 80})
    assert image.size == (165, 200)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_orientation_of_other_formats_and_damaged_exif(kind):
    exif, target_size = Image.Exif(), {"height": 20, "width": 10}
    exif[0x0112] = 6
    stored = io.BytesIO()
    Image.new("RGB", (40, 33)).save(stored, kind, exif=exif)
    image, size = decode(stored.getvalue(), target_size)
    assert size == (40, 33) and image.size == (33, 40)
    image, size = decode(
        jpeg(Image.new("RGB", (400, 330)), exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x05\xff\xff"), target_size
    )
    assert size == (330, 400) and image.width > image.height


@pytest.mark.parametrize("resample", [2, 3])
def test_resize_is_the_processors(resample):
    processor = UNetImageProcessor(size=(48, 64), resample=resample)
    image = Image.fromarray(phantom(2, 0, 128)[0])
    expected = np.asarray(processor.resize(image)).transpose(2, 0, 1).astype(int)
    assert np.abs(resize(image, processor) - expected).max() <= 1


def test_an_unknown_mode_is_refused(checkpoint):
    with pytest.raises(ValueError, match="one of bf16, openvino, int8"):
        FastSegmenter(checkpoint, "fp8")


def test_one_image_must_stand_in_a_list(checkpoint, frames):
    with pytest.raises(ValueError, match="put one image in a list"):
        FastSegmenter(checkpoint, "bf16")(frames[0])
