"""A plan for a run without a recipe: OUTPUT_DIR/plan.yaml, an ordinary recipe, made once and kept."""

import contextlib
import io
import itertools
import json
import re
import tempfile
from pathlib import Path

import datasets
from accelerate import PartialState

from hub_unets.training.data.partition import PARTS, make_partition, published_names
from hub_unets.training.data.reading import BOUNDARY, check_boundary_width
from hub_unets.training.data.sources import load_source
from hub_unets.training.errors import UserError
from hub_unets.training.fit.checkpoints import SETTINGS
from hub_unets.training.fit.losses import WeightedSum
from hub_unets.training.plan.decide import Facts, compose, smaller_size, wanted_batch, wanted_size
from hub_unets.training.plan.encoders import choose_encoder
from hub_unets.training.plan.fingerprint import take_fingerprint
from hub_unets.training.plan.hardware import look_at_hardware
from hub_unets.training.plan.recipe import given_fields
from hub_unets.training.plan.trial import try_steps
from hub_unets.training.settings.arguments import parse
from hub_unets.training.settings.publishable import without_folders
from hub_unets.training.settings.texts import pairs

PLAN = "plan.yaml"
PLANNED_AROUND = ("--model.backbone", "--model.num_labels", "--model.id2label")  # other fields are a network's own
NOT_PLANNED = ("--help", "--check_data", "--start_from", "--variant")
TRIAL_SAMPLES = 8


def is_planned(argv):
    """Whether a command line leaves the recipe to a plan.

    It does where it names no recipe, no checkpoint to start from and no network: neither `variant` nor a field of
    `model` but the backbone and the labels.
    """
    if "-h" in argv or (argv and not argv[0].startswith("-")):
        return False
    names = pairs(argv).keys()
    own = [name for name in names if name.startswith("--model.") and name not in PLANNED_AROUND]
    return not own and not names & set(NOT_PLANNED)


def require_planned(argv):
    """Raise UserError where a plan alone is asked for, and there is nothing to plan."""
    options = itertools.dropwhile(lambda text: not text.startswith("--"), argv)
    if pairs(options).get("--plan_only", ["false"])[-1:] != ["false"]:
        raise UserError(
            "plan_only is for a command without a recipe: a recipe, start_from, variant and model.* leave nothing to "
            "plan."
        )


def plan_of(argv, prepare):
    """The recipe of a command line that `is_planned`: the one in its output folder, or a new one, which is printed.

    Args:
        argv: the command line.
        prepare: RunArguments, model fields, rows and their images' sha256 to a model with its weights and
            TrainingSamples.

    Returns:
        (path of the recipe, folder of the run).

    Raises:
        UserError: the data can't be trained on, the weights are not there, not even one image fits into memory, or
            the folder's run or plan is another one.
    """
    arguments = parse(argv)[0]
    given = given_fields(pairs(argv))
    folder = Path(arguments.output_dir if "--output_dir" in pairs(argv) else f"runs/{_name_of(arguments.data)}")
    path = folder / PLAN
    if PartialState().is_main_process:
        if (folder / SETTINGS).exists() and not path.exists():
            raise UserError(f"output_dir {folder} holds a run without a plan: name its recipe, or choose another.")
        rows, everything = make_partition(_source(arguments, given), "all")
        if path.exists():
            _require_same(path, arguments, given, everything.files_sha256)
            print(f"Plan: {path}, as it is.")
        else:
            make_plan(path, argv, arguments, given, prepare, everything.files_sha256)
    PartialState().wait_for_everyone()
    return path, folder


def make_plan(path, argv, arguments, given, prepare, files_sha256):
    """Look, decide, try, and write the plan; prints its decisions, one a line."""
    source = _source(arguments, given)
    split, reason = (arguments.split, "given") if "split" in given else _split_of(source)
    rows, partition = make_partition(source, split, arguments.split_seed)
    labels = _labels_given(given)
    check_boundary_width(arguments.boundary_width, labels)
    found = take_fingerprint(rows, labels, arguments.boundary_width)
    hardware = look_at_hardware(arguments)
    weights_given = "backbone_weights" in given
    encoder = choose_encoder(arguments.backbone_weights, weights_given, hardware.device, given.get("model.backbone"))
    sizes = {part: len(getattr(partition, part)[: arguments.max_samples]) for part in PARTS}
    parted = _parted(found.alike, partition)
    facts = Facts(arguments.data, found, split, reason, sizes, parted, hardware, encoder, given)
    size = given.get("image_size") or wanted_size(facts)
    trial = _try(facts, size, argv, prepare, rows, partition)
    if "image_size" not in given and (smaller := smaller_size(facts, size, trial)) < size:
        size, trial = smaller, _try(facts, smaller, argv, prepare, rows, partition)
    recipe = compose(facts, size, trial)
    _write(path, recipe.as_yaml(_head(arguments.data, given, files_sha256, path)))
    print(f"Plan, with a reason for each number: {path}")
    print("\n".join(line.replace("PLAN", str(path)) for line in recipe.lines()), flush=True)
    if arguments.plan_only:
        print("Repeat the command without --plan-only to train by it.")


