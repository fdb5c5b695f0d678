"""What model.onnx may be, judged without running it: one file of standard operators, with the builder's signature."""

import math

from hub_unets.hub_repos.checks.static import read_config
from hub_unets.hub_repos.checks.untrusted import open_file
from hub_unets.hub_repos.repository.export import AXES, ONNX, OPSET, require_export
from hub_unets.training.errors import UserError

EXTRA_BYTES = 8_000_000  # the graph, and tables such as Swin's that the weights hold in a shorter form
EXTRA_SHARE = 1.25


def check_onnx(folder):
    """model.onnx is well formed, self-contained, of the default operators, and has the builder's input and output.

    Raises:
        UserError: it is not just that, or the packages that read it are not installed.
    """
    require_export()
    import onnx

    proto = onnx.load_model_from_string(_read(folder))
    onnx.checker.check_model(proto, full_check=True)
    if [(one.domain, one.version) for one in proto.opset_import] != [("", OPSET)]:
        raise UserError(f"{ONNX}: its operators must be ONNX's own, opset {OPSET}")
    if proto.functions or proto.training_info or proto.metadata_props:
        raise UserError(f"{ONNX} holds functions, training or metadata, and the builder writes none")
    _check_graph(proto.graph)
    config = read_config(folder)
    for name, values, channels in (
        ("pixel_values", proto.graph.input, config.num_channels),
        ("logits", proto.graph.output, config.num_logits),
    ):
        wanted = [(name, onnx.TensorProto.FLOAT, [AXES[name].get(axis, channels) for axis in range(4)])]
        if (found := [_signature(value) for value in values]) != wanted:
            raise UserError(f"{ONNX}: {name} must be the only one of its kind, {wanted}, got {str(found)[:300]}")


def _read(folder):
    """The file's bytes, unless it is far larger than the weights that it holds."""
    limit = EXTRA_SHARE * (folder / "model.safetensors").stat().st_size + EXTRA_BYTES
    with open_file(folder / ONNX) as file:
        content = file.read(int(limit) + 1)
    if len(content) > limit:
        raise UserError(f"{ONNX} is larger than {int(limit)} bytes, and model.safetensors does not account for it")
    return content


def _check_graph(graph):
    """Every tensor is in the file and as long as its shape says; every operator, of inner graphs too, is ONNX's."""
    for tensor in graph.initializer:
        _check_tensor(tensor)
    if graph.sparse_initializer:
        raise UserError(f"{ONNX} holds sparse tensors, and the builder writes none")
    for node in graph.node:
        if node.domain not in ("", "ai.onnx"):
            raise UserError(f"{ONNX}: node {node.name!r} is of the domain {node.domain!r}, not ONNX's own")
        for attribute in node.attribute:
            for tensor in (*attribute.tensors, *([attribute.t] if attribute.HasField("t") else [])):
                _check_tensor(tensor)
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                _check_graph(inner)


def _check_tensor(tensor):
    import onnx

    if tensor.external_data or tensor.data_location == onnx.TensorProto.EXTERNAL:
        raise UserError(f"{ONNX}: the data of {tensor.name!r} lie in another file")
    size = math.prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    if len(tensor.raw_data) != size:
        raise UserError(f"{ONNX}: {tensor.name!r} of shape {list(tensor.dims)} must have {size} bytes of raw data")


def _signature(value):
    tensor = value.type.tensor_type
    return value.name, tensor.elem_type, [one.dim_param or one.dim_value for one in tensor.shape.dim]
