"""The model that a clone brings: it verifies, it fits the project, and its figures are those of its rows."""

import csv
import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from hub_unets.hub_repos.checks.verification import verify_folder
from hub_unets.hub_repos.keep import LARGEST
from hub_unets.hub_repos.repository.builder import build
from hub_unets.hub_repos.repository.card import render_card
from hub_unets.training.data.sources import load_source
from hub_unets.training.measure.models import load_model
from hub_unets.training.measure.score import score
from hub_unets.training.measure.task import Task
from hub_unets.training.records.results import read_results

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "hub_repos/published/unet_polyps"


@pytest.fixture(scope="module")
def kvasir():
    folder = Path(os.environ.get("KVASIR_SEG", ROOT.parent / "shared/kvasir-seg"))
    if not (folder / "images").is_dir():
        pytest.skip(f"Kvasir-SEG is not in {folder}; set KVASIR_SEG to its folder")
    return folder


def test_every_file_fits_the_project_and_the_card_is_its_results():
    assert all(path.stat().st_size < LARGEST for path in KEPT.rglob("*") if path.is_file())
    card = (KEPT / "README.md").read_text(encoding="utf-8")
    assert card == render_card(KEPT, read_results(KEPT / "results.json"))
    assert "no code: `hub-unets build FOLDER MODEL`" in card


def test_a_build_of_it_verifies(tmp_path):
    build(KEPT, tmp_path / "repository")
    checks = verify_folder(tmp_path / "repository")
    assert [check for check in checks if not check.passed] == []


def test_rows_of_real_images_are_reproduced(kvasir):
    with (KEPT / "per_image.csv").open(newline="", encoding="utf-8") as file:
        rows = {row["name"]: row for row in csv.DictReader(file) if row["part"] == "validation"}
    source = load_source(str(kvasir))["all"]
    indices = [index for index, name in enumerate(source["name"]) if name in rows][:6]
    model, processor = load_model(KEPT)
    scores = score(model, processor, source.select(indices), Task())
    assert len(indices) == 6
    for name, loss, counts in zip(scores.names, scores.losses, scores.counts, strict=True):
        assert loss == pytest.approx(float(rows[name]["loss"]), abs=1e-4)
        assert counts[0, 0] == pytest.approx(int(rows[name]["true_positives"]), rel=1e-3)


def test_it_finds_nothing_on_a_blank_frame():
    model, processor = load_model(KEPT)
    blank = Image.new("RGB", (320, 240), (150, 60, 50))
    with torch.inference_mode():
        outputs = model(**processor(blank))
    assert processor.post_process_semantic_segmentation(outputs, target_sizes=[(240, 320)])[0].sum() == 0
