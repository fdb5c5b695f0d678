"""A built repository in a process that has never heard of this project.

`LOAD_PYTHON` is the interpreter of another environment, `LOAD_TRANSFORMERS` the version (4.57) that it must bring.
"""

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from hub_unets.hub_repos.checks import isolated as isolated_check
from hub_unets.hub_repos.checks.verification import prepare
from hub_unets.hub_repos.repository.builder import build
from hub_unets.modeling.image_processing_unet import UNetImageProcessor
from tests.variants import BACKBONES, VARIANTS, model_class

SCRIPT = Path(__file__).with_name("isolated.py")
STEPS = ("load", "logits", "pipeline", "endpoint", "snippets", "saves again")
PYTHON = Path(os.environ.get("LOAD_PYTHON") or sys.executable).absolute()
TRANSFORMERS = os.environ.get("LOAD_TRANSFORMERS") or transformers.__version__
CHATTER = ("Device set to use", "Using a slow image processor")  # what 4.57 says of any processor and device


@pytest.fixture(scope="module")
def load_isolated(tmp_path_factory):
    """A function (repository, folder) to the arrays that isolated_check.py finds, and the folder of the re-save."""
    home = tmp_path_factory.mktemp("isolated")
    keep = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    with (
        (home / "errors.txt").open("w") as errors,
        subprocess.Popen(
            [PYTHON, "-I", SCRIPT, isolated_check.__file__],
            cwd=home,
            env={**keep, "HOME": str(home), "HF_HOME": str(home / "cache"), "HF_HUB_OFFLINE": "1"},
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
    prepare(repository, folder)
    print(json.dumps([str(repository), str(folder)]), file=process.stdin, flush=True)
    status = process.stdout.readline().strip()
    printed = (folder / "printed.txt").read_text()
    assert status == "0", printed[-3000:]
    assert json.loads((folder / "checks.json").read_text()) == [[step, True, ""] for step in STEPS]
    assert [line for line in printed.splitlines() if not line.startswith(CHATTER)] == []
    return np.load(folder / "found.npz"), folder / "resaved"


def check_load(load_isolated, checkpoint, variant, tmp_path):
    """Loads a build, and what its user saved again; both equal the checkpoint bit for bit."""
    repository = tmp_path / "repository"
    build(checkpoint, repository)
    arrays, resaved = load_isolated(repository, tmp_path / "first")
    check_resaved(repository, resaved)
    for name in ("README.md", "handler.py"):
        shutil.copyfile(repository / name, resaved / name)
    second_arrays, _ = load_isolated(resaved, tmp_path / "second")
    model = model_class(variant).from_pretrained(checkpoint).eval()
    processor = UNetImageProcessor.from_pretrained(checkpoint)
    image = Image.open(tmp_path / "first" / "image.png")
    pixels = arrays["pixel_values"]
    assert np.array_equal(pixels[:1], processor(image)["pixel_values"].numpy())
    with torch.inference_mode():
        outputs, image_outputs = model(torch.from_numpy(pixels), output_attentions=True), model(**processor(image))
    mask = processor.post_process_semantic_segmentation(image_outputs, [(image.height, image.width)])[0].numpy()
    assert set(np.unique(mask)) == set(range(model.config.num_labels))
    expected = {**dict.fromkeys(isolated_check.AUTO_CLASSES, outputs.logits), "pixel_values": pixels, "union": mask}
    expected |= {f"attentions.{index}": gate for index, gate in enumerate(outputs.attentions or ())}
    for loaded in (arrays, second_arrays):
        assert loaded.keys() == expected.keys()
        for name, array in expected.items():
            assert np.array_equal(loaded[name], array), name


def check_resaved(repository, resaved):
    """It holds all of the model's code, and every field of the config."""
    extra = {"README.md", "LICENSE", "notebook.ipynb", "handler.py", "requirements.txt", "manifest.json"}
    extra |= {"example.png", "results.json", "per_image.csv", "data_digests.csv", "history.csv"}
    assert {path.name for path in resaved.iterdir()} == {path.name for path in repository.iterdir()} - extra
    config, resaved_config = (json.loads((folder / "config.json").read_text()) for folder in (repository, resaved))
    assert {**resaved_config, "transformers_version": config["transformers_version"]} == config


PAIRS = [*((name, "plain") for name in VARIANTS), *(("unet", name) for name in BACKBONES)]
QUICK = [("unet", "plain"), ("transunet", "plain"), ("unet", "resnet18")]


@pytest.mark.parametrize(
    ("variant", "encoder"), [pytest.param(*pair, marks=[] if pair in QUICK else pytest.mark.long) for pair in PAIRS]
)
def test_a_repository_loads_in_an_isolated_process(variant, encoder, load_isolated, make_checkpoint, tmp_path):
    check_load(load_isolated, make_checkpoint(variant, encoder), variant, tmp_path)


def test_three_named_classes_load_in_an_isolated_process(load_isolated, three_class_checkpoint, tmp_path):
    check_load(load_isolated, three_class_checkpoint, "unet", tmp_path)