def _try(facts, size, argv, prepare, rows, partition):
    """The Trial of the recipe at this size, parsed as a run parses it."""
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder, PLAN)
        draft.write_text(compose(facts, size).as_yaml(), encoding="utf-8")
        arguments, model_fields, loss_weights, _ = parse([str(draft), *argv])
    chosen = _with_foreground(rows, partition.train)
    digests = [partition.digests[index] for index in chosen]
    with contextlib.redirect_stdout(io.StringIO()), _no_bars():
        model, samples = prepare(arguments, model_fields, rows.select(chosen), digests)
    loss, batch = WeightedSum(loss_weights), wanted_batch(facts)
    return try_steps(model, samples, loss, arguments, batch, facts.hardware.memory)


def _with_foreground(rows, indices):
    """The first few of some rows, by the size of their masks' files: an empty mask's is the smallest."""
    masks = rows.select(indices)["annotation"]
    sizes = [len(mask["bytes"]) if mask["bytes"] is not None else Path(mask["path"]).stat().st_size for mask in masks]
    return sorted(sorted(indices, key=dict(zip(indices, sizes, strict=True)).get)[-TRIAL_SAMPLES:])


def _split_of(source):
    """(split, why): the source's parts, the published list of the same images, or one drawn here."""
    if {"train", "test"} <= set(source):
        return "own", "the data's own parts"
    if len(source) > 1:
        raise UserError(
            f"the data have the parts {', '.join(sorted(source))}, and a plan keeps parts that have train and test: "
            "call the part that is scored last test (validation is then cut from train), or name --split, which draws "
            "its own parts from all images."
        )
    names = [name for part in source.values() for name in part["name"]]
    if set(names) == {name for part in ("official_train", "official_val") for name in published_names(part)}:
        return "official", "the images are Kvasir-SEG's, whose papers report on it"
    return "80/10/10", "drawn by seed, twins and sequences on one side"


def _parted(alike, partition):
    """The pairs of names that look the same and are in different parts."""
    part_of = {name: part for part in PARTS for name in partition.names_of(part)}
    return tuple(pair for pair in alike if len({part_of.get(name) for name in pair}) > 1)


def _source(arguments, given):
    id2label = given.get("model.id2label")
    return load_source(arguments.data, arguments.image_column, arguments.mask_column, id2label)


def _labels_given(given):
    """The number of labels that the options ask for; None where the masks decide."""
    names = given.get("model.id2label")
    boundary = BOUNDARY + 1 if "boundary_width" in given else None
    return given.get("model.num_labels") or (len(names) if names else boundary)


def _name_of(data):
    """A folder's name for a run on these data."""
    return re.sub(r"[^\w.-]+", "-", Path(data.partition("?")[0].rstrip("/\\")).stem) or "data"


def _head(data, given, files_sha256, path):
    return [
        f"A plan for {without_folders(data)}, made by hub-unets train. A recipe: edit it and repeat the command,",
        f"or train it elsewhere with hub-unets train {path.name}.",
        f"given: {json.dumps(given, sort_keys=True, default=str)}",
        f"files_sha256: {files_sha256}",
    ]


def _require_same(path, arguments, given, files_sha256):
    """Raise UserError where a plan was made for other options, or for other data."""
    text = path.read_text(encoding="utf-8")
    lines = dict(re.findall(r"^# (given|files_sha256): (.*)$", text, flags=re.MULTILINE))
    cure = f"remove {path} to plan anew, choose another output_dir, or train it as it is: hub-unets train {path}"
    now = json.dumps(given, sort_keys=True, default=str)
    if lines.get("given", now) != now:
        raise UserError(f"{path} was made for other options, {lines['given']}, not {now}: {cure}.")
    if lines.get("files_sha256", files_sha256) != files_sha256:
        raise UserError(f"{path} was made before the data in {arguments.data} changed: {cure}.")


def _write(path, text):
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


@contextlib.contextmanager
def _no_bars():
    were_off = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not were_off:
            datasets.enable_progress_bars()
