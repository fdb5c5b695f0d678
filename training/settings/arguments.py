"""What a recipe may say: transformers' TrainingArguments, and the fields that only segmentation has.

A recipe is YAML with flat keys, but for `model:` (fields of the variant's config) and `loss:` (weights of losses, and
their parameters: `{dice: 0.5, focal: 0.5, focal.gamma: 3}`); the command line takes the same names, dotted:
`--model.backbone resnet50 --loss.dice 0.5 --loss.focal.gamma 3`. A recipe may stand on another one, `recipe:
unet_mobilenetv2`, and name what it changes. `grid:` or `space:`, `trials` and `rank_within` are for training/sweep.py.
"""

import argparse
import difflib
import inspect
import json
import re
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments

from hub_unets.modeling.variants import config_fields, find_variant
from hub_unets.training.errors import UserError, about_input
from hub_unets.training.fit.losses import LOSSES, WeightedSum, parameters
from hub_unets.training.fit.start import read_start_config, with_start_fields
from hub_unets.training.settings.recipes import find_recipe, read_recipe, run_fields
from hub_unets.training.settings.trainer_fields import check_trainer_fields

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
WIDEST, DEEPEST, MOST_LABELS = 8192, 64, 255  # label 255 is for pixels to be ignored
LARGEST_SIZE = 16_384  # pixels


