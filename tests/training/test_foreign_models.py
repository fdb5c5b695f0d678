"""Other people's models through the command: the counts of transformers' own post-processing, image by image."""

import csv
import json
import sys

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoImageProcessor, EomtConfig, Mask2FormerImageProcessor

from hub_unets.modeling.image_processing_unet import UNetImageProcessor
from hub_unets.training import evaluate as command
from hub_unets.training.data.phantoms import phantom
from hub_unets.training.errors import UserError
from hub_unets.training.fit.teacher import Teacher
from hub_unets.training.measure.metrics import COUNTS, count_pixels
from hub_unets.training.measure.models import class_logits, load_model, pixel_values
from hub_unets.training.measure.segmenter import Segmenter
from tests.training.foreign_models import FOREIGN, SHORTEST, make, save
from tests.variants import small_config, small_model

LABELS = "background", "polyp"


@pytest.fixture
def frames(tmp_path, monkeypatch):
    """Three generated frames of different sizes, in one batch; outlines and pictures, which take long, left out."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setitem(sys.modules, "monai", None)
    monkeypatch.setattr(command, "reliability", lambda *_: None)
    for kind in ("images", "masks"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    for number in range(3):
        for kind, picture in zip(("images", "masks"), phantom(0, number, 64), strict=True):
            Image.fromarray(picture).save(tmp_path / "data" / kind / f"{number}.png")
    return tmp_path / "data"


def images_and_truths(frames):
    for path in sorted((frames / "images").iterdir()):
        yield Image.open(path), np.asarray(Image.open(frames / "masks" / path.name)) // 255


def evaluate(model, frames, out, *options):
    """The metrics, and the counts of each image, that the command writes."""
    command.main([model, str(frames), "--output", str(out), *options])
    with (out / "per_image.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    metrics = json.loads((out / "results.json").read_text())["metrics"]["test"]
    return metrics, [[int(row[name]) for name in COUNTS] for row in rows], [float(row["loss"]) for row in rows]


@torch.no_grad()
def own_masks(name, model, frames):
    """The masks that transformers' own steps give, one image at a time, and each image's outputs."""
    processor = AutoImageProcessor.from_pretrained(name)
    for image, truth in images_and_truths(frames):
        outputs = model(**processor([image], return_tensors="pt"))
        sizes = [(image.height, image.width)]
        yield processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)[0].numpy(), truth, outputs


@pytest.mark.parametrize("kind", FOREIGN)
def test_the_counts_are_those_of_transformers_own_masks(kind, frames, tmp_path):
    model, processor = make(kind, *LABELS)
    name = save(model, tmp_path / "model", processor)
    metrics, counts, _ = evaluate(name, frames, tmp_path / "out")
    expected = list(own_masks(name, model, frames))
    assert counts == [count_pixels(mask, truth)[0].tolist() for mask, truth, _ in expected]
    assert metrics["images"] == 3 and 0 < np.mean([mask.mean() for mask, *_ in expected]) < 1
    assert 0 < metrics["calibration"]["ece"] < 1


def test_the_logits_of_mask_classification_are_the_logarithms_of_its_scores():
    torch.manual_seed(0)
    outputs = {"class_queries_logits": torch.randn(2, 4, 4), "masks_queries_logits": torch.randn(2, 4, 5, 6)}
    classes, pixels = outputs["class_queries_logits"].softmax(dim=-1), outputs["masks_queries_logits"].sigmoid()
    expected = (classes[..., :3, None, None] * pixels[:, :, None]).sum(dim=1)
    torch.testing.assert_close(class_logits(outputs).exp(), expected)
    far = {name: 1000 * tensor for name, tensor in outputs.items()}
    assert class_logits(far).isfinite().all()


@pytest.mark.parametrize("kind", ["segformer", "mask2former"])
def test_the_loss_is_that_of_the_scores_behind_the_mask(kind, frames, tmp_path):
    model, processor = make(kind, *LABELS)
    name = save(model, tmp_path / "model", processor)
    *_, losses = evaluate(name, frames, tmp_path / "out")
    for (_, truth, outputs), loss in zip(own_masks(name, model, frames), losses, strict=True):
        logits = class_logits(outputs)[0]
        odds = logits[1] - logits[0]
        odds = F.interpolate(odds[None, None], size=truth.shape, mode="bilinear")[0, 0]
        expected = F.binary_cross_entropy_with_logits(odds, torch.from_numpy(truth).float())
        assert loss == pytest.approx(float(expected), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    ("labels", "options", "polyps"),
    [
        (("background", "polyp", "instrument"), (), [1]),
        (("background", "adenoma", "hyperplastic"), (), [1, 2]),
        (("wall", "tree", "sky"), ("--polyp_labels", "2"), [2]),
    ],
)
def test_which_labels_count_as_polyp(labels, options, polyps, frames, tmp_path):
    model, processor = make("upernet", *labels)
    name = save(model, tmp_path / "model", processor)
    metrics, counts, _ = evaluate(name, frames, tmp_path / "out", *options)
    expected = [count_pixels(mask, truth, (polyps,))[0].tolist() for mask, truth, _ in own_masks(name, model, frames)]
    assert counts == expected and "per_class" not in metrics


@pytest.mark.parametrize(
    ("labels", "message"),
    [(("wall", "tree", "sky"), "which of the labels .* mean polyp"), (("polyp",), "polyp_labels must be some of")],
)
def test_labels_that_do_not_tell(labels, message, frames, tmp_path):
    model, processor = make("segformer", *labels)
    with pytest.raises(UserError, match=message):
        evaluate(save(model, tmp_path / "model", processor), frames, tmp_path / "out")


def test_other_kinds_of_models_are_named(tmp_path):
    EomtConfig().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is of the type eomt, which is not scored: models for semantic segmentation"):
        load_model(str(tmp_path))


def test_a_fixed_padding_is_refused():
    model, _ = make("mask2former", *LABELS)
    processor = Mask2FormerImageProcessor(size=SHORTEST, pad_size={"height": 128, "width": 128})
    with pytest.raises(UserError, match=r"Mask2FormerImageProcessor pads images \(pad_size\)"):
        pixel_values(model, processor, [Image.new("RGB", (60, 40))])


def test_flips_are_for_logits(frames, tmp_path):
    model, processor = make("mask2former", *LABELS)
    with pytest.raises(UserError, match="flips takes the mean of pixels' logits, and mask2former has none"):
        Segmenter(model, processor, flips=True)


def test_images_of_any_size_where_ours_are_not_resized(frames, tmp_path):
    model = small_model(base_channels=4, depth=2).eval()
    name = save(model, tmp_path / "model", UNetImageProcessor(do_resize=False))
    _, counts, _ = evaluate(name, frames, tmp_path / "out")
    _, alone, _ = evaluate(name, frames, tmp_path / "alone", "--batch_size", "1")
    assert counts == alone


@pytest.mark.parametrize("kind", ["beit", "maskformer"])
@pytest.mark.parametrize("flips", [False, True])
def test_they_teach(kind, flips, tmp_path):
    model, processor = make(kind, *LABELS)
    name = save(model, tmp_path / "model", processor)
    student = UNetImageProcessor(size=64)
    images = [phantom(0, 0, 64)[0][:64, :64]]
    teacher = Teacher([name], student, small_config(), flips=flips)
    probabilities = teacher(student(images)["pixel_values"], (32, 32))
    assert probabilities.shape == (1, 1, 32, 32)
    assert 0 <= probabilities.min() < probabilities.max() <= 1
    if not flips:
        mask, _ = Segmenter(*load_model(name))([Image.fromarray(images[0]).resize((32, 32))])
        agree = ((probabilities[0, 0] > 0.5).numpy() == (mask[0] == 1)).mean()
        assert agree > 0.8
