"""The static Space's files; how Spaces are sent is in push/."""

import importlib.util
import json

import numpy as np
import onnxruntime
import pytest
import torch
import yaml

from hub_unets.hub_repos.publish.space import FILES, OURS, PAGE_README, stage_page
from hub_unets.hub_repos.repository.licence import licence_text
from hub_unets.training.measure.models import load_model
from hub_unets.training.records.results import read_results
from tests.hub_repos.pushes import hollow_runtime


def test_the_page_holds_the_network_the_processors_numbers_and_the_licence(checkpoint, tmp_path):
    runtime = hollow_runtime(tmp_path / "runtime")
    stage_page(tmp_path / "space", checkpoint, "someone/unet", runtime)
    files = {path.name: path for path in (tmp_path / "space").iterdir()}
    assert files.keys() == OURS["static"]
    model, processor = load_model(checkpoint)
    settings = json.loads(files["settings.json"].read_text())
    assert settings["name"] == "someone/unet" and settings["mask_threshold"] == processor.mask_threshold
    pixels = torch.randn(1, 3, 64, 64)
    (logits,) = onnxruntime.InferenceSession(files["model.onnx"].read_bytes()).run(
        ["logits"], {"pixel_values": pixels.numpy()}
    )
    with torch.inference_mode():
        assert np.abs(logits - model(pixels).logits.numpy()).max() < 1e-4
    assert files["LICENSE"].read_text() == licence_text(read_results(checkpoint / "results.json"))
    policy = files["index.html"].read_text().partition('content="default-src')[2].partition('"')[0].split(";")
    assert " connect-src 'self' https://huggingface.co https://*.hf.co" in policy
    assert " script-src 'self' 'wasm-unsafe-eval'" in policy


def test_a_page_that_lacks_onnx_says_so_before_anything_is_fetched(checkpoint, tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "onnx" else find_spec(name))
    with pytest.raises(ValueError, match=r"ONNX needs the package onnx: pip install 'hub-unets\[export\]'"):
        stage_page(tmp_path / "space", checkpoint, "someone/unet")
    assert not (tmp_path / "space").exists()


@pytest.mark.parametrize(("readme", "kind"), [(PAGE_README, "static"), (FILES / "README.md", "gradio")])
def test_a_spaces_card_has_the_fields_that_the_hub_knows(readme, kind):
    settings = yaml.safe_load(readme.read_text(encoding="utf-8").split("---\n")[1])
    assert settings["sdk"] == kind and settings["app_file"] in OURS[kind] and settings["models"] == ["REPO_ID"]
    assert len(settings["short_description"]) <= 60
