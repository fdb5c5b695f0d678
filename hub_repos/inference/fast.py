"""Fast inference on a CPU: JPEG bytes to masks at the images' own size, in bfloat16 or int8.

    segment = FastSegmenter("repository", "openvino")
    masks = segment([Path("image.jpg").read_bytes()])

Why it is fast: a JPEG is decoded at a half, a quarter or an eighth of its size if that is still twice the network's;
vector instructions resize it; pixels stay uint8 up to the network, which normalises them; only the layers that are
sensitive to rounding compute in float32, the rest in bfloat16 or int8; of a batch, OpenVINO gives each core one image
at a time. The processor's own function makes masks of the logits.
"""

import functools
import importlib.util
import io
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from hub_unets.hub_repos.repository.export import load_network
from hub_unets.hub_repos.repository.int8 import INT8, LogitsAndMaps, input_size
from hub_unets.modeling.image_processing_unet import UNetImageProcessor
from hub_unets.modeling.images import TRANSPOSED, orientation, to_rgb
from hub_unets.training.errors import UserError
from hub_unets.training.fit.threads import usable_cores

MODES = ("bf16", "openvino", "int8")
GAP = 2  # least ratio of a reduced JPEG's sides to the network's: with a smaller one, masks change


class FastSegmenter:
    """Images to masks at their own size, equal to the plain path's but for rounding; int8 rounds most.

    Args:
        folder: a run's folder or a built repository, whose code does not run.
        mode: `"bf16"` is PyTorch with the encoder in float32 and the decoder in bfloat16; `"openvino"` OpenVINO with
            the encoder's first layers in float32 and the rest in bfloat16, where the CPU has it; `"int8"` OpenVINO
            with the folder's model_int8.onnx, which `hub-unets quantise` writes.

    Raises:
        UserError: the mode is unknown, a package or model_int8.onnx is missing, or the processor keeps each image's
            size.
    """

    def __init__(self, folder, mode="openvino"):
        if mode not in MODES:
            raise UserError(f"mode must be one of {', '.join(MODES)}, got {mode!r}.")
        self.processor = UNetImageProcessor.from_pretrained(folder)
        if not self.processor.do_resize:
            raise UserError("do_resize=False in preprocessor_config.json: the fast path is for one size; set a size.")
        self.threads = ThreadPoolExecutor(usable_cores())
        if mode == "bf16":
            self.network = TorchNetwork(load_network(folder), self.processor)
        else:
            require_openvino()
            make_graphs = int8_graphs if mode == "int8" else bf16_graphs
            self.network = OpenVINONetwork(make_graphs(folder, self.processor), self.threads)

    def __call__(self, images, threshold=None):
        """Masks of images.

        Args:
            images: a list of encoded files (bytes), paths, PIL images or arrays.
            threshold: as `post_process_semantic_segmentation`'s.

        Returns:
            list of int64 tensors H x W, class indices at each image's own size.

        Raises:
            UserError: `images` is no list.
        """
        if not isinstance(images, (list, tuple)):
            raise UserError(f"images must be a list, got {type(images).__name__}: put one image in a list.")
        if not images:
            return []
        pixels, sizes, views = zip(*self._map(self._decoded, images), strict=True)
        logits = self.network(list(pixels))
        return self.processor.post_process_semantic_segmentation(logits, list(sizes), threshold, images=views)

    def _map(self, function, images):
        return list((self.threads.map if len(images) > 1 else map)(function, images))

    def _decoded(self, image):
        """An image to C x H x W for the network, its (height, width), and it itself if its view is asked for."""
        if not self.processor.takes_rgb:
            values = self.processor.read(image)
            pixels = np.ascontiguousarray(self.processor.resized(values).transpose(2, 0, 1))
            return self.processor.mirror(pixels), values.shape[:2], None
        image, size = decode(image, self.processor.size)
        kept = image if self.processor.drop_outside_view else None
        return self.processor.mirror(resize(image, self.processor)), size, kept


def decode(image, target_size):
    """An image as upright RGB PIL image, a large JPEG reduced, and its own (height, width).

    Args:
        image: encoded file (bytes), path, PIL image or array.
        target_size: {"height", "width"} of the resize to come; a reduced JPEG stays GAP times as large or larger.
    """
    if not isinstance(image, (bytes, str, Path)):
        image = to_rgb(image)
        return image, (image.height, image.width)
    with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
        width, height = opened.size
        is_turned = opened.format in ("JPEG", "MPO") and orientation(opened) >= TRANSPOSED
        smallest = GAP * target_size["width"], GAP * target_size["height"]
        opened.draft(None, smallest[::-1] if is_turned else smallest)  # the JPEG decoder's halving; others ignore it
        if opened.size == (width, height):
            image = to_rgb(opened)
            return image, (image.height, image.width)
        return to_rgb(opened), (width, height) if is_turned else (height, width)


