"""A built repository in a process that has never heard of this project."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hub_repos.build import build
from modeling.image_processing_unet import UNetImageProcessor
from tests.variants import BACKBONES, VARIANTS, model_class
from training.phantoms import phantom

SCRIPT = Path(__file__).with_name("isolated.py")
AUTO_CLASSES = ("AutoModel", "AutoModelForSemanticSegmentation", "AutoModelForImageSegmentation")


def load_isolated(repository, folder):
    """The arrays that isolated.py finds; loads the repository with fresh caches, without project or network."""
    folder.mkdir()
    image = folder / "image.png"
    Image.fromarray(phantom(7, 0, 64)[0]).save(image)
    np.save(folder / "pixels.npy", np.random.default_rng(0).normal(size=(2, 3, 64, 96)).astype(np.float32))
    keep = {name: os.environ[name] for name in ("PATH", "HOME", "LD_LIBRARY_PATH") if name in os.environ}
    done = subprocess.run(
        [
            os.environ.get("MINIMAL_PYTHON") and str(Path(os.environ["MINIMAL_PYTHON"]).absolute()) or sys.executable,
            "-I",
            SCRIPT,
            repository,
            folder / "pixels.npy",
            image,
            folder / "found.npz",
            folder / "resaved",
        ],
        cwd=folder,
        env={**keep, "HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "not supported" not in done.stderr
    return np.load(folder / "found.npz"), folder / "resaved"


def check_load(checkpoint, variant, tmp_path):
    """Loads a build, and what its user saved again; both equal the checkpoint bit for bit."""
    build(checkpoint, tmp_path / "repository")
    found, resaved = load_isolated(tmp_path / "repository", tmp_path / "first")
    again, _ = load_isolated(resaved, tmp_path / "second")
    model = model_class(variant).from_pretrained(checkpoint).eval()
    processor = UNetImageProcessor.from_pretrained(checkpoint)
    pixels, image = np.load(tmp_path / "first" / "pixels.npy"), Image.open(tmp_path / "first" / "image.png")
    with torch.inference_mode():
        logits, outputs = model(torch.from_numpy(pixels)).logits.numpy(), model(**processor(image))
    mask = processor.post_process_semantic_segmentation(outputs, [(image.height, image.width)])[0].numpy()
    assert 0 < mask.mean() < 1
    for one in (found, again):
        for name in AUTO_CLASSES:
            assert np.array_equal(one[name], logits), name
        assert np.array_equal(one["pixel_values"], processor(image)["pixel_values"].numpy())
        assert np.array_equal(one["union"], mask)


@pytest.mark.parametrize(
    ("variant", "encoder"), [*((name, "plain") for name in VARIANTS), *(("unet", name) for name in BACKBONES)]
)
def test_a_repository_loads_in_an_isolated_process(variant, encoder, make_checkpoint, tmp_path):
    check_load(make_checkpoint(variant, encoder), variant, tmp_path)
