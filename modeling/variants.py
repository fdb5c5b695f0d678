"""Variants, found by their files: configuration/configuration_X.py and modeling/modeling_X.py make `model_type` X."""

import difflib
import importlib
import inspect
from pathlib import Path

from transformers import PretrainedConfig

_CONFIGURATIONS = Path(__file__).parents[1] / "configuration"


def variant_names():
    """The `model_type` of every variant, sorted."""
    return sorted(path.stem.removeprefix("configuration_") for path in _CONFIGURATIONS.glob("configuration_*.py"))


def find_variant(name):
    """The config class and the model class of a variant.

    Raises:
        ValueError: there is no such variant; names the nearest.
    """
    if name not in variant_names():
        similar = difflib.get_close_matches(str(name), variant_names(), n=1, cutoff=0)
        raise ValueError(
            f"variant {name!r} is unknown; did you mean {similar[0]}? There are {', '.join(variant_names())}."
        )
    config_class = _class_of(importlib.import_module(f"hub_unets.configuration.configuration_{name}"), "Config")
    return config_class, _class_of(
        importlib.import_module(f"hub_unets.modeling.modeling_{name}"), "ForSemanticSegmentation"
    )


def config_fields(config_class):
    """The fields of a variant's config and their defaults, those of every U-Net first, the labels' last."""
    fields = {}
    for owner in reversed(config_class.__mro__):
        if issubclass(owner, PretrainedConfig) and owner is not PretrainedConfig and "__init__" in vars(owner):
            parameters = inspect.signature(owner.__init__).parameters.values()
            fields |= {
                field.name: field.default for field in parameters if field.default is not inspect.Parameter.empty
            }
    return {**fields, "num_labels": 2, "id2label": None}


def _class_of(module, suffix):
    for name, member in inspect.getmembers(module, inspect.isclass):
        if name.endswith(suffix) and member.__module__ == module.__name__:
            return member
    raise ValueError(f"{module.__name__} defines no class whose name ends in {suffix}.")
