"""A network in int8 as ONNX: model_int8.onnx, for images of the processor's size, with the ranges of its maps.

Weights are int8 with a scale for each output channel, maps uint8 with a scale and a zero point for each; the layers up
to the encoder's first map are float32, as rounding them moves masks most and saves no time. ONNX's QuantizeLinear and
DequantizeLinear say so, and OpenVINO, ONNX Runtime and its version for browsers compute it with integers.
"""

import io
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers.modeling_outputs import SemanticSegmenterOutput

from hub_unets.hub_repos.repository.export import OPSET, eager_attention, load_network, require_export
from hub_unets.hub_repos.repository.rounding import (
    channel_scales,
    has_moments,
    input_moments,
    rounded,
    rounded_alone,
)
from hub_unets.modeling.image_processing_unet import UNetImageProcessor

INT8 = "model_int8.onnx"
OUTPUT_AXIS = {"Conv": 0, "ConvTranspose": 1}  # of a weight's output channels
JOINING, CLIPPING = {"Add", "Concat", "MaxPool", "Resize"}, {"Relu", "Clip"}
LEVELS = 255  # steps of an activation's uint8
LEAST_RANGE = 1e-6


class LogitsAndMaps(nn.Module):
    """Normalised B x 3 x H x W to logits and the encoder's maps, without those that are None, largest first."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, pixel_values):
        output = self.network(pixel_values, output_hidden_states=True)
        return output.logits, *output.hidden_states


def input_size(processor):
    """(height, width) of `pixel_values`, mirrored margin included."""
    return tuple(processor.size[side] + 2 * processor.mirror_margin for side in ("height", "width"))


def export_int8(folder, images):
    """The bytes of model_int8.onnx of a run or repository.

    Args:
        folder: its config, weights and processor; its code does not run.
        images: an iterable of training images, PIL or arrays, never test images: they give the activations' ranges.

    Raises:
        UserError: the extra `export` is missing.
    """
    require_export()
    processor = UNetImageProcessor.from_pretrained(folder)
    proto, float_nodes = float_graph(load_network(folder), processor)
    options = {"return_tensors": "np", **processor.read_options}
    pixels = (processor(image, **options)["pixel_values"] for image in images)
    nodes, tensors = quantised_nodes(proto.graph, float_nodes), constants(proto.graph)
    ends, moments = observed(proto, nodes, pixels)
    steps = {name: rounded(tensors[name], channel_scales(tensors[name], 0), moments[name]) for name in moments}
    parameters = {name: scale_and_zero(*pair) for name, pair in ends.items()}
    return quantised(proto, nodes, parameters, steps).SerializeToString(deterministic=True)


def float_graph(network, processor):
    """(a network as ONNX in float32 at the processor's size, the names of its nodes up to the encoder's first map)."""
    import onnx

    network.config.background_channel = False  # the head's own logits
    proto = onnx.load_model_from_string(folded(traced(network, input_size(processor))))
    graph, producers = proto.graph, {output: node for node in proto.graph.node for output in node.output}
    logits, *maps = [output.name for output in graph.output]
    deepest = names_above(producers, maps[-1])
    float_nodes = names_above(producers, next(name for name in maps if producers[name].name in deepest))
    needed = names_above(producers, logits)
    del graph.output[1:], graph.value_info[:]
    nodes = [node for node in graph.node if node.name in needed]
    replace(graph.node, nodes)
    proto.producer_name, proto.producer_version = "hub-unets", ""
    replace(proto.opset_import, [entry for entry in proto.opset_import if not entry.domain])
    return proto, float_nodes


def traced(network, size):
    """The bytes of a network as ONNX for one size, with the encoder's maps as further outputs."""
    content = io.BytesIO()
    pixels = torch.zeros(1, network.config.num_channels, *size)
    with warnings.catch_warnings(), torch.inference_mode(), eager_attention(network):
        warnings.simplefilter("ignore")  # the tracer warns of constants that hold at this size
        module, names = LogitsAndMaps(network).eval(), {"input_names": ["pixel_values"], "output_names": ["logits"]}
        torch.onnx.export(module, (pixels,), content, dynamo=False, opset_version=OPSET, **names)
    return content.getvalue()


def folded(content):
    """The bytes of an ONNX file without the nodes whose results are constants, by ONNX Runtime."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(Path(folder) / "folded.onnx")
        options.log_severity_level = 3
        onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        return Path(options.optimized_model_filepath).read_bytes()


def names_above(producers, name):
    """The names of the nodes that a map is computed by."""
    names, queue = set(), [name]
    while queue:
        node = producers.get(queue.pop())
        if node is not None and node.name not in names:
            names.add(node.name)
            queue += node.input
    return names


def replace(repeated, values):
    """Give a repeated field of a proto other values."""
    values = list(values)
    del repeated[:]
    repeated.extend(values)


def constants(graph):
    """{name: array} of a graph's weights."""
    import onnx

    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}


def quantised_nodes(graph, float_nodes):
    """The nodes to compute in int8: convolutions but those of `float_nodes`, and what joins maps of convolutions."""
    weights = {tensor.name for tensor in graph.initializer}
    after_convolution, chosen = set(), []  # names of maps; nodes
    for node in graph.node:
        is_convolution = node.op_type in OUTPUT_AXIS and node.input[1] in weights
        is_float = node.name in float_nodes
        is_joined = after_convolution.issuperset(maps_of(node, weights))
        if is_float or is_convolution or (is_joined and node.op_type in JOINING | CLIPPING):
            after_convolution |= set(node.output)
        if not is_float and (is_convolution or (is_joined and node.op_type in JOINING)):
            chosen.append(node)
    return chosen


