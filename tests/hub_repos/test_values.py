"""Networks of images that keep their values, from training to predictions; what shows RGB alone says so."""

import base64
import csv
import io
import json

import numpy as np
import pytest
import tifffile
import torch
from PIL import EpsImagePlugin, Image, ImageFile

from hub_unets.hub_repos.checks.int8_file import check_int8
from hub_unets.hub_repos.checks.verification import verify_folder
from hub_unets.hub_repos.inference.fast import FastSegmenter
from hub_unets.hub_repos.page.page import page_settings
from hub_unets.hub_repos.predict import Predictor, main
from hub_unets.hub_repos.publish.space import Space
from hub_unets.hub_repos.repository.builder import build
from hub_unets.hub_repos.repository.example import example_name, example_pixels
from hub_unets.hub_repos.repository.int8 import INT8, export_int8
from hub_unets.modeling import handler
from hub_unets.modeling.handler import decode_values
from hub_unets.modeling.image_processing_unet import UNetImageProcessor
from hub_unets.training.errors import UserError
from hub_unets.training.measure.models import load_model
from hub_unets.training.measure.segmenter import Segmenter
from tests.training.runs import run
from tests.variants import small_model


def five_channels(seed=0):
    return np.random.default_rng(seed).integers(0, 65536, (40, 56, 5), np.uint16)


@pytest.fixture(scope="module")
def checkpoint_of_five(tmp_path_factory):
    """A run's folder, as far as inference needs it, of a network that marks half of what it sees."""
    folder = tmp_path_factory.mktemp("five")
    model = small_model(num_channels=5).eval()
    processor = UNetImageProcessor(size=32, num_channels=5, intensity={"percentiles": [1, 99]})
    with torch.no_grad():
        model.head.classifier.bias -= model(**processor(five_channels())).logits.median()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def plain_masks(folder, images):
    model, processor = load_model(folder)
    return Segmenter(model, processor)([processor.read(image) for image in images])[0]


@pytest.mark.parametrize("mode", ["bf16", "openvino", pytest.param("int8", marks=pytest.mark.long)])
def test_the_fast_path_gives_the_plain_masks(checkpoint_of_five, mode):
    images = [five_channels(seed) for seed in range(3)]
    if mode == "int8":
        read = UNetImageProcessor.from_pretrained(checkpoint_of_five).read
        (checkpoint_of_five / INT8).write_bytes(export_int8(checkpoint_of_five, map(read, images)))
        check_int8(checkpoint_of_five)
    segment = FastSegmenter(checkpoint_of_five, mode)
    for mask, expected in zip(segment(images), plain_masks(checkpoint_of_five, images), strict=True):
        assert 0.1 < expected.mean() < 0.9
        assert (mask.numpy() == expected).mean() > (0.8 if mode == "int8" else 0.98)


def test_predictions_of_tiles_and_wholes(checkpoint_of_five):
    model, processor = load_model(checkpoint_of_five)
    image = processor.read(five_channels())
    (whole,) = Predictor(model, processor)([image])
    np.testing.assert_array_equal(whole.mask, plain_masks(checkpoint_of_five, [five_channels()])[0])
    (tiled,) = Predictor(model, processor, tile=24, flips=True)([image])
    assert tiled.mask.shape == tiled.disagreement.shape == (40, 56)


def test_a_request_s_file_of_any_kind_is_read(checkpoint_of_five, monkeypatch):
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", None)  # which nothing may call
    eps = io.BytesIO()
    Image.new("L", (8, 8)).save(eps, "EPS")
    eps = eps.getvalue()
    processor = UNetImageProcessor.from_pretrained(checkpoint_of_five)
    tiff, npy = io.BytesIO(), io.BytesIO()
    tifffile.imwrite(tiff, five_channels(), photometric="minisblack", planarconfig="contig")
    np.save(npy, five_channels())
    for value in (tiff.getvalue(), npy.getvalue(), base64.b64encode(npy.getvalue()).decode()):
        np.testing.assert_array_equal(decode_values(value, "inputs", processor), processor.read(five_channels()))
    for value, message in (
        (b"text", r"inputs\[1\] can't be read as an image: not a file of a known kind"),
        (Image.new("L", (8, 8)), "1 channels, the network takes 5"),
        (5, "must be an image file's bytes"),
        (eps, "not a file of a known kind"),
        (Image.open(io.BytesIO(eps)), "an EPS file is a program"),
    ):
        with pytest.raises(ValueError, match=message):
            decode_values(value, "inputs[1]", processor)