@dataclass
class RunArguments(TrainingArguments):
    """One run: data, network, training."""

    output_dir: str | None = field(
        default=None, metadata={"help": "Folder of the run; repeating the command resumes it. Default: runs/RECIPE."}
    )
    variant: str = field(default="unet", metadata={"help": "model_type of the network, as in modeling/modeling_*.py."})
    data: str = field(
        default="phantoms",
        metadata={"help": "Folder, zip, COCO or parquet file, Hub id, or phantoms?count=240&size=256&seed=0."},
    )
    image_column: str | None = field(
        default=None, metadata={"help": "Column (or sub-folder) of the images, where it can't be told by itself."}
    )
    mask_column: str | None = field(
        default=None, metadata={"help": "Column (or sub-folder) of the masks, where it can't be told by itself."}
    )
    split: str = field(
        default="80/10/10",
        metadata={
            "help": "official, official-halved, pranet, 80/10/10, half-validation, or own (the source's parts)."
        },
    )
    split_seed: int = field(default=42, metadata={"help": "Seed of the split, apart from the training seed."})
    max_samples: int | None = field(
        default=None, metadata={"help": "Keep at most this many images of each part; for a quick trial."}
    )
    negatives: str | None = field(
        default=None, metadata={"help": "Folder of frames without a polyp, each of which an epoch shows too."}
    )
    teacher: list[str] = field(
        default=None,
        metadata={
            "help": "Models (folders or Hub ids, ID@REVISION) whose mean probability for the same augmented pixels is "
            "a second target: distillation."
        },
    )
    teacher_weight: float = field(
        default=1.0, metadata={"help": "Weight of the cross-entropy with the teacher, beside the losses' own."}
    )
    teacher_flips: bool = field(
        default=False, metadata={"help": "Of each teacher the mean logits of each sample and its three mirror images."}
    )
    unlabelled: str | None = field(
        default=None,
        metadata={"help": "Folder of frames without masks, each of which an epoch shows for the teacher."},
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run the code that comes with a teacher that is not of this project."}
    )
    check_data: bool = field(
        default=False, metadata={"help": "Report sizes, masks, bad pairs and leaks, and train nothing."}
    )
    boundary_width: int | None = field(
        default=None,
        metadata={
            "help": "Makes label 2 of 3 from black and white masks: the polyp's pixels at most so many pixels, of the "
            "stored mask, from background."
        },
    )
    image_size: int = field(default=256, metadata={"help": "Side in pixels that images are resized to."})
    train_size: int | None = field(
        default=None,
        metadata={
            "help": "Side of the training samples; the default is image_size. A little smaller costs less and, where "
            "augmentation enlarges, is better: Touvron et al. 2019, arXiv:1906.06423."
        },
    )
    image_mean: list[float] = field(
        default_factory=lambda: [0.485, 0.456, 0.406], metadata={"help": "Mean of each channel, of pixels in 0..1."}
    )
    image_std: list[float] = field(
        default_factory=lambda: [0.229, 0.224, 0.225], metadata={"help": "Deviation of each channel."}
    )
    augmentation: str = field(
        default="[]", metadata={"help": "YAML list of albumentations transforms, [{HorizontalFlip: {p: 0.5}}]."}
    )
    copies: int = field(
        default=1, metadata={"help": "How often an epoch shows each training image, augmented anew each time."}
    )
    backbone_weights: str = field(
        default="timm",
        metadata={"help": "ImageNet weights: timm (its Hub), a file, a folder of BACKBONE.safetensors, or none."},
    )
    start_from: str | None = field(
        default=None,
        metadata={
            "help": "Checkpoint of this project to go on from, a folder or Hub id (ID@REVISION), in place of "
            "backbone_weights; its network where variant and model.* are left out. Weights that do not fit, as of a "
            "head for other classes, are drawn anew."
        },
    )
    encoder_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the encoder; the default is learning_rate."}
    )
    ema_decay: float | None = field(
        default=None, metadata={"help": "Decay a step of the weights' moving average, which is then what is scored."}
    )
    average_last: int | None = field(
        default=None,
        metadata={
            "help": "Publish the mean of the weights (of their moving average, where there is one) after each of the "
            "last so many epochs, not the best epoch's."
        },
    )
    calibrate: bool = field(
        default=False,
        metadata={
            "help": "After training fit a temperature, which the head keeps, and the threshold, which the processor "
            "keeps, on validation."
        },
    )
    half_precision: bool = field(
        default=False,
        metadata={"help": "Round the weights to float16, and store them so, before they are scored."},
    )
    score_test: bool = field(
        default=True,
        metadata={"help": "Score the test part at the end; false leaves it unseen where a choice is made."},
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after this many evaluations without a higher validation Dice."}
    )
    precision: str = field(
        default="auto",
        metadata={"help": f"{', '.join(PRECISIONS)}; auto is bf16 where the hardware has it, else fp16 on CUDA."},
    )
    per_device_eval_batch_size: int = field(default=8, metadata={"help": "Images a batch in validation."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to validate; a checkpoint follows each time."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save further checkpoints: epoch or steps."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between two log lines."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Kept off: it would hide a diverging loss."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Kept off: samples are made on the fly."})
    metric_for_best_model: str = field(
        default="dice",
        metadata={"help": "The validation Dice per image at original size decides which epoch is kept."},
    )
    greater_is_better: bool = field(
        default=True, metadata={"help": "A higher Dice is better; a tie keeps the earlier."}
    )

    def __post_init__(self):
        check_trainer_fields(self)
        if self.precision not in PRECISIONS:
            raise UserError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}.")
        for name in ("image_size", "train_size"):
            if (size := getattr(self, name)) is not None and not 1 <= size <= LARGEST_SIZE:
                raise UserError(f"{name} must lie between 1 and {LARGEST_SIZE}, got {size}.")
        try:
            yaml.safe_load(self.augmentation)
        except Exception as error:  # of YAML; ValueError of its dates and numbers, and more
            raise UserError(f"augmentation is not YAML: {error}") from error
        if self.copies < 1:
            raise UserError(f"copies must be at least 1, got {self.copies}.")
        if self.start_from is not None and self.backbone_weights not in ("timm", "none"):
            raise UserError(
                "start_from gives the encoder its weights, too: leave backbone_weights out, got "
                f"{self.backbone_weights!r}."
            )
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise UserError(f"ema_decay must lie between 0 and 1, got {self.ema_decay}.")
        if self.average_last is not None and self.average_last < 1:
            raise UserError(f"average_last must be at least 1, got {self.average_last}.")
        if self.unlabelled is not None and not self.teacher:
            raise UserError("unlabelled frames teach nothing by themselves: name a teacher too, or leave them out.")
        if self.teacher_weight <= 0:
            raise UserError(f"teacher_weight must be above 0, got {self.teacher_weight}.")
        if not (torch.cuda.is_available() or torch.backends.mps.is_available() or _is_xpu_available()):
            self.use_cpu = True
        precision = default_precision(self.use_cpu) if self.precision == "auto" else self.precision
        asked = self.bf16, self.fp16
        self.bf16, self.fp16 = precision == "bf16", precision == "fp16"
        if any(asked) and asked != (self.bf16, self.fp16):
            raise UserError(f"bf16 and fp16 follow from precision, {precision} here: set precision alone.")
        if self.use_cpu:
            self.dataloader_pin_memory = False
        if isinstance(self.lr_scheduler_kwargs, str):
            self.lr_scheduler_kwargs = _mapping("lr_scheduler_kwargs", self.lr_scheduler_kwargs)
        super().__post_init__()


def default_precision(use_cpu):
    """bf16 where the hardware computes in it, fp16 on other CUDA devices, else fp32."""
    if not use_cpu and torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if use_cpu and torch.cpu._is_avx512_bf16_supported() else "fp32"


def _is_xpu_available():
    return hasattr(torch, "xpu") and torch.xpu.is_available()


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
    given = {f"--{name}": texts_of(value, "." in name) for name, value in recipe.items()}
    for name in [name for name in given if overrides.get(name) == ["null"]]:
        del given[name], overrides[name]
    given |= overrides
    _refuse_unknown(given, parser)
    _refuse_several_values(given, parser)
    with about_input():
        arguments, namespace = parser.parse_args_into_dataclasses(
            [text for name, texts in given.items() if texts is not None for text in _as_options(name, texts)]
        )
    model = _nested(namespace, "model.")
    _refuse_wrong_types(model, config_class, parser)
    _refuse_wrong_labels(model, parser)
    if start_config is not None:
        model = with_start_fields(model, variant, start_config)
    _refuse_wrong_model(model, config_class)
    loss = _nested(namespace, "loss.") or {"bce": 1.0, "dice": 1.0}
    _refuse_wrong_losses(loss, parser)
    settings = {name.removeprefix("--"): " ".join(texts) for name, texts in given.items() if texts is not None}
    return arguments, model, loss, settings


def _parser(config_class):
    parser = HfArgumentParser(
        RunArguments,
        prog="accelerate launch training/run.py",
        usage="%(prog)s RECIPE.yaml [--any.field value]",
        description="Train a U-Net, score it, and build its Hub repository.",
        allow_abbrev=False,
    )
    documented = argument_help(config_class)
    nested = {"type": value_of, "nargs": "+", "default": argparse.SUPPRESS}
    for name, default in config_fields(config_class).items():
        parser.add_argument(f"--model.{name}", **nested, help=f"{documented.get(name)} (default: {default})")
    number = {"type": value_of, "nargs": "+"}
    for name, function in LOSSES.items():
        parser.add_argument(f"--loss.{name}", **number, help=f"weight of: {function.__doc__.split('.')[0]}")
        documented = _documented(function)
        for parameter, default in parameters(name).items():
            explained = f"{documented.get(parameter)} (default: {default:.4g})"
            parser.add_argument(f"--loss.{name}.{parameter}", **number, help=explained)
    return parser


def argument_help(config_class):
    """The `Args:` of a config class and the classes above it: name to one line."""
    documented = {"num_labels": "classes, the background included."}
    for owner in reversed(config_class.__mro__):
        documented |= _documented(owner)
    return documented


def _documented(owner):
    """The `Args:` of one docstring: name to one line."""
    found = re.findall(r"^    (\w+): (.+(?:\n {8,}.+)*)", inspect.getdoc(owner) or "", flags=re.MULTILINE)
    return {name: " ".join(line.split()).replace("%", "%%") for name, line in found}


def pairs(argv):
    """--name value [value ...] or --name=value to {"--name": [values]}; the last of a name wins."""
    found, name = {}, None
    for text in argv:
        if text.startswith("--"):
            name, equals, value = text.partition("=")
            name = f"--{name[2:].replace('-', '_')}"
            found[name] = [value] if equals else []
        elif name is None:
            raise UserError(f"unexpected {text!r}: a recipe comes first, then --name value.")
        else:
            found[name].append(text)
    return found


def texts_of(value, nested):
    """A YAML value as command-line texts; None leaves the default. A nested list is one text: it may hold one item."""
    if value is None:
        return None
    if value and isinstance(value, list) and not nested and all(isinstance(one, (int, float, str)) for one in value):
        return [str(item) for item in value]
    return [json.dumps(value) if isinstance(value, (list, dict)) else str(value)]


def _as_options(name, texts):
    """One value joined to its name, so that one like --this is none of the command's own names."""
    return [f"{name}={texts[0]}"] if len(texts) == 1 else [name, *texts]


def value_of(text):
    """Command-line text as YAML reads it, and 1e-4 as the number it is."""
    try:
        return float(text) if re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", text) else yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _mapping(name, text):
    """Command-line text as a mapping of names to values, each read as `value_of` does."""
    mapping = value_of(text)
    if not isinstance(mapping, dict):
        raise UserError(f"{name} must map names to values, as in '{{factor: 0.5, patience: 3}}', got {text!r}.")
    return {key: value_of(str(value)) for key, value in mapping.items()}


def _refuse_unknown(given, parser):
    known = list(parser._option_string_actions)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0)
            beside = [one.removeprefix("--") for one in known if one.startswith(f"{name.rpartition('.')[0]}.")]
            parser.error(
                f"unknown field {name.removeprefix('--')}; did you mean {near[0].removeprefix('--')}?"
                + (f" There are {', '.join(beside)}." if beside else "")
            )


