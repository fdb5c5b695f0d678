"""The configuration of every variant."""

import ast
import re
from pathlib import Path

import pytest
import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from hub_unets.modeling.variants import config_fields
from tests.variants import VARIANTS, config_class, each_encoder, each_variant, model_class, small_config

ROOT = Path(__file__).parents[2]


def test_the_u_net_is_found_by_its_file():
    assert "unet" in VARIANTS
    assert config_class("unet").__name__ == "UNetConfig"
    assert model_class("unet").__name__ == "UNetForSemanticSegmentation"


@each_variant
def test_model_class_names_its_config_class(variant):
    assert model_class(variant).config_class is config_class(variant)
    assert config_class(variant).model_type == variant
    assert config_class(variant).__module__ == f"hub_unets.configuration.configuration_{variant}"


@each_variant
def test_the_default_config_builds_a_model(variant):
    with torch.device("meta"):
        model = model_class(variant)(config_class(variant)())
        assert model(torch.zeros(1, 3, 64, 64)).logits.shape == (1, 1, 64, 64)


@each_variant
@each_encoder
@pytest.mark.parametrize(
    "labels",
    [{}, {"num_labels": 4}, {"num_labels": 2, "binary_head": False}, {"id2label": {0: "none", 1: "one", 2: "two"}}],
)
def test_a_saved_config_comes_back_equal(variant, encoder, labels, tmp_path):
    config = small_config(variant, encoder, num_channels=5, reduction_channels=6, **labels)
    config.save_pretrained(tmp_path)
    loaded = config_class(variant).from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert (loaded.id2label, loaded.label2id) == (config.id2label, config.label2id)
    assert loaded.num_logits == config.num_logits


@each_variant
def test_every_field_is_read_by_the_code_of_the_variant(variant):
    fields = config_fields(config_class(variant)).keys() - {"num_labels", "id2label"}  # transformers' own
    assert "num_channels" in fields
    assert fields - fields_read(variant) == set()


def fields_read(variant):
    """Names x of every `config.x` and, in configuration files and outside of the checks, `self.x`."""
    pending, visited, names = [f"modeling.modeling_{variant}"], set(), set()
    while pending:
        module = pending.pop()
        source = (ROOT / module.replace(".", "/")).with_suffix(".py").read_text()
        visited.add(module)
        imported = re.findall(r"^from hub_unets\.((?:configuration|modeling)\.\w+) import", source, re.M)
        pending += [name for name in imported if name not in visited]
        owners = ("config", "self") if module.startswith("configuration") else ("config",)
        tree = ast.parse(source)
        skipped = {
            id(inner)
            for outer in ast.walk(tree)
            if isinstance(outer, ast.FunctionDef) and outer.name in ("__init__", "check_fields")
            for inner in ast.walk(outer)
            if module.startswith("configuration")
        }
        names |= {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Load)
            and id(node) not in skipped
            and ast.unparse(node.value).split(".")[-1] in owners
        }
    return names


@each_variant
def test_transformers_has_no_model_of_that_name(variant):
    """Else a load without trust_remote_code would silently take that model; `make test-newest` finds it in time."""
    assert variant not in CONFIG_MAPPING_NAMES
