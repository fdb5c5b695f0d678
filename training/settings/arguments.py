"""What a recipe may say: transformers' TrainingArguments, and the fields that only segmentation has.

A recipe is YAML with flat keys, but for `model:` (fields of the variant's config) and `loss:` (weights of losses, and
their parameters: `{dice: 0.5, focal: 0.5, focal.gamma: 3}`); the command line takes the same names, dotted:
`--model.backbone resnet50 --loss.dice 0.5 --loss.focal.gamma 3`. A recipe may stand on another one, `recipe:
unet_mobilenetv2`, and name what it changes. `grid:` or `space:`, `trials` and `rank_within` are for training/sweep.py.
"""

import argparse
import difflib
import inspect
import re
import sys
from pathlib import Path

from transformers import HfArgumentParser

from hub_unets.modeling.variants import config_fields, find_variant
from hub_unets.training.errors import UserError, about_input
from hub_unets.training.fit.losses import LOSSES, WeightedSum, parameters
from hub_unets.training.fit.start import read_start_config, with_start_fields
from hub_unets.training.settings.recipes import find_recipe, read_recipe, run_fields
from hub_unets.training.settings.run_arguments import RunArguments
from hub_unets.training.settings.texts import as_options, pairs, texts_of, value_of

WIDEST, DEEPEST, MOST_LABELS = 8192, 64, 255  # label 255 is for pixels to be ignored


def parse(argv=None):
    """The command line to (RunArguments, model fields, loss fields, settings as given).

    `--name null` takes a field of the recipe back, also one that the variant of the command line does not have. With
    `start_from`, the checkpoint's variant and model fields stand where none are given. `settings` maps each name
    that the recipe or the command line sets, dotted where nested, to its text.

    Raises:
        SystemExit: an unknown name (with the nearest), a value of the wrong type, or `--help`.
        UserError: the recipe can't be found or read, or is no mapping.
    """
    argv = ["--help" if text == "-h" else text for text in (sys.argv[1:] if argv is None else argv)]
    recipe = {}
    if argv and not argv[0].startswith("-"):
        recipe = run_fields(read_recipe(find_recipe(argv[0])))
        recipe.setdefault("output_dir", f"runs/{Path(argv[0]).stem}")
        argv = argv[1:]
    overrides = pairs(argv)
    start, variant = ((overrides.get(f"--{name}") or [recipe.get(name)])[0] for name in ("start_from", "variant"))
    start_config = None if start is None else read_start_config(start)
    variant = variant or getattr(start_config, "model_type", "unet")
    with about_input():
        config_class = find_variant(variant)[0]
    parser = _parser(config_class)
    parser.set_defaults(variant=variant)
    options = {f"--{name}": texts_of(value, "." in name) for name, value in recipe.items()}
    for name in [name for name in options if overrides.get(name) == ["null"]]:
        del options[name], overrides[name]
    options |= overrides
    _refuse_unknown(options, parser)
    _refuse_several_values(options, parser)
    with about_input():
        arguments, namespace = parser.parse_args_into_dataclasses(
            [text for name, texts in options.items() if texts is not None for text in as_options(name, texts)]
        )
    model = _nested(namespace, "model.")
    _refuse_wrong_types(model, config_class, parser)
    _refuse_wrong_labels(model, parser)
    if start_config is not None:
        model = with_start_fields(model, variant, start_config)
    _refuse_wrong_model(model, config_class)
    loss = _nested(namespace, "loss.") or {"bce": 1.0, "dice": 1.0}
    _refuse_wrong_losses(loss, parser)
    settings = {name.removeprefix("--"): " ".join(texts) for name, texts in options.items() if texts is not None}
    return arguments, model, loss, settings


def _parser(config_class):
    parser = HfArgumentParser(
        RunArguments,
        prog="accelerate launch training/run.py",
        usage="%(prog)s RECIPE.yaml [--any.field value]",
        description="Train a U-Net and score it. Without a recipe, one is planned from --data.",
        allow_abbrev=False,
    )
    help_texts = argument_help(config_class)
    model_options = {"type": value_of, "nargs": "+", "default": argparse.SUPPRESS}
    for name, default in config_fields(config_class).items():
        parser.add_argument(f"--model.{name}", **model_options, help=f"{help_texts.get(name)} (default: {default})")
    loss_options = {"type": value_of, "nargs": "+"}
    for name, function in LOSSES.items():
        parser.add_argument(f"--loss.{name}", **loss_options, help=f"weight of: {function.__doc__.split('.')[0]}")
        help_texts = _documented(function)
        for parameter, default in parameters(name).items():
            help_text = f"{help_texts.get(parameter)} (default: {default:.4g})"
            parser.add_argument(f"--loss.{name}.{parameter}", **loss_options, help=help_text)
    return parser


