"""Ensembles: the mean of the members' probabilities by their own processors, from a folder that names them."""

import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from hub_unets.hub_repos.predict import Predictor
from hub_unets.modeling.image_processing_unet import UNetImageProcessor
from hub_unets.training import ensemble as command
from hub_unets.training import evaluate
from hub_unets.training.errors import UserError
from hub_unets.training.fit.teacher import Teacher
from hub_unets.training.measure.ensemble import Ensemble, write_ensemble
from hub_unets.training.measure.models import load_model
from hub_unets.training.measure.segmenter import Segmenter
from hub_unets.training.records.results import read_results
from tests.variants import small_config, small_model

PAIR = {"mask_threshold": 0.4, "score_threshold": 0.25}
CLASSES = {"num_labels": 3, "id2label": {0: "background", 1: "a", 2: "b"}, "binary_head": False}


@pytest.fixture
def images():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 60, 44, 3), np.uint8)
    return [Image.fromarray(image) for image in pixels]


@pytest.fixture
def save(tmp_path):
    """A function that saves a small model and a processor of its own; its folder."""

    def saved(name, seed, size=32, variant="unet", fields=None, mean=None, **processor_fields):
        torch.manual_seed(seed)
        model = small_model(variant, base_channels=4, depth=2, **(fields or {}))
        model.save_pretrained(tmp_path / name)
        mean = mean or [0.1 * seed, 0.5, 0.4]
        processor = UNetImageProcessor(size=size, image_mean=mean, **processor_fields)
        processor.save_pretrained(tmp_path / name)
        return tmp_path / name

    return saved


@pytest.fixture
def two(save, tmp_path):
    """An ensemble's folder of two networks of different variants, and the members' folders."""
    members = [save("one", 1), save("other", 2, variant="attention_unet")]
    write_ensemble(tmp_path / "both", members, PAIR)
    return tmp_path / "both", members


@torch.no_grad()
def probabilities(folder, images, size):
    model, processor = load_model(folder)
    logits = F.interpolate(model(pixel_values=processor(images)["pixel_values"])["logits"], size=size, mode="bilinear")
    return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(dim=1)


def test_mean_probability_of_the_members_by_their_own_processors(two, images):
    folder, members = two
    expected = sum(probabilities(member, images, (32, 32)) for member in members) / 2
    torch.testing.assert_close(probabilities(folder, images, (32, 32)), expected, rtol=1e-4, atol=1e-5)
    _, processor = load_model(folder)
    assert {name: getattr(processor, name) for name in PAIR} == PAIR


def test_members_of_other_sizes_margins_and_ranges(save, images, tmp_path):
    """A smaller member sees the image resized twice, without rounding in between."""
    small = {"size": 24, "fields": {"padding": "valid"}, "rescale_factor": 1 / 127.5, "mirror_margin": 20}
    members = [save("large", 1, size=48), save("small", 2, **small)]
    write_ensemble(tmp_path / "both", members, PAIR)
    twice = [image.resize((48, 48), Image.Resampling.BILINEAR) for image in images]
    model, processor = load_model(members[1])
    with torch.no_grad():
        second = model(pixel_values=processor(twice)["pixel_values"])["logits"]
    second = F.interpolate(second, size=(48, 48), mode="bilinear").sigmoid()
    expected = (probabilities(members[0], images, (48, 48)) + second) / 2
    torch.testing.assert_close(probabilities(tmp_path / "both", images, (48, 48)), expected, rtol=0, atol=1e-2)


def test_command(save, images, tmp_path, capsys):
    members = [save("one", 1, mask_threshold=0.3), save("other", 2, mask_threshold=0.5, score_threshold=0.5)]
    command.main([*map(str, members), str(tmp_path / "both")])
    expected = sum(probabilities(member, images, (32, 32)) for member in members) / 2
    torch.testing.assert_close(probabilities(tmp_path / "both", images, (32, 32)), expected, rtol=1e-4, atol=1e-5)
    _, processor = load_model(tmp_path / "both")
    assert (processor.mask_threshold, processor.score_threshold) == (0.4, 0.25)
    assert "The mean of 2 models" in capsys.readouterr().out
    for arguments, message in (
        ([members[0], tmp_path / "new"], "two members or more, got .*one alone"),
        ([*members, members[0]], "one holds config.json: choose another folder"),
        ([members[0], tmp_path, tmp_path / "new"], "is not the folder of a model: config.json is missing"),
        ([members[0], save("classes", 1, fields=CLASSES), tmp_path / "new"], "must have one id2label"),
    ):
        with pytest.raises(UserError, match=message):
            command.main(list(map(str, arguments)))
    assert not (tmp_path / "new").exists()


