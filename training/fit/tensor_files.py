"""The tensors of a checkpoint of anyone's, read without running its code."""

import argparse
import pickle
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from hub_unets.training.errors import UserError, first_line


def read_tensors(path):
    """{dotted name: tensor} of a file, on the CPU; names of nested dicts are joined, `state_dict.layer1.0.weight`.

    Args:
        path: a .safetensors, or a torch file of tensors in any depth of dicts; what else is in it is left out.

    Raises:
        UserError: the file is damaged, holds no tensor, or would have to run code.
    """
    try:
        content = load_file(path) if Path(path).suffix == ".safetensors" else _load_torch(path)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is no file of tensors alone, and code is not run: where you trust it, load it with torch and "
            "save its state_dict() with safetensors.torch.save_file."
        ) from error
    except (SafetensorError, RuntimeError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged, or no file of tensors: {first_line(error)}") from error
    tensors = dict(_flattened(content))
    if not tensors:
        raise UserError(f"{path} holds no tensor: give a file of a network's state_dict().")
    return tensors


def _load_torch(path):
    with torch.serialization.safe_globals([argparse.Namespace]):  # a training script's arguments stand beside weights
        return torch.load(path, map_location="cpu", weights_only=True)


def _flattened(content, prefix=""):
    if isinstance(content, torch.Tensor):
        yield prefix.removesuffix("."), content
    elif isinstance(content, dict):
        for name, value in content.items():
            yield from _flattened(value, f"{prefix}{name}.")


def subtrees(tensors, least):
    """{prefix: {name without it: tensor}} of the prefixes whose float tensors hold at least `least` values.

    The empty prefix, the whole file, comes first; a wrapper's, as `teacher.backbone.`, later.
    """
    counts = {}
    for name, tensor in tensors.items():
        parts = name.split(".")
        for length in range(len(parts)):
            prefix = "".join(f"{part}." for part in parts[:length])
            counts[prefix] = counts.get(prefix, 0) + tensor.numel() * tensor.is_floating_point()
    prefixes = sorted((prefix for prefix, count in counts.items() if count >= least), key=len)
    return {
        prefix: {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        for prefix in prefixes
    }
