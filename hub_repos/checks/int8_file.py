"""Whether model_int8.onnx is the network of the weights: made again with its own ranges, and compared."""

import math

import numpy as np

from hub_unets.hub_repos.checks.onnx_file import compare_onnx, parsed, read_limited
from hub_unets.hub_repos.repository.example import example_pixels
from hub_unets.hub_repos.repository.export import load_network, require_export
from hub_unets.hub_repos.repository.int8 import (
    INT8,
    OUTPUT_AXIS,
    OnnxNetwork,
    constants,
    float_graph,
    maps_of,
    quantised,
    quantised_nodes,
)
from hub_unets.hub_repos.repository.rounding import MOST_STEPS, channel_scales
from hub_unets.modeling.image_processing_unet import UNetImageProcessor
from hub_unets.training.errors import UserError
from hub_unets.training.measure.segmenter import Segmenter

PARAMETERS = {"scale": np.float32, "zero": np.uint8}  # of a map
ROUNDING = 1e-3  # of a step
MOST_NOISE = 0.5  # of the logits' variance, on the example: ranges that do not fit give far more


def check_int8(folder):
    """model_int8.onnx has the graph and the weights of a fresh one with its own ranges, and the network's logits.

    How each weight was rounded and the ranges of the maps follow from training images, which are not here: a weight
    may lie MOST_STEPS from its own value, and what this process runs is the fresh graph.

    Raises:
        UserError: it differs, or the packages that read it are not installed.
    """
    require_export()
    content, processor = read_limited(folder, INT8), UNetImageProcessor.from_pretrained(folder)
    network = load_network(folder)
    fresh = again_in_int8(parsed(content, INT8), network, processor)
    compare_onnx(content, fresh, INT8)
    image = processor.read(example_pixels(processor.num_channels))
    (found,) = Segmenter(OnnxNetwork(fresh, network.config), processor)([image])[1]
    (expected,) = Segmenter(network, processor)([image])[1]
    share = float((found - expected).square().mean() / expected.var())
    if not share <= MOST_NOISE:
        raise UserError(f"{INT8}: its ranges do not fit: rounding is {share:.2g} of the logits' variance")
    return f"the weights, rounded; noise is {share:.2g} of the logits' variance on the example"


def again_in_int8(model, network, processor):
    """The bytes of a network in int8 with the ranges and the rounded weights that an ONNX model has.

    Raises:
        UserError: the model lacks one, or a rounded weight is too far from its own value.
    """
    proto, float_nodes = float_graph(network, processor)
    stated, tensors = {tensor.name: tensor for tensor in model.graph.initializer}, constants(proto.graph)
    nodes, parameters, steps = quantised_nodes(proto.graph, float_nodes), {}, {}
    for node in nodes:
        for name in maps_of(node, tensors):
            scale, zero = (stated_array(stated, f"{name}.{part}", dtype, ()) for part, dtype in PARAMETERS.items())
            parameters[name] = scale, zero
        if node.op_type in OUTPUT_AXIS:
            weight, axis = tensors[node.input[1]], OUTPUT_AXIS[node.op_type]
            steps[node.input[1]] = stated_array(stated, f"{node.name}.1.int", np.int8, weight.shape)
            own = weight / np.expand_dims(channel_scales(weight, axis), [k for k in range(weight.ndim) if k != axis])
            if np.abs(steps[node.input[1]] - own).max() > MOST_STEPS + ROUNDING:
                raise UserError(f"{INT8}: the weights of {node.name[:80]!r} are not those of model.safetensors")
    return quantised(proto, nodes, parameters, steps).SerializeToString(deterministic=True)


def stated_array(stated, name, dtype, shape):
    """The array of a tensor in `stated`, {name: TensorProto}; UserError unless it has this type and shape."""
    import onnx

    if name not in stated:
        raise UserError(f"{INT8} lacks {name[:80]!r}")
    tensor = stated[name]
    form = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape, np.dtype(dtype).itemsize * math.prod(shape)
    if (tensor.data_type, tuple(tensor.dims), len(tensor.raw_data)) != form:
        raise UserError(f"{INT8}: the tensor {name[:80]!r} is of another type or shape than the network's")
    return np.frombuffer(tensor.raw_data, dtype).reshape(shape)
