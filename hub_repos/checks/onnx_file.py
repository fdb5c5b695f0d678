"""Whether model.onnx is the network of the weights: it is compared with a fresh export, and never run."""

import numpy as np
import torch

from hub_unets.hub_repos.checks.untrusted import open_file
from hub_unets.hub_repos.repository.export import ONNX, load_network, require_export, to_onnx
from hub_unets.training.errors import UserError

EXTRA_BYTES = 8_000_000  # the graph, and tables such as Swin's, which the weights hold in a shorter form
EXTRA_SHARE = 1.25
TOLERANCE = 1e-5  # of a tensor's largest number: a norm folded into a convolution rounds as the processor does


def check_onnx(folder):
    """model.onnx has the graph of a fresh export of the folder's weights, operator by operator, and its numbers.

    The export is the same byte for byte with one version of torch; another version may write another graph.

    Raises:
        UserError: it differs, or the packages that read it are not installed.
    """
    require_export()
    content, fresh = read_limited(folder, ONNX), to_onnx(load_network(folder))
    if content == fresh:
        return "byte for byte what the weights give"
    compare_onnx(content, fresh)
    return "the graph of the weights; numbers differ by rounding"


def read_limited(folder, name):
    """The file's bytes, unless it is far larger than the weights that it holds."""
    limit = EXTRA_SHARE * (folder / "model.safetensors").stat().st_size + EXTRA_BYTES
    with open_file(folder / name) as file:
        content = file.read(int(limit) + 1)
    if len(content) > limit:
        raise UserError(f"{name} is larger than {int(limit)} bytes, and model.safetensors does not account for it")
    return content


def parsed(content, file):
    """An ONNX file's bytes as a proto."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return onnx.load_model_from_string(content)
    except DecodeError as error:
        raise UserError(f"{file} is damaged: {error}") from error


def compare_onnx(content, fresh, file=ONNX):
    """Raise UserError unless two ONNX files differ in nothing but the rounding of the weights.

    Args:
        content: bytes of the file to judge.
        fresh: bytes of the fresh export.
        file: its name.
    """
    model, fresh_model = parsed(content, file), parsed(fresh, file)
    _compare_nodes(model.graph.node, fresh_model.graph.node, file)
    tensors, fresh_tensors = model.graph.initializer, fresh_model.graph.initializer
    if [tensor.name for tensor in tensors] != [tensor.name for tensor in fresh_tensors]:
        raise UserError(f"{file} holds other tensors than the network")
    for tensor, fresh_tensor in zip(tensors, fresh_tensors, strict=True):
        _compare_tensor(tensor, fresh_tensor, file)
        fresh_tensor.raw_data = tensor.raw_data
    if model.SerializeToString(deterministic=True) != fresh_model.SerializeToString(deterministic=True):
        raise UserError(f"{file} says more, or other things, than an export by this release")


def _compare_nodes(nodes, fresh_nodes, file):
    """Raise UserError, naming the first operator that differs."""
    if len(nodes) != len(fresh_nodes):
        raise UserError(f"{file} has {len(nodes)} operators, and {_fresh_export()} has {len(fresh_nodes)}")
    for number, (node, fresh_node) in enumerate(zip(nodes, fresh_nodes, strict=True)):
        if node != fresh_node:
            kind = "" if node.op_type == fresh_node.op_type else f": {node.op_type[:40]!r}"
            raise UserError(f"{file}: operator {number}{kind} is not the {fresh_node.op_type} of {_fresh_export()}")


def _fresh_export():
    return f"an export of the weights by torch {torch.__version__}"


def _compare_tensor(tensor, fresh_tensor, file):
    """Raise UserError unless two tensors have one type and shape, and numbers that are equal but for rounding."""
    import onnx

    form = (tensor.data_type, list(tensor.dims), len(tensor.raw_data))
    if form != (fresh_tensor.data_type, list(fresh_tensor.dims), len(fresh_tensor.raw_data)):
        raise UserError(f"{file}: the tensor {tensor.name[:80]!r} is of another type or shape than the network's")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(fresh_tensor.data_type)
    numbers, expected = (np.frombuffer(raw, dtype) for raw in (tensor.raw_data, fresh_tensor.raw_data))
    if dtype == np.float32:
        same = np.abs(numbers - expected).max(initial=0) <= TOLERANCE * np.abs(expected).max(initial=0)
    elif dtype == np.int32:  # a bias in steps
        same = (np.abs(numbers - expected.astype(np.int64)) <= 1 + TOLERANCE * np.abs(expected)).all()
    else:
        same = np.array_equal(numbers, expected)
    if not same:
        raise UserError(f"{file}: the numbers of {tensor.name[:80]!r} are not those of model.safetensors")