def maps_of(node, weights):
    """The names of a node's inputs that are no weights."""
    return [name for name in node.input if name and name not in weights]


def observed(proto, nodes, pixels):
    """What the maps that nodes take are like over images.

    Args:
        proto: the ONNX model in float32.
        nodes: of it.
        pixels: an iterable of `pixel_values`, 1 x 3 x H x W float32.

    Returns:
        {name of a map: (least, largest)}, and {name of a Conv's weight: the moments of its inputs}.
    """
    import onnx

    tensors = constants(proto.graph)
    names = list(dict.fromkeys(name for node in nodes for name in maps_of(node, tensors)))
    convolutions = [node for node in nodes if node.op_type == "Conv" and has_moments(tensors[node.input[1]])]
    ends, moments = [], {}
    for maps in computed(proto, names, pixels):
        ends.append([(found.min(), found.max()) for found in maps.values()])
        for node in convolutions:
            attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
            weight = node.input[1]
            moments[weight] = moments.get(weight, 0) + input_moments(maps[node.input[0]], tensors[weight], attributes)
    least, largest = np.min(ends, axis=0)[:, 0], np.max(ends, axis=0)[:, 1]
    return dict(zip(names, zip(least, largest, strict=True), strict=True)), moments


def computed(proto, names, pixels):
    """For each of `pixels` {name of a map: its values}."""
    import onnx
    import onnxruntime

    watched, kind = onnx.ModelProto(), onnx.TensorProto.FLOAT
    watched.CopyFrom(proto)
    watched.graph.output.extend(onnx.helper.make_tensor_value_info(name, kind, None) for name in names)
    session = onnxruntime.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    for values in pixels:
        yield dict(zip(names, session.run(names, {"pixel_values": values}), strict=True))


def scale_and_zero(least, largest):
    """A float32 scale and a uint8 zero point, so that 0 is exact: a value is (integer - zero point) * scale."""
    least, largest = min(float(least), 0.0), max(float(largest), LEAST_RANGE)
    scale = np.float32((largest - least) / LEVELS)
    return scale, np.uint8(round(-least / float(scale)))


def quantised(proto, nodes, parameters, steps):
    """A graph's copy that computes in int8.

    Args:
        proto: the ONNX model in float32.
        nodes: those of it that `quantised_nodes` chooses.
        parameters: {name of a map that they take: its scale and zero point}.
        steps: {name of a weight: its int8}; a weight that is not in it is rounded by itself.
    """
    import onnx

    result, chosen, made = onnx.ModelProto(), {node.name for node in nodes}, []
    result.CopyFrom(proto)
    graph, tensors = result.graph, constants(proto.graph)
    for node in graph.node:
        if node.name in chosen:
            if node.op_type in OUTPUT_AXIS:
                made += with_whole_numbers(node, tensors, parameters[node.input[0]][0], steps)
            replace(node.input, [f"{name}.float" if name in parameters else name for name in node.input])
        made.append(node)
        made += [step for name in node.output if name in parameters for step in rounding(name)]
    for name, (scale, zero) in parameters.items():
        tensors |= {f"{name}.scale": np.asarray(scale), f"{name}.zero": np.asarray(zero)}
    replace(graph.node, made)
    used = dict.fromkeys(name for node in graph.node for name in node.input if name in tensors)
    replace(graph.initializer, [onnx.numpy_helper.from_array(tensors[name], name) for name in used])
    return result


def rounding(name):
    """The two nodes that round a map to uint8 and give it back as float: `name` to `name`.float."""
    from onnx.helper import make_node

    numbers = [f"{name}.scale", f"{name}.zero"]
    return [
        make_node("QuantizeLinear", [name, *numbers], [f"{name}.int"], f"{name}.quantise"),
        make_node("DequantizeLinear", [f"{name}.int", *numbers], [f"{name}.float"], f"{name}.dequantise"),
    ]


def with_whole_numbers(node, tensors, input_scale, steps):
    """Give a convolution weights in int8 and a bias in int32: puts them into `tensors`, and returns their nodes."""
    weight, axis = tensors[node.input[1]], OUTPUT_AXIS[node.op_type]
    scales = channel_scales(weight, axis)
    whole = steps[node.input[1]] if node.input[1] in steps else rounded_alone(weight, scales, axis)
    made = [stored(node, 1, whole, scales, axis, tensors)]
    if len(node.input) > 2:
        bias_scales = scales * input_scale
        bias = np.rint(tensors[node.input[2]] / bias_scales.astype(np.float64))
        limit = np.iinfo(np.int32).max
        made.append(stored(node, 2, np.clip(bias, -limit, limit).astype(np.int32), bias_scales, 0, tensors))
    return made


def stored(node, position, steps, scale, axis, tensors):
    """Store an input of a node as integers with a scale for each channel; returns the node that makes it float."""
    from onnx.helper import make_node

    name = f"{node.name}.{position}"
    names = [f"{name}.int", f"{name}.scale", f"{name}.zero"]
    tensors |= dict(zip(names, (steps, scale, np.zeros(len(scale), steps.dtype)), strict=True))
    node.input[position] = f"{name}.float"
    return make_node("DequantizeLinear", names, [f"{name}.float"], f"{name}.dequantise", axis=axis)


class OnnxNetwork:
    """An ONNX file's bytes as a network: B x 3 x H x W float32 of the file's size to an output with `logits`."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, content, config):
        import onnxruntime

        self.config = config
        self.session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def __call__(self, pixel_values):
        logits = [self.session.run(["logits"], {"pixel_values": pixels[None].numpy()})[0] for pixels in pixel_values]
        return SemanticSegmenterOutput(logits=torch.from_numpy(np.concatenate(logits)))
