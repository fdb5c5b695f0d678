"""A built repository in a process that has never heard of this project.

`LOAD_PYTHON` is the interpreter of another environment, `LOAD_TRANSFORMERS` the version (4.57) that it must bring.
"""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from hub_repos.build import build
from modeling.image_processing_unet import UNetImageProcessor
from tests.variants import BACKBONES, VARIANTS, model_class
from training.phantoms import phantom

SCRIPT = Path(__file__).with_name("isolated.py")
PYTHON = Path(os.environ.get("LOAD_PYTHON") or sys.executable).absolute()
TRANSFORMERS = os.environ.get("LOAD_TRANSFORMERS") or transformers.__version__
AUTO_CLASSES = ("AutoModel", "AutoModelForSemanticSegmentation", "AutoModelForImageSegmentation")
CHATTER = ("Device set to use", "Using a slow image processor")  # what 4.57 says of any processor and device


@pytest.fixture(scope="module")
def load_isolated(tmp_path_factory):
    """A function (repository, folder) to the arrays that isolated.py finds there, and the folder of its re-save."""
    home = tmp_path_factory.mktemp("isolated")
    keep = {name: os.environ[name] for name in ("PATH", "HOME", "LD_LIBRARY_PATH") if name in os.environ}
    with (
        (home / "errors.txt").open("w") as errors,
        subprocess.Popen(
            [PYTHON, "-I", SCRIPT],
            cwd=home,
            env={**keep, "HF_HOME": str(home / "cache"), "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        version = process.stdout.readline().strip()
        assert version, f"{PYTHON} could not run {SCRIPT.name}: {(home / 'errors.txt').read_text()[-3000:]}"
        assert f"{version}.".startswith(f"{TRANSFORMERS}.")
        yield functools.partial(load_with, process)


def load_with(process, repository, folder):
    folder.mkdir()
    Image.fromarray(phantom(7, 0, 64)[0]).save(folder / "image.png")
    np.save(folder / "pixels.npy", np.random.default_rng(0).normal(size=(2, 3, 64, 96)).astype(np.float32))
    print(json.dumps([str(repository), str(folder)]), file=process.stdin, flush=True)
    status = process.stdout.readline().strip()
    printed = (folder / "printed.txt").read_text()
    assert status == "0", printed[-3000:]
    assert [line for line in printed.splitlines() if not line.startswith(CHATTER)] == []
    return np.load(folder / "found.npz"), folder / "resaved"


def check_load(load_isolated, checkpoint, variant, tmp_path):
    """Loads a build, and what its user saved again; both equal the checkpoint bit for bit."""
    repository = tmp_path / "repository"
    build(checkpoint, repository)
    found, resaved = load_isolated(repository, tmp_path / "first")
    again, _ = load_isolated(resaved, tmp_path / "second")
    check_resaved(repository, resaved)
    model = model_class(variant).from_pretrained(checkpoint).eval()
    processor = UNetImageProcessor.from_pretrained(checkpoint)
    pixels, image = np.load(tmp_path / "first" / "pixels.npy"), Image.open(tmp_path / "first" / "image.png")
    inputs = processor(image)
    with torch.inference_mode():
        outputs, of_image = model(torch.from_numpy(pixels), output_attentions=True), model(**inputs)
    mask = processor.post_process_semantic_segmentation(of_image, [(image.height, image.width)])[0].numpy()
    assert 0 < mask.mean() < 1
    expected = {**dict.fromkeys(AUTO_CLASSES, outputs.logits), "pixel_values": inputs["pixel_values"], "union": mask}
    expected |= {f"attentions.{index}": gate for index, gate in enumerate(outputs.attentions or ())}
    for one in (found, again):
        assert one.keys() == expected.keys()
        for name, array in expected.items():
            assert np.array_equal(one[name], array), name


def check_resaved(repository, resaved):
    """It holds all of the code, and every field of the config."""
    extra = {"README.md", "results.json", "per_image.csv"}
    assert {path.name for path in resaved.iterdir()} == {path.name for path in repository.iterdir()} - extra
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (repository, resaved))
    assert {**after, "transformers_version": before["transformers_version"]} == before


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_loads_in_an_isolated_process(variant, load_isolated, make_checkpoint, tmp_path):
    check_load(load_isolated, make_checkpoint(variant), variant, tmp_path)


@pytest.mark.parametrize("encoder", [name for name in BACKBONES if name in ("convnext_atto", "swin_tiny")])
def test_backbones_load_in_an_isolated_process(encoder, load_isolated, make_checkpoint, tmp_path):
    check_load(load_isolated, make_checkpoint("unet", encoder), "unet", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("encoder", [name for name in BACKBONES if name not in ("convnext_atto", "swin_tiny")])
def test_the_other_backbones_load_in_an_isolated_process(encoder, load_isolated, make_checkpoint, tmp_path):
    check_load(load_isolated, make_checkpoint("unet", encoder), "unet", tmp_path)