def test_of_certain_members_the_mean_is_finite():
    class Certain(torch.nn.Module):
        def __init__(self, logit):
            super().__init__()
            self.logit = torch.nn.Parameter(torch.tensor(logit))
            self.config, self.dtype = small_config(), torch.float32

        def forward(self, pixel_values):
            return {"logits": self.logit.expand(1, 1, 8, 8)}

    for logits, least, most in (((300.0, 200.0), 200, 300), ((300.0, -300.0), 0, 0)):
        ensemble = Ensemble([(Certain(logit), UNetImageProcessor(size=8)) for logit in logits], 0.5, 0.0)
        mean = ensemble(torch.rand(1, 3, 8, 8)).logits
        assert ((mean >= least) & (mean <= most)).all()


def test_marks_outside_the_view_are_dropped_where_a_member_drops_them(save, tmp_path):
    members = [save("a", 1, drop_outside_view=True), save("b", 2)]
    for name, chosen, dropped in (("both", members, True), ("one", members[1:], False)):
        write_ensemble(tmp_path / name, chosen, PAIR)
        assert load_model(tmp_path / name)[1].drop_outside_view == dropped


def test_other_channels_are_refused(save, tmp_path):
    grey = {"fields": {"num_channels": 1}, "num_channels": 1, "mean": [0.2]}
    write_ensemble(tmp_path / "both", [save("a", 1, **grey), save("b", 2, **grey)], PAIR)
    with pytest.raises(UserError, match="which resize RGB images"):
        load_model(tmp_path / "both")


def test_several_classes(save, images, tmp_path):
    members = [save(name, seed, fields=CLASSES) for seed, name in enumerate(("a", "b"), start=1)]
    write_ensemble(tmp_path / "both", members, PAIR)
    expected = sum(probabilities(member, images, (32, 32)) for member in members) / 2
    torch.testing.assert_close(probabilities(tmp_path / "both", images, (32, 32)), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="members of an ensemble must have one id2label, got"):
        write_ensemble(tmp_path / "mixed", [members[0], save("binary", 3)], PAIR)
        load_model(tmp_path / "mixed")


def test_it_teaches_as_its_members_do(two, images):
    folder, members = two
    student = UNetImageProcessor(size=32)
    pixels = student(images)["pixel_values"]
    teachers = [Teacher(list(map(str, names)), student, small_config()) for names in ([folder], members)]
    results = [teacher(pixels, (32, 32)) for teacher in teachers]
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_it_predicts_the_masks_that_are_scored(two, images):
    model, processor = load_model(two[0])
    masks, _ = Segmenter(model, processor)(images)
    for options in ({}, {"tile": 64}):  # one tile holds all of an image
        predictions = Predictor(model, processor, **options)(images)
        assert all(np.array_equal(found.mask, mask) for found, mask in zip(predictions, masks, strict=True))
    assert any(mask.any() for mask in masks)
    assert Predictor(model, processor, flips=True)(images)[0].disagreement.max() > 0


def test_evaluation_states_the_cost_of_all_members(two, tmp_path):
    folder, members = two
    options = ["--split", "own", "--masks", str(tmp_path / "masks"), "--output", str(tmp_path / "result")]
    evaluate.main([str(folder), "phantoms?count=9&size=64&seed=0", *options])
    run = read_results(tmp_path / "result/results.json")["run"]
    counts = [sum(part.numel() for part in load_model(member)[0].parameters()) for member in members]
    assert (run["model_type"], run["members"], run["parameters"]) == ("ensemble", 2, sum(counts))
    assert run["gmacs"] > 0
    masks = [np.asarray(Image.open(path)) for path in (tmp_path / "masks").iterdir()]
    assert masks and all(mask.ndim == 2 and set(np.unique(mask)) <= {0, 255} for mask in masks)


def test_a_member_that_changed_or_is_gone_is_refused(two):
    folder, members = two
    shutil.copyfile(members[0] / "model.safetensors", folder / "kept")
    processor = members[0] / "preprocessor_config.json"
    processor.write_text(processor.read_text().replace("0.25", "0.3") + " ")
    with pytest.raises(UserError, match="one/preprocessor_config.json has changed since: make the ensemble anew"):
        load_model(folder)
    (members[0] / "model.safetensors").unlink()
    with pytest.raises(UserError, match="has no model.safetensors: bring it back"):
        fields = json.loads((folder / "ensemble.json").read_text())
        fields["members"][0]["sha256"].pop("preprocessor_config.json")
        (folder / "ensemble.json").write_text(json.dumps(fields))
        load_model(folder)


EMPTY = '{"members": [], "mask_threshold": 1, "score_threshold": 0}'


@pytest.mark.parametrize("text", ["{", "[]", '{"members": 3}', EMPTY])
def test_what_is_no_ensemble(text, tmp_path):
    (tmp_path / "ensemble.json").write_text(text)
    with pytest.raises(UserError, match=r"ensemble\.json (is not the file of an ensemble|names no members)"):
        load_model(tmp_path)
