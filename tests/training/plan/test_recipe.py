"""A recipe in the making: lines to print, YAML that reads back as it was, and what the command line gives."""

import yaml

from hub_unets.training.plan.recipe import Recipe, given_fields
from hub_unets.training.settings.recipes import read_recipe
from hub_unets.training.settings.texts import pairs


def made(given):
    recipe = Recipe(given)
    recipe.decide("image_size", "288: the usual one")
    recipe.set("image_size", 288, "the usual one")
    recipe.set("train_size", 256, "a little smaller")
    recipe.decide("loss", "bce and dice")
    recipe.set("loss.bce", 1.0, "of pixels")
    recipe.set("augmentation", [{"Affine": {"scale": [0.75, 1.35]}}, {"HorizontalFlip": {"p": 0.5}}], "as usual")
    return recipe


def test_yaml_reads_back_and_has_each_reason(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(made({"seed": 3, "model.backbone": "resnet18"}).as_yaml(["A plan."]))
    assert read_recipe(path) == {
        "image_size": 288,
        "train_size": 256,
        "augmentation": [{"Affine": {"scale": [0.75, 1.35]}}, {"HorizontalFlip": {"p": 0.5}}],
        "seed": 3,
        "model.backbone": "resnet18",
        "loss.bce": 1.0,
    }
    lines = path.read_text().splitlines()
    assert lines[0] == "# A plan."
    assert lines[2:5] == [
        "# image_size 288: the usual one",
        "image_size: 288  # the usual one",
        "train_size: 256  # a little smaller",
    ]
    assert (
        "seed: 3  # given" in lines and "  backbone: resnet18  # given" in lines and "  bce: 1.0  # of pixels" in lines
    )


def test_what_is_given_wins_and_names_the_plans_own():
    recipe = made({"train_size": 224, "image_size": 288})
    assert "train_size: 224  # given; the plan: 256" in recipe.as_yaml()
    assert "image_size: 288  # given\n" in recipe.as_yaml()
    assert recipe.lines() == ["image_size 288: the usual one", "loss bce and dice"]
    assert recipe.set("loss.dice", 0.5, "") == 0.5


def test_null_takes_a_field_back():
    assert "train_size" not in yaml.safe_load(made({"train_size": None}).as_yaml())


def test_given_fields_are_those_of_a_recipe():
    line = "--data a/b --image_mean 0.5 0.5 0.5 --learning-rate 1e-4 --calibrate --output_dir x --plan-only"
    line = [*line.split(), "--augmentation", "[{HorizontalFlip: {p: 0.5}}]", "--train_size", "null"]
    assert given_fields(pairs(line)) == {
        "data": "a/b",
        "image_mean": [0.5, 0.5, 0.5],
        "learning_rate": 1e-4,
        "calibrate": True,
        "augmentation": [{"HorizontalFlip": {"p": 0.5}}],
        "train_size": None,
    }
