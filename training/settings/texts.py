"""Command-line texts and YAML values: one to the other."""

import json
import re

import yaml

from hub_unets.training.errors import UserError


def pairs(argv):
    """--name value [value ...] or --name=value to {"--name": [values]}; the last of a name wins."""
    options, name = {}, None
    for text in argv:
        if text.startswith("--"):
            name, equals, value = text.partition("=")
            name = f"--{name[2:].replace('-', '_')}"
            options[name] = [value] if equals else []
        elif name is None:
            raise UserError(f"unexpected {text!r}: a recipe comes first, then --name value.")
        else:
            options[name].append(text)
    return options


def texts_of(value, nested):
    """A YAML value as command-line texts; None leaves the default. A nested list is one text: it may hold one item."""
    if value is None:
        return None
    if value and isinstance(value, list) and not nested and all(isinstance(item, int | float | str) for item in value):
        return [str(item) for item in value]
    return [json.dumps(value) if isinstance(value, (list, dict)) else str(value)]


def as_options(name, texts):
    """One value is joined to its name by =, so that a value like --this is not read as an option."""
    return [f"{name}={texts[0]}"] if len(texts) == 1 else [name, *texts]


def value_of(text):
    """Command-line text as YAML reads it, but 1e-4 as a number."""
    try:
        return float(text) if re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", text) else yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def mapping_of(name, text):
    """Command-line text as a mapping of names to values, each read as `value_of` does."""
    mapping = value_of(text)
    if not isinstance(mapping, dict):
        raise UserError(f"{name} must map names to values, as in '{{factor: 0.5, patience: 3}}', got {text!r}.")
    return {key: value_of(str(value)) for key, value in mapping.items()}