def _refuse_several_values(given, parser):
    for name, texts in given.items():
        if texts and len(texts) > 1 and parser._option_string_actions[name].nargs not in ("+", "*"):
            parser.error(f"{name.removeprefix('--')} takes one value, got {' '.join(texts)[:80]}")


def _refuse_wrong_types(model, config_class, parser):
    """A config field whose default is a number, a truth value or a text takes no other; the config checks the rest."""
    defaults = config_fields(config_class)
    for name, value in model.items():
        wanted = type(defaults[name])
        if wanted in (bool, int, str) and type(value) is not wanted:
            parser.error(f"model.{name} must be of type {wanted.__name__}, got {value!r}.")


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
    named = len(names) if isinstance(names, dict) else None
    if None not in (named, count) and named != count:
        parser.error(f"model.id2label has {named} names, model.num_labels is {count}: leave one of them out.")
    labels = next((number for number in (count, named) if number is not None), 2)
    if model.get("binary_head") and labels != 2:
        parser.error(f"model.binary_head needs exactly 2 labels, got {labels}: leave it out.")


def _refuse_wrong_losses(loss, parser):
    try:
        WeightedSum(loss)
    except ValueError as error:
        parser.error(str(error))


def _nested(namespace, prefix):
    found = {}
    for name, values in vars(namespace).items():
        if name.startswith(prefix) and values is not None:
            found[name.removeprefix(prefix)] = values[0] if len(values) == 1 else values
    return found


def default_settings():
    """The default of every field of RunArguments that has one."""
    return {one.name: one.default for one in fields(RunArguments)}
