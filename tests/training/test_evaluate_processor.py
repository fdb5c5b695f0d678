"""`hub-unets evaluate` with other settings of the image processor than the model's own."""

import numpy as np
import pytest
from PIL import Image
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

from hub_unets.modeling.image_processing_unet import UNetImageProcessor
from hub_unets.training.evaluate import main
from hub_unets.training.measure.models import load_model
from hub_unets.training.records.results import read_results
from tests.variants import small_model


@pytest.fixture
def data(tmp_path):
    """One frame: a view with a polyp, and a second picture."""
    image, mask = np.zeros((80, 128, 3), np.uint8), np.zeros((80, 128), np.uint8)
    image[6:74, 48:124] = image[44:66, 4:26] = 150
    mask[30:50, 70:90] = 255
    for name, pixels in (("images", image), ("masks", mask)):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / "data" / name / "a.png")
    return str(tmp_path / "data")


@pytest.fixture
def own(tmp_path):
    small_model().save_pretrained(tmp_path / "own")
    UNetImageProcessor(size=32).save_pretrained(tmp_path / "own")
    return str(tmp_path / "own")


@pytest.fixture
def foreign(tmp_path):
    sizes = {"depths": [1] * 4, "hidden_sizes": [8] * 4, "num_attention_heads": [1] * 4, "decoder_hidden_size": 8}
    SegformerForSemanticSegmentation(SegformerConfig(**sizes)).save_pretrained(tmp_path / "foreign")
    SegformerImageProcessor(size=32).save_pretrained(tmp_path / "foreign")
    return str(tmp_path / "foreign")


def settings(model, data, tmp_path, *options):
    main([model, data, "--output", str(tmp_path / "out"), *options])
    return read_results(tmp_path / "out" / "results.json")["run"]["settings"]


def test_results_say_which_size_and_what_of_the_view(own, data, tmp_path):
    record = settings(own, data, tmp_path)
    assert (record["image_size"], record["drop_outside_view"]) == (None, False)
    record = settings(own, data, tmp_path, "--image_size", "64", "--drop_outside_view", "true")
    assert (record["image_size"], record["drop_outside_view"]) == (64, True)
    UNetImageProcessor(size=32, drop_outside_view=True).save_pretrained(own)
    assert settings(own, data, tmp_path)["drop_outside_view"] is True


@pytest.mark.parametrize("kind", ["own", "foreign"])
def test_the_network_gets_that_size(kind, request):
    name = request.getfixturevalue(kind)
    _, processor = load_model(name, size={"height": 64, "width": 64})
    assert processor(Image.new("RGB", (30, 20)), return_tensors="pt")["pixel_values"].shape == (1, 3, 64, 64)


def test_what_a_processor_cannot_do_is_refused(own, foreign, data, tmp_path):
    with pytest.raises(ValueError, match="drop_outside_view: the image processor of .* does not have it"):
        settings(foreign, data, tmp_path, "--drop_outside_view", "true")
    with pytest.raises(ValueError, match="size must be"):
        settings(own, data, tmp_path, "--image_size", "0")
    assert not (tmp_path / "out").exists()