def test_a_request_s_large_file_is_refused_before_it_is_decoded(checkpoint_of_five, monkeypatch):
    processor, tiff = UNetImageProcessor.from_pretrained(checkpoint_of_five), io.BytesIO()
    tifffile.imwrite(tiff, np.zeros((5, 1000, 1001), np.uint8), photometric="minisblack", compression="zlib")
    monkeypatch.setattr(handler, "MAX_PIXELS", 1_000_000)
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)
    with pytest.raises(ValueError, match="inputs can't .* 1001 x 1000 x 5 values, more than 5,000,000"):
        decode_values(tiff.getvalue(), "inputs", processor)


def test_pages_that_show_rgb_say_what_to_use(checkpoint_of_five, tmp_path):
    with pytest.raises(UserError, match=r"a page shows RGB of 8 bits, mine takes values \(num_channels=5, .* predict"):
        page_settings(checkpoint_of_five, "mine")
    space = Space(None, "ann/mine", checkpoint_of_five, tmp_path, kind="gradio")
    space.read = lambda: None
    assert space.prepare() is False
    with pytest.raises(UserError, match="ann/mine takes values"):
        space.send(None, private=False)


def test_the_example_has_the_network_s_channels():
    assert {example_name(count) for count in (1, 3)} == {"example.png"}
    assert {example_name(count) for count in (2, 4, 5)} == {"example.npy"}
    assert example_pixels(1, 64).ndim == 2 and example_pixels(1, 64).dtype == np.uint16
    assert example_pixels(5, 64).shape[2] == 5 and example_pixels(3, 64).dtype == np.uint8


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Ten images of 16 bits, whose objects 8 bits would not show, and their masks."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("images", "masks"):
        (folder / name).mkdir()
    draw = np.random.default_rng(0)
    for number in range(12):
        mask = np.zeros((48, 40), np.uint8)
        top, left = draw.integers(4, 24, 2)
        mask[top : top + 14, left : left + 12] = 1
        image = 20000 + draw.integers(0, 30, mask.shape) + 60 * mask
        Image.fromarray(image.astype(np.uint16)).save(folder / f"images/{number:02}.png")
        Image.fromarray(mask * np.uint8(255)).save(folder / f"masks/{number:02}.png")
    return folder


@pytest.mark.long
def test_from_images_of_16_bits_to_a_repository_that_is_verified_and_predicts(data, tmp_path, monkeypatch):
    folder, repository = tmp_path / "run", tmp_path / "repository"
    changes = {
        "data": data,
        "split": "80/10/10",
        "model.num_channels": 1,
        "intensity": "{percentiles: [1, 99]}",
        "augmentation": "[{HorizontalFlip: {p: 0.5}}, {RandomBrightnessContrast: {p: 0.5}}]",
        "num_train_epochs": 20,
        "calibrate": "true",
    }
    ended = run(folder, draws=True, **changes)
    assert ended.code == 0, ended.stderr
    metrics = json.loads((folder / "results.json").read_text())["metrics"]
    assert metrics["validation"]["per_image"]["dice"]["value"] > 0.8
    build(folder, repository, onnx=True)
    checks = verify_folder(repository, data=str(data))
    assert [(check.name, check.reason) for check in checks if not check.passed] == []
    assert len(checks) > 25
    assert main([str(repository), str(data / "images"), str(tmp_path / "out"), "--trust_remote_code", "true"]) == 0
    with (tmp_path / "out/images.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12 and {(row["width"], row["height"]) for row in rows} == {("40", "48")}
    assert Image.open(tmp_path / "out/overlays/00.jpg").mode == "RGB"
    monkeypatch.chdir(repository)
    cells = json.loads((repository / "notebook.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    names = {}
    exec("\n".join(text for text in code if not text.startswith("%pip")), names)
    assert names["mask"].shape == names["values"].shape[:2] and names["both"].mode == "RGB"
    fields = json.loads((repository / "preprocessor_config.json").read_text())
    (repository / "preprocessor_config.json").write_text(
        json.dumps(fields | {"num_channels": 2, "image_mean": [0.5] * 2, "image_std": [0.5] * 2})
    )
    failed = {check.name: check.reason for check in verify_folder(repository, run=False) if not check.passed}
    assert failed["preprocessor"] == "preprocessor_config.json: num_channels is 2, the network's is 1"
