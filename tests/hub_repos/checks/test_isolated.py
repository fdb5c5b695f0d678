"""The steps of the isolated process, in this one; test_load.py and test_verify.py run them where they belong."""

import json
import socket
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from transformers import ImageSegmentationPipeline

from hub_unets.hub_repos.checks import isolated as isolated_check
from hub_unets.hub_repos.checks.isolated import AUTO_CLASSES, logits, pipeline, snippets
from hub_unets.modeling.image_processing_unet import UNetImageProcessor, UNetImageSegmentationPipeline
from hub_unets.modeling.modeling_unet import UNetForSemanticSegmentation
from hub_unets.training.data.phantoms import phantom


@pytest.fixture
def state(checkpoint, tmp_path):
    """A model with soft masks, as `load` leaves it."""
    model = UNetForSemanticSegmentation.from_pretrained(checkpoint).eval()
    processor = UNetImageProcessor.from_pretrained(checkpoint)
    path = str(tmp_path / "image.png")
    Image.fromarray(phantom(7, 0, 64)[0]).save(path)
    return SimpleNamespace(
        work=tmp_path,
        path=path,
        image=Image.open(path),
        size=Image.open(path).size[::-1],
        models=dict.fromkeys(AUTO_CLASSES, model),
        config=model.config,
        processor=processor,
        segment=UNetImageSegmentationPipeline(model=model, image_processor=processor),
        arrays={},
    )


def fails(step, state, message):
    with torch.inference_mode(), pytest.raises(ValueError, match=message):
        step(state)


def test_a_good_model_passes(state):
    (state.work / "snippets.json").write_text(json.dumps(["print('quiet')", "import math"]))
    with torch.inference_mode():
        logits(state)
        pipeline(state)
        snippets(state)
    assert state.arrays["union"].any()


def test_logits_that_differ_are_named(state, checkpoint):
    other_model = UNetForSemanticSegmentation.from_pretrained(checkpoint).eval()
    with torch.no_grad():
        other_model.head.classifier.bias += 1e-3
    state.models["AutoModelForImageSegmentation"] = other_model
    fails(logits, state, "AutoModelForImageSegmentation and AutoModel give different logits")


def test_logits_that_are_not_finite_are_found(state):
    with torch.no_grad():
        state.models["AutoModel"].head.classifier.bias.fill_(float("nan"))
    fails(logits, state, "not finite")


def test_a_pipeline_that_drops_polyps_is_found(state):
    stock = ImageSegmentationPipeline(model=state.models["AutoModel"], image_processor=state.processor)
    state.segment = partial(stock, threshold=0.999)
    fails(pipeline, state, r"union of \d+ entries is not the processor's mask")


@pytest.mark.parametrize(
    ("snippet", "message"),
    [("mask = given * 0", "another mask"), ("segment = lambda path: []", "0 entries"), ("x = 1 / 0", "division")],
)
def test_a_snippet_that_does_not_give_the_mask_is_found(snippet, message, state):
    with torch.inference_mode():
        pipeline(state)
    (state.work / "snippets.json").write_text(
        json.dumps([f"import numpy as np\ngiven = np.ones((64, 64))\n{snippet}"])
    )
    with pytest.raises((ValueError, ZeroDivisionError), match=message):
        snippets(state)


def test_the_isolated_process_reaches_no_network():
    script = (
        "import runpy, socket, sys\n"
        "runpy.run_path(sys.argv[1])['without_network']()\n"
        "for reach in (socket.create_connection, lambda to: socket.getaddrinfo(*to), "
        "lambda to: socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', to)):\n"
        "    try:\n"
        "        reach(('127.0.0.1', int(sys.argv[2])))\n"
        "    except OSError as error:\n"
        "        print(error)\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        command = [sys.executable, "-I", "-c", script, isolated_check.__file__, str(server.getsockname()[1])]
        process = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [line.split(" (")[0] for line in process.stdout.splitlines()] == [
        "no network while a repository is checked"
    ] * 3
