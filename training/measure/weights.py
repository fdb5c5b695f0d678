"""The tensors of a file of safetensors, and a model of ours that takes all of its weights from one."""

import stat
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hub_unets.training.errors import UserError, about_input

FLOATS = {"F16", "BF16", "F32", "F64"}
HALVES = {"F16": torch.float16, "BF16": torch.bfloat16}
CURE = "copy or download it again"


def read_shapes(path):
    """{name: (dtype, shape)} of a file of safetensors, from its header, as in ("F32", (64, 3, 3, 3)).

    Raises:
        UserError: the file is damaged: no header, or tensors that overlap, leave gaps or do not end with the file.
    """
    try:
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: (tensor.get_dtype(), tuple(tensor.get_shape())) for name, tensor in slices.items()}
    except (SafetensorError, OverflowError) as error:
        raise UserError(f"{path} is damaged: {str(error)[:300]}; {CURE}.") from error


def load_weights(model_class, folder):
    """A model of one of our classes, in eval mode, every weight of it from the folder's model.safetensors.

    Raises:
        UserError: the file is damaged, or its tensors are not those of the network that config.json describes.
    """
    path = Path(folder) / "model.safetensors"
    if path.is_file():
        require_floats(path)
    with about_input():
        model, info = model_class.from_pretrained(folder, output_loading_info=True, ignore_mismatched_sizes=True)
    for name in sorted(info["missing_keys"]):
        raise UserError(f"{path} is damaged, or not of this config.json: tensor {name!r} is missing; {CURE}.")
    for name, shape, expected in sorted(info["mismatched_keys"], key=str):
        shapes = f"{tuple(shape)}, the network takes {tuple(expected)}"
        raise UserError(f"{path} is damaged, or not of this config.json: tensor {name!r} is {shapes}; {CURE}.")
    return model.eval()


def require_floats(path):
    """Raise UserError unless every tensor is of floats, a batch norm's counter or a table of whole numbers."""
    for name, (dtype, _) in read_shapes(path).items():
        if dtype not in FLOATS | {"I64", "BOOL"}:
            raise UserError(f"{path} is damaged: tensor {name!r} is of {dtype}; {CURE}.")


def save_tensors(tensors, path):
    """Write {name: tensor} as a file of safetensors, which whoever may read its neighbours can read."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    as_any_new_file(path)


def as_any_new_file(path):
    """Give a file the mode of any new file in its folder: safetensors 0.8 writes for its owner alone."""
    path = Path(path)
    fresh = path.with_name(f".{path.name}.mode")
    fresh.touch()
    path.chmod(stat.S_IMODE(fresh.stat().st_mode))
    fresh.unlink()


def save_readable(model, folder):
    """`save_pretrained`, its weights with the mode of any new file."""
    model.save_pretrained(folder)
    for path in Path(folder).glob("*.safetensors"):
        as_any_new_file(path)


def save_as_stored(model, checkpoint, folder):
    """Save a float32 model whose tensors a checkpoint's file holds, each in the precision that it has there.

    The config asks for float32 in any case: half precision makes the file smaller, and is not computed in.
    """
    save_readable(model, folder)
    shapes = read_shapes(Path(checkpoint) / "model.safetensors")
    halves = {name: HALVES[dtype] for name, (dtype, _) in shapes.items() if dtype in HALVES}
    if halves:
        state = model.state_dict()
        tensors = {name: tensor.to(halves.get(name, tensor.dtype)) for name, tensor in state.items()}
        save_tensors(tensors, Path(folder) / "model.safetensors")
