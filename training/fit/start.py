"""A checkpoint of this project to go on from: in a folder or on the Hub, with other classes, size or variant.

Of it only config.json and model.safetensors are read: no code and no pickle.
"""

import json
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import adapt_input_conv

from hub_unets.modeling.variants import config_fields, find_variant, variant_names
from hub_unets.training.errors import UserError, first_line

CONFIG, WEIGHTS = "config.json", "model.safetensors"
ENCODER_FIELDS = ("num_channels", "backbone", "base_channels", "depth", "padding", "batch_norm", "detail_channels")
LABEL_FIELDS = ("num_labels", "id2label", "binary_head")


class Start(NamedTuple):
    """What a run started from.

    Attributes:
        repo_id, commit: on the Hub; None of a folder.
        summary: one line on what was loaded and what was drawn anew.
    """

    repo_id: str | None
    commit: str | None
    summary: str

    @property
    def record(self):
        """As results.json holds it; None of a folder, which means nothing elsewhere."""
        return {"repo_id": self.repo_id, "commit": self.commit} if self.commit else None


def read_start_config(source):
    """The config of a checkpoint: a folder, or a Hub id with or without @REVISION.

    Raises:
        OSError: neither a folder nor on the Hub.
        UserError: config.json is missing, or is none of this project's.
    """
    return _config_of(_find(source, CONFIG)[0], source)


def _config_of(path, source):
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON or UTF-8
        raise UserError(f"start_from: {CONFIG} of {source} is not JSON: {error}") from error
    model_type = fields.get("model_type") if isinstance(fields, dict) else None
    if model_type not in variant_names():
        raise UserError(
            f"start_from: {source} holds a network of type {str(model_type)[:80]!r}; it must be a checkpoint of one "
            f"of {', '.join(variant_names())}."
        )
    config_class, _ = find_variant(model_type)
    try:
        return config_class(**{name: fields[name] for name in config_fields(config_class) if name in fields})
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"start_from: {CONFIG} of {source}: {error}") from error


def with_start_fields(model_fields, variant, config):
    """The fields of a network that starts from a checkpoint: `model_fields`, and for the others the checkpoint's.

    Args:
        model_fields: the `model:` fields of recipe and command line.
        variant: the network's; where it is not the checkpoint's, only fields of encoder and labels are taken over.
        config: the checkpoint's.
    """
    network_fields = [name for name in config_fields(type(config)) if name not in LABEL_FIELDS]
    names = network_fields if variant == config.model_type else ENCODER_FIELDS

    fields = {name: getattr(config, name) for name in names} | model_fields
    count = len(fields["id2label"]) if "id2label" in fields else fields.get("num_labels", config.num_labels)
    if count == config.num_labels:
        fields = {"id2label": config.id2label, "binary_head": config.binary_head} | fields
    return fields


def load_start(model, source):
    """Copy a checkpoint's weights into a model where names and shapes fit; of another variant, the encoder's alone.

    Args:
        model: one of our models; what does not fit stays as it was drawn.
        source: a folder, or a Hub id with or without @REVISION.

    Returns:
        Start.

    Raises:
        OSError: neither a folder nor on the Hub.
        UserError: files that are missing or broken, another backbone, or an encoder of which nothing fits.
    """
    path, repo_id, commit = _find(source, CONFIG)
    start, config = _config_of(path, source), model.config
    path, *_ = _find(f"{repo_id}@{commit}" if commit else source, WEIGHTS)
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise UserError(f"start_from: {WEIGHTS} of {source} is not a safetensors file: {error}") from error
    state = model.state_dict()
    stems = _adapted_stems(weights, state, start.num_channels, config.num_channels)
    weights |= stems
    parts = ("encoder.", "decoder.", "head.") if start.model_type == config.model_type else ("encoder.",)
    fitting = {
        name: tensor
        for name, tensor in weights.items()
        if name in state and tensor.shape == state[name].shape and name.startswith(parts)
    }
    differences = _differences(config, start)
    if _backbone(config) != _backbone(start) or not any(
        name.startswith("encoder.") and tensor.dim() > 1 for name, tensor in fitting.items()
    ):
        raise UserError(
            f"start_from: the encoder of {source} ({_described(start)}) is not that of this run "
            f"({_described(config)}): {differences}. Leave these fields out, and the checkpoint's are taken."
        )
    model.load_state_dict(fitting, strict=False)
    summary = _summary(source, commit, state, fitting, differences)
    if stems:
        summary += f" The weights for {config.num_channels} channels are made of those for {start.num_channels}."
    return Start(repo_id, commit, summary)


def _adapted_stems(weights, state, there, here):
    """The convolutions that see the image, {name: tensor}, for other channels than RGB, as timm's `in_chans` does."""
    if there != 3 or here == there:
        return {}
    return {
        name: adapt_input_conv(here, tensor)
        for name, tensor in weights.items()
        if name in state and tensor.dim() == 4 and tensor.shape[1] == there
        and state[name].shape == (len(tensor), here, *tensor.shape[2:])
    }  # fmt: skip


def _find(source, name):
    """A checkpoint's file: (path, repo id, commit), the last two None in a folder."""
    if Path(source).is_dir():
        if not Path(source, name).is_file():
            raise UserError(_missing(source, name))
        return Path(source, name), None, None
    repo_id, _, revision = source.partition("@")
    try:
        path = Path(hf_hub_download(repo_id, name, revision=revision or None))
    except RemoteEntryNotFoundError as error:
        raise UserError(_missing(source, name)) from error
    except (OSError, ValueError) as error:  # the client's own are of both
        message = f"start_from: {source} is no folder, and the Hub does not give it ({first_line(error)})"
        raise OSError(message) from error
    return path, repo_id, path.parent.name  # the client's cache: snapshots/COMMIT/NAME


def _missing(source, name):
    return (
        f"start_from: {source} has no {name}: it must be a run's folder, one of its checkpoints, or a repository. "
        "Pickles (.bin, .pth) can run code and are not read."
    )


def _backbone(config):
    """timm's name without the tag of its weights."""
    return config.backbone and config.backbone.partition(".")[0]


def _described(config):
    return f"{config.model_type}, {config.backbone or f'plain, {config.base_channels} channels'}"


def _differences(config, start):
    """Where the configs of two networks differ, as text."""
    names = [name for name in config_fields(type(config)) if name not in ("id2label", "binary_head")]
    pairs = [("variant", config.model_type, start.model_type)] + [
        (f"model.{name}", getattr(config, name), getattr(start, name)) for name in names if hasattr(start, name)
    ]
    if config.num_labels == start.num_labels:
        pairs.append(("model.binary_head", config.binary_head, start.binary_head))
    return ", ".join(f"{name} is {value} here and {other} there" for name, value, other in pairs if value != other)


def _summary(source, commit, state, fitting, differences):
    counts = []
    for part in ("encoder", "decoder", "head"):
        loaded, total = (sum(name.startswith(f"{part}.") for name in names) for names in (fitting, state))
        counts.append(f"{part} {loaded} of {total} tensors")
    lacking = f"; the others are drawn anew: {differences or 'the file lacks them'}"
    reason = lacking if len(fitting) < len(state) else ""

    return f"Started from {source}{f', commit {commit}' if commit else ''}: {', '.join(counts)}{reason}."
