"""The static Space's files; how Spaces are sent is in push/."""

import importlib.util
import json

import numpy as np
import onnxruntime
import pytest
import torch
import yaml

from hub_unets.hub_repos.publish.space import FILES, OURS, PAGE_README, Space, stage_page
from hub_unets.hub_repos.push import send_space
from hub_unets.hub_repos.repository.export import MissingToolError
from hub_unets.hub_repos.repository.licence import licence_text
from hub_unets.training.errors import UserError
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


@pytest.mark.parametrize(
    ("obstacle", "comes"), [(MissingToolError("npm is not installed."), True), (UserError("it takes values."), False)]
)
def test_only_what_can_be_had_is_promised_to_be_sent_later(obstacle, comes, tmp_path, capsys):
    space = Space(None, "someone/unet", tmp_path, tmp_path, obstacle=obstacle)
    send_space(space, "abc", private=False, dry_run=False, is_asked_for=False)
    printed = capsys.readouterr().out
    assert printed.startswith(f"No Space: {obstacle} ") and "--space none leaves it out" in printed
    with pytest.raises(UserError, match="someone/unet is published, commit abc; its Space is not") as error:
        send_space(space, "abc", private=False, dry_run=False, is_asked_for=True)
    assert comes == ("the same command sends it" in printed) == ("the same command sends it" in str(error.value))
