"""What predict writes comes back bit for bit as masks to train on and to score."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from hub_unets.hub_repos.predict import main
from hub_unets.training.data.phantoms import phantom
from hub_unets.training.data.reading import read_labels
from hub_unets.training.data.sources import load_source
from hub_unets.training.evaluate import main as evaluate
from tests.training.runs import run


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def labels(data):
    rows = load_source(str(data))["all"]
    return {row["name"]: read_labels(row["annotation"], row["name"]) for row in rows}


@pytest.mark.long
def test_predictions_are_masks_to_train_on(checkpoint, tmp_path):
    frames, out = tmp_path / "frames", tmp_path / "out"
    for index in range(12):
        (frames / f"{index % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(phantom(0, index, 64)[0]).save(frames / f"{index % 2}" / f"{index}.png")
    assert main([str(checkpoint), str(frames), str(out)]) == 0
    for data in (out / "annotations.json", out):
        masks = labels(data)
        assert len(masks) == 12
        for name, mask in masks.items():
            (stored,) = out.glob(f"masks/*/{name}.png")
            np.testing.assert_array_equal(mask * 255, np.asarray(Image.open(stored)))
    finished = run(tmp_path / "run", data=out / "annotations.json", split="80/10/10", num_train_epochs=1)
    assert finished.code == 0, finished.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["metrics"]["test"]["images"] == 1
    evaluate([str(checkpoint), str(out), "--output", str(tmp_path / "evaluation")])
    scored = json.loads((tmp_path / "evaluation" / "results.json").read_text())
    assert scored["metrics"]["test"]["per_image"]["dice"]["value"] == 1


def test_predictions_of_a_table_bring_their_frames(checkpoint, tmp_path):
    out = tmp_path / "out"
    assert main([str(checkpoint), "phantoms?count=2&size=64&seed=0", str(out)]) == 0
    masks = labels(out)
    assert len(masks) == 4
    for name, mask in masks.items():
        (stored,) = out.glob(f"masks/*/{name}.png")
        np.testing.assert_array_equal(mask * 255, np.asarray(Image.open(stored)))
        assert next(out.glob(f"frames/*/{name}.jpg")).is_file()
    assert [Path(line) for line in (out / "files.txt").read_text().splitlines()] == sorted(out.glob("frames/*/*.jpg"))