def argument_help(config_class):
    """The `Args:` of a config class and the classes above it: name to one line."""
    texts = {"num_labels": "classes, the background included."}
    for owner in reversed(config_class.__mro__):
        texts |= _documented(owner)
    return texts


def _documented(owner):
    """The `Args:` of one docstring: name to one line."""
    matches = re.findall(r"^    (\w+): (.+(?:\n {8,}.+)*)", inspect.getdoc(owner) or "", flags=re.MULTILINE)
    return {name: " ".join(line.split()).replace("%", "%%") for name, line in matches}


def _refuse_unknown(options, parser):
    known = list(parser._option_string_actions)
    for name in options:
        if name not in known:
            best = difflib.get_close_matches(name, known, n=1, cutoff=0)
            siblings = [flag.removeprefix("--") for flag in known if flag.startswith(f"{name.rpartition('.')[0]}.")]
            parser.error(
                f"unknown field {name.removeprefix('--')}; did you mean {best[0].removeprefix('--')}?"
                + (f" There are {', '.join(siblings)}." if siblings else "")
            )


def _refuse_several_values(options, parser):
    for name, texts in options.items():
        if texts and len(texts) > 1 and parser._option_string_actions[name].nargs not in ("+", "*"):
            parser.error(f"{name.removeprefix('--')} takes one value, got {' '.join(texts)[:80]}")


def _refuse_wrong_types(model, config_class, parser):
    """A config field whose default is a number, a truth value or a text takes no other; the config checks the rest."""
    defaults = config_fields(config_class)
    for name, value in model.items():
        expected = type(defaults[name])
        if expected in (bool, int, str) and type(value) is not expected:
            parser.error(f"model.{name} must be of type {expected.__name__}, got {value!r}.")


def _refuse_wrong_model(model, config_class):
    """Refuses fields that describe no network, or one that no machine holds."""
    limits = {"depth": DEEPEST, "num_labels": MOST_LABELS, "position_grid": 256}
    for name, value in model.items():
        if isinstance(value, list) and not all(type(number) is int for number in value):
            raise UserError(f"model.{name} must list whole numbers, got {repr(value)[:80]}.")
        for number in value if isinstance(value, list) else [value]:
            limit = limits.get(name, DEEPEST if name.endswith("layers") else WIDEST)
            if isinstance(number, int | float) and not number <= limit:  # NaN, too
                raise UserError(f"model.{name} must be at most {limit}, got {repr(value)[:80]}.")
    try:
        config = config_class(**model)
    except ValueError:
        return  # said where the network is built
    except (TypeError, AttributeError, ArithmeticError) as error:
        fields = ", ".join(f"model.{name}={repr(value)[:80]}" for name, value in model.items())
        raise UserError(f"the network can't be described by {fields}: {error}.") from error
    if config.backbone is None and config.base_channels * 2**config.depth > WIDEST:
        raise UserError(
            f"model.base_channels={config.base_channels} doubles model.depth={config.depth} times, above {WIDEST} "
            "channels: choose fewer."
        )


def _refuse_wrong_labels(model, parser):
    """A config makes its labels fit one another, as a fine-tuning call needs it; a recipe says what it means."""
    names, count = model.get("id2label"), model.get("num_labels")
    name_count = len(names) if isinstance(names, dict) else None
    if None not in (name_count, count) and name_count != count:
        parser.error(f"model.id2label has {name_count} names, model.num_labels is {count}: leave one of them out.")
    labels = next((number for number in (count, name_count) if number is not None), 2)
    if model.get("binary_head") and labels != 2:
        parser.error(f"model.binary_head needs exactly 2 labels, got {labels}: leave it out.")


def _refuse_wrong_losses(loss, parser):
    try:
        WeightedSum(loss)
    except ValueError as error:
        parser.error(str(error))


def _nested(namespace, prefix):
    nested = {}
    for name, values in vars(namespace).items():
        if name.startswith(prefix) and values is not None:
            nested[name.removeprefix(prefix)] = values[0] if len(values) == 1 else values
    return nested
