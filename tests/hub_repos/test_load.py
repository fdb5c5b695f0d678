"""A built repository in a process that has never heard of this project."""

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hub_repos.build import build
from hub_repos.checks import Check
from hub_repos.isolated_check import AUTO_CLASSES
from hub_repos.verify import run_isolated
from modeling.image_processing_unet import UNetImageProcessor
from tests.variants import BACKBONES, VARIANTS, model_class

STEPS = ("load", "logits", "pipeline", "snippets", "saves again")


def load_isolated(repository, folder):
    """The arrays that isolated_check.py finds; with fresh caches, without project or network."""
    folder.mkdir()
    minimal = os.environ.get("MINIMAL_PYTHON")
    checks = run_isolated(repository, folder, Path(minimal).absolute() if minimal else sys.executable)
    said = (folder / "stderr.txt").read_text()
    assert checks == [Check(step, True) for step in STEPS], said[-3000:]
    assert "not supported" not in said
    return np.load(folder / "found.npz"), folder / "resaved"


def check_load(checkpoint, variant, tmp_path):
    """Loads a build, and what its user saved again; both equal the checkpoint bit for bit."""
    build(checkpoint, tmp_path / "repository")
    found, resaved = load_isolated(tmp_path / "repository", tmp_path / "first")
    shutil.copyfile(tmp_path / "repository" / "README.md", resaved / "README.md")
    again, _ = load_isolated(resaved, tmp_path / "second")
    model = model_class(variant).from_pretrained(checkpoint).eval()
    processor = UNetImageProcessor.from_pretrained(checkpoint)
    image = Image.open(tmp_path / "first" / "image.png")
    with torch.inference_mode():
        logits, outputs = model(torch.from_numpy(found["pixel_values"])).logits.numpy(), model(**processor(image))
    mask = processor.post_process_semantic_segmentation(outputs, [(image.height, image.width)])[0].numpy()
    assert set(np.unique(mask)) == set(range(model.config.num_labels))
    for one in (found, again):
        for name in AUTO_CLASSES:
            assert np.array_equal(one[name], logits), name
        assert np.array_equal(one["pixel_values"][:1], processor(image)["pixel_values"].numpy())
        assert np.array_equal(one["union"], mask)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_loads_in_an_isolated_process(variant, make_checkpoint, tmp_path):
    check_load(make_checkpoint(variant), variant, tmp_path)


def test_three_named_classes_load_in_an_isolated_process(three_class_checkpoint, tmp_path):
    check_load(three_class_checkpoint, "unet", tmp_path)


@pytest.mark.parametrize("encoder", [name for name in BACKBONES if name in ("convnext_atto", "swin_tiny")])
def test_backbones_load_in_an_isolated_process(encoder, make_checkpoint, tmp_path):
    check_load(make_checkpoint("unet", encoder), "unet", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("encoder", [name for name in BACKBONES if name not in ("convnext_atto", "swin_tiny")])
def test_the_other_backbones_load_in_an_isolated_process(encoder, make_checkpoint, tmp_path):
    check_load(make_checkpoint("unet", encoder), "unet", tmp_path)