def resize(image, processor):
    """An RGB PIL image to uint8 3 x H x W, each pixel within 1 of the result of `processor.resize`.

    torch computes Pillow's antialiased bilinear filter with vector instructions.
    """
    if processor.resample != Image.Resampling.BILINEAR:
        return np.ascontiguousarray(np.asarray(processor.resize(image)).transpose(2, 0, 1))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    size = processor.size["height"], processor.size["width"]
    return F.interpolate(pixels, size=size, mode="bilinear", antialias=True)[0].contiguous().numpy()


class Encoder(nn.Module):
    """The encoder alone: normalised B x 3 x H x W to its maps, without those that are None."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, pixel_values):
        maps = self.network.encoder(self.network._pad(pixel_values))
        return tuple(feature_map for feature_map in maps if feature_map is not None)


class Decoder(nn.Module):
    """Decoder and head: the encoder's maps to logits of the processor's size, padding cut off."""

    def __init__(self, network, height, width):
        super().__init__()
        self.decoder, self.head, self.size = network.decoder, network.head, (height, width)
        self.has_map = [channels > 0 for channels in network.encoder.channels]

    def forward(self, *maps):
        maps = iter(maps)
        logits = self.head(self.decoder([next(maps) if has_map else None for has_map in self.has_map]).features)
        return logits[..., : self.size[0], : self.size[1]]


class TorchNetwork:
    """Pixels B x C x H x W to logits in PyTorch, channels last: encoder in float32, the rest in bfloat16."""

    def __init__(self, network, processor):
        self.encoder = Encoder(network).to(memory_format=torch.channels_last)
        self.decoder = Decoder(network, *input_size(processor))
        self.decoder.to(torch.bfloat16, memory_format=torch.channels_last)
        self.mean, self.scale = (torch.tensor(values)[:, None, None] for values in mean_and_scale(processor))

    @torch.inference_mode()
    def __call__(self, pixels):
        values = torch.from_numpy(np.stack(pixels)).contiguous(memory_format=torch.channels_last)
        maps = self.encoder((values - self.mean) / self.scale)
        return self.decoder(*(feature_map.bfloat16() for feature_map in maps))


class OpenVINONetwork:
    """Images C x H x W to logits B x C x h x w in OpenVINO; the normalisation is in the graph.

    One image takes all cores; of several, each core takes one at a time. Either is compiled when it is first needed.

    Args:
        graphs: pairs (OpenVINO graph, precision of what is not int8), each of which takes the results of the last.
        threads: a pool with a thread for each core.
    """

    def __init__(self, graphs, threads):
        self.graphs, self.threads = graphs, threads

    @functools.cached_property
    def alone(self):
        return requests_of(self.graphs, "LATENCY", 1)

    @functools.cached_property
    def several(self):
        return requests_of(self.graphs, "THROUGHPUT", usable_cores())

    def __call__(self, pixels):
        requests, map_images = (self.alone, map) if len(pixels) == 1 else (self.several, self.threads.map)
        logits = map_images(lambda image: infer(requests, image), pixels)
        return torch.from_numpy(np.concatenate(list(logits)))


def infer(free_requests, pixels):
    """Logits 1 x C x h x w of one image, by the first free requests of a queue."""
    requests = free_requests.get()
    values = [pixels[None]]
    for request in requests:
        values = list(request.infer(values, share_inputs=True, share_outputs=True).values())
    logits = values[0].copy()
    free_requests.put(requests)
    return logits


def requests_of(graphs, hint, count):
    """A queue of `count` lists with an inference request for each of the graphs, pairs (OpenVINO graph, precision)."""
    import openvino

    core, free_requests = openvino.Core(), SimpleQueue()
    has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    compiled = []
    for graph, precision in graphs:
        options = {"INFERENCE_PRECISION_HINT": precision if has_bf16 else "f32", "PERFORMANCE_HINT": hint}
        compiled.append(core.compile_model(graph, "CPU", options))
    for _ in range(count):
        free_requests.put([compiled_model.create_infer_request() for compiled_model in compiled])
    return free_requests


def int8_graphs(folder, processor):
    """The graph of a folder's model_int8.onnx, from pixels to logits.

    Raises:
        UserError: there is none, or it is for images of another size.
    """
    import openvino

    path, size = Path(folder) / INT8, input_size(processor)
    if not path.is_file():
        raise UserError(f"{folder} has no {INT8}: `hub-unets quantise RUN DATA` writes it, and build takes it along.")
    graph = openvino.Core().read_model(path)
    if tuple(graph.input().get_shape())[2:] != size:
        raise UserError(f"{path} is not for images of {size[0]} x {size[1]} pixels: `hub-unets quantise` it again.")
    return [(normalised(graph, processor), "f32")]


def bf16_graphs(folder, processor):
    """Two OpenVINO graphs with their precisions, from pixels to the encoder's first map, and on to the logits.

    Folding batch norm into a channel of little variance gives it a large weight. In the first layers rounding moves
    masks then, so they are float32. The rest is bfloat16.
    """
    network = load_network(folder)
    pixels = torch.zeros(1, network.config.num_channels, *input_size(processor))
    graph = normalised(converted(LogitsAndMaps(network), pixels), processor)
    _, *results = graph.get_results()
    maps = [result.input_value(0).get_node() for result in results]
    for result in results:
        graph.remove_result(result)
    deepest_names = names_above(maps[-1:])
    first = next(node for node in maps if node.get_friendly_name() in deepest_names)  # not of a detail branch
    before, after = cut(graph, names_above([first]))
    return [(before, "f32"), (after, "bf16")]


def names_above(nodes):
    """The names of graph nodes and of all nodes that they are computed from."""
    names, queue = set(), list(nodes)
    while queue:
        node = queue.pop()
        if node.get_friendly_name() not in names:
            names.add(node.get_friendly_name())
            queue += [port.get_source_output().get_node() for port in node.inputs()]
    return names


def cut(graph, names):
    """Cut a graph in two: the nodes of these names, and the others, whose parameters are the first graph's results.

    The results are B x H x W x C, as the CPU computes: NCHW would cost a copy at each end.
    """
    from openvino import Model, opset13

    results, parameters = [], []
    for node in graph.get_ordered_ops():
        if node.get_friendly_name() not in names or node.get_type_name() == "Constant":
            continue
        for output in node.outputs():
            users = [user for user in output.get_target_inputs() if user.get_node().get_friendly_name() not in names]
            if users:
                rank = len(output.get_shape())
                results.append(opset13.transpose(output, [0, *range(2, rank), 1]))
                parameters.append(opset13.parameter(results[-1].get_output_shape(0), output.get_element_type()))
                restored = opset13.transpose(parameters[-1], [0, rank - 1, *range(1, rank - 1)])
                for user in users:
                    user.replace_source_output(restored.output(0))
    return Model(results, graph.get_parameters()), Model(graph.get_results(), parameters)


def require_openvino():
    """Raise UserError unless the package of the extra is installed."""
    if importlib.util.find_spec("openvino") is None:
        raise UserError("modes openvino and int8 need the package openvino: pip install 'hub-unets[bench]'")


@torch.no_grad()
def converted(module, *inputs):
    """A module as OpenVINO graph, for inputs of exactly these shapes."""
    import openvino

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns that the inputs' size becomes a constant
        shapes = [list(example.shape) for example in inputs]
        return openvino.convert_model(module.eval(), example_input=inputs, input=shapes)


def mean_and_scale(processor):
    """Two lists, one number a channel: the processor's values are pixels minus the first, divided by the second."""
    rescale = processor.rescale_factor if processor.do_rescale and processor.takes_rgb else 1.0
    count = processor.num_channels
    mean, std = (
        (processor.image_mean, processor.image_std) if processor.do_normalize else ([0.0] * count, [1.0] * count)
    )
    return [value / rescale for value in mean], [value / rescale for value in std]


def normalised(graph, processor):
    """An OpenVINO graph that takes B x C x H x W, uint8 of RGB and else float32, and normalises them itself."""
    from openvino import Layout, Type
    from openvino.preprocess import PrePostProcessor

    mean, scale = mean_and_scale(processor)
    steps = PrePostProcessor(graph)
    kind = Type.u8 if processor.takes_rgb else Type.f32
    steps.input().tensor().set_element_type(kind).set_layout(Layout("NCHW"))
    steps.input().model().set_layout(Layout("NCHW"))
    steps.input().preprocess().convert_element_type(Type.f32).mean(mean).scale(scale)
    return steps.build()
