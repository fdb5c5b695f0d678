"""Masks scored without their model: digit for digit what the command writes of the same predictions."""

import re
from pathlib import Path

import datasets
import evaluate
import numpy as np
import pytest
from PIL import Image

from hub_unets.configuration.configuration_unet import UNetConfig
from hub_unets.modeling.image_processing_unet import UNetImageProcessor
from hub_unets.modeling.modeling_unet import UNetForSemanticSegmentation
from hub_unets.training.data.phantoms import phantom
from hub_unets.training.errors import UserError
from hub_unets.training.evaluate import main
from hub_unets.training.measure.masks import score_masks
from hub_unets.training.measure.metrics import NAMES
from hub_unets.training.measure.models import load_model
from hub_unets.training.measure.segmenter import Segmenter
from hub_unets.training.records.results import read_results
from tests.training.foreign_models import save

ROOT = Path(__file__).parents[3]
METRIC = str(ROOT / "hub_repos/segmentation_overlap")
WITHOUT_PROBABILITIES = {"images", "per_image", "pooled", "by_size", "polyps", "boundary"}


@pytest.fixture
def frames(tmp_path, monkeypatch):
    """A folder of four frames of different sizes, one without a polyp; 255 in no mask but as white."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for kind in ("images", "masks"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    for number in range(4):
        image, mask = phantom(0, number, 64 + 8 * number)
        Image.fromarray(image).save(tmp_path / f"data/images/{number}.png")
        Image.fromarray(mask * (number > 0)).save(tmp_path / f"data/masks/{number}.png")
    return tmp_path / "data"


@pytest.fixture
def scored(frames, tmp_path):
    """What the command writes of a model on the frames, and its masks."""
    model = UNetForSemanticSegmentation(UNetConfig(base_channels=4, depth=2)).eval()
    folder = save(model, tmp_path / "model", UNetImageProcessor(size=32))
    main([folder, str(frames), "--output", str(tmp_path / "out")])
    images = [Image.open(path) for path in sorted((frames / "images").iterdir())]
    masks, _ = Segmenter(*load_model(folder))(images)
    truths = [np.asarray(Image.open(path)) for path in sorted((frames / "masks").iterdir())]
    return read_results(tmp_path / "out/results.json")["metrics"]["test"], masks, truths


def test_the_commands_figures(scored):
    metrics, masks, truths = scored
    assert metrics.keys() - WITHOUT_PROBABILITIES == {"loss", "calibration", "false_alarms"}
    expected = {name: metrics[name] for name in metrics if name in WITHOUT_PROBABILITIES}
    assert expected.keys() == WITHOUT_PROBABILITIES
    assert score_masks(masks, truths) == expected
    assert score_masks([mask == 1 for mask in masks], (truth > 127 for truth in truths)) == expected
    assert evaluate.load(METRIC).compute(predictions=masks, references=truths) == expected


def test_the_example_of_the_page(scored):
    metrics, masks, truths = scored
    page = (ROOT / "training/README.md").read_text(encoding="utf-8")
    section = page.split("\n### Other people's masks\n")[1]
    function, metric = re.findall(r"^```python\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)[:2]
    for code in (function, metric):
        names = {"predictions": masks, "references": truths}
        exec(compile(code.replace('"hub_repos', f'"{ROOT}/hub_repos'), "training/README.md", "exec"), names)
        assert names["figures"]["per_image"] == metrics["per_image"]
        assert set(names["figures"]["per_image"]) == set(NAMES)


def test_classes_and_ignored_pixels():
    truth, mask = np.array([[0, 1, 2, 2], [255, 255, 1, 0]]), np.array([[0, 3, 2, 0], [1, 2, 1, 0]])
    figures = score_masks([mask], [truth], classes=((1, 3), (2,)))
    assert [row["label"] for row in figures["per_class"]] == ["1", "2"]
    assert [row["pooled"]["dice"]["value"] for row in figures["per_class"]] == pytest.approx([1, 2 / 3])
    assert figures.keys() == {"images", "per_image", "pooled", "per_class", "with_background"}


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([], [], "there is no image to score"),
        ([np.ones((2, 3))], [np.ones((2, 3), int)], "prediction 0 is float64 .*`probabilities > threshold`"),
        ([np.ones((2, 3), int)], [np.ones((3, 2, 3), int)], r"reference 0 is int64 of shape \(3, 2, 3\)"),
        ([np.ones((2, 3), int)] * 2, [np.ones((2, 3), int)], "image 1 has no reference"),
        ([np.ones((2, 3), int)], [np.ones((3, 2), int)], r"prediction 0 is \(2, 3\), its reference \(3, 2\)"),
        ([np.ones((2, 3), int)], [np.full((2, 3), 2)], r"reference 0 holds \[2\], but classes says .* 1 to 1"),
    ],
)
def test_what_is_no_pair_of_masks(predictions, references, message):
    with pytest.raises(UserError, match=message):
        score_masks(predictions, references)
