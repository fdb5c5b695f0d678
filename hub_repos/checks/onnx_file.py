"""Whether model.onnx is the network that the weights are: compared with a fresh export, and never run."""

import numpy as np
import torch

from hub_unets.hub_repos.checks.untrusted import open_file
from hub_unets.hub_repos.repository.export import ONNX, load_network, require_export, to_onnx
from hub_unets.training.errors import UserError

EXTRA_BYTES = 8_000_000  # the graph, and tables such as Swin's that the weights hold in a shorter form
EXTRA_SHARE = 1.25
TOLERANCE = 1e-5  # of a tensor's largest number: a norm that is folded into a convolution rounds with the processor


def check_onnx(folder):
    """model.onnx has the graph of a fresh export of the folder's weights, operator by operator, and its numbers.

    The export is the same byte for byte with one version of torch; another version may write another graph.

    Raises:
        UserError: it has not, or the packages that read it are not installed.
    """
    require_export()
    content, fresh = _read(folder), to_onnx(load_network(folder))
    if content == fresh:
        return "byte for byte what the weights give"
    compare_onnx(content, fresh)
    return "the graph of the weights; numbers differ by rounding"


def _read(folder):
    """The file's bytes, unless it is far larger than the weights that it holds."""
    limit = EXTRA_SHARE * (folder / "model.safetensors").stat().st_size + EXTRA_BYTES
    with open_file(folder / ONNX) as file:
        content = file.read(int(limit) + 1)
    if len(content) > limit:
        raise UserError(f"{ONNX} is larger than {int(limit)} bytes, and model.safetensors does not account for it")
    return content


def compare_onnx(content, fresh):
    """Raise UserError unless two ONNX files differ in nothing but the rounding of the weights.

    Args:
        content: bytes of the file to judge.
        fresh: bytes of the file that it must be.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        theirs = onnx.load_model_from_string(content)
    except DecodeError as error:
        raise UserError(f"{ONNX} is damaged: {error}") from error
    ours = onnx.load_model_from_string(fresh)
    _compare_nodes(theirs.graph.node, ours.graph.node)
    if [one.name for one in theirs.graph.initializer] != [one.name for one in ours.graph.initializer]:
        raise UserError(f"{ONNX} holds other tensors than the network")
    for their_tensor, our_tensor in zip(theirs.graph.initializer, ours.graph.initializer, strict=True):
        _compare_tensor(their_tensor, our_tensor)
        our_tensor.raw_data = their_tensor.raw_data
    if theirs.SerializeToString(deterministic=True) != ours.SerializeToString(deterministic=True):
        raise UserError(f"{ONNX} says more, or other things, than an export by this release")


def _compare_nodes(theirs, ours):
    """Raise UserError, naming the first operator that differs."""
    if len(theirs) != len(ours):
        raise UserError(f"{ONNX} has {len(theirs)} operators, and {_exported()} has {len(ours)}")
    for number, (their_node, our_node) in enumerate(zip(theirs, ours, strict=True)):
        if their_node != our_node:
            kind = "" if their_node.op_type == our_node.op_type else f": {their_node.op_type[:40]!r}"
            raise UserError(f"{ONNX}: operator {number}{kind} is not the {our_node.op_type} of {_exported()}")


def _exported():
    return f"an export of the weights by torch {torch.__version__}"


def _compare_tensor(theirs, ours):
    """Raise UserError unless two tensors are of one form, and their numbers equal but for rounding."""
    import onnx

    form = (theirs.data_type, list(theirs.dims), len(theirs.raw_data))
    if form != (ours.data_type, list(ours.dims), len(ours.raw_data)):
        raise UserError(f"{ONNX}: the tensor {theirs.name[:80]!r} is of another type or shape than the network's")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(ours.data_type)
    found, wanted = (np.frombuffer(one.raw_data, dtype) for one in (theirs, ours))
    if dtype == np.float32:
        same = np.abs(found - wanted).max(initial=0) <= TOLERANCE * np.abs(wanted).max(initial=0)
    else:
        same = np.array_equal(found, wanted)
    if not same:
        raise UserError(f"{ONNX}: the numbers of {theirs.name[:80]!r} are not those of model.safetensors")
