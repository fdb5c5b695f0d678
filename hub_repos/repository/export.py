"""A built repository's network as ONNX: model.onnx, for any batch, height and width."""

import contextlib
import importlib.util
import io
import math
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

from hub_unets.modeling.image_processing_unet import UNetImageProcessor
from hub_unets.training.errors import UserError, first_line
from hub_unets.training.measure.models import read_variant
from hub_unets.training.measure.weights import load_weights

ONNX = "model.onnx"
OPSET = 17
INTERPOLATION_OPSET = 18  # the first in which Resize knows antialiasing
TOLERANCE = 1e-4  # between a logit of ONNX and of PyTorch, both float32
AXES = {
    "pixel_values": {0: "batch", 2: "height", 3: "width"},
    "logits": {0: "batch", 2: "logits_height", 3: "logits_width"},  # `valid` padding returns fewer
}


class MissingToolError(UserError):
    """What is not on this machine and can be had: once it is, the same command goes on."""


class Logits(nn.Module):
    """A model whose output is its logits alone, B x 3 x H x W to B x C x H x W."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        return self.model(pixel_values).logits


def require_export():
    """Raise MissingToolError unless the packages of the extra are installed."""
    for name in ("onnx", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            raise MissingToolError(f"ONNX needs the package {name}: pip install 'hub-unets[export]'")


def export_onnx(folder, path):
    """Write the network of a repository as one ONNX file, byte for byte the same each time.

    Args:
        folder: the repository, with config, weights and processor; its code does not run.
        path: the file to write.

    Raises:
        UserError: the extra is missing, or the file's logits differ from PyTorch's.
    """
    require_export()
    model = load_network(folder)
    content = to_onnx(model)
    check_logits(content, model, UNetImageProcessor.from_pretrained(folder))
    Path(path).write_bytes(content)


def load_network(folder):
    """The model of a repository, by our own class, in evaluation mode."""
    _, model_class = read_variant(folder)
    return load_weights(model_class, folder)


def to_onnx(model):
    """The bytes of the ONNX file of a model in evaluation mode.

    torch's tracing exporter keeps height and width free although the network pads; its newer exporter does not.
    """
    import onnx

    traced = io.BytesIO()
    interpolated = getattr(model.encoder, "pyramid", None) is not None  # the positions of a plain transformer
    if interpolated:
        torch.onnx.register_custom_op_symbolic("aten::_upsample_bicubic2d_aa", resize_positions, INTERPOLATION_OPSET)
    with warnings.catch_warnings(), torch.inference_mode(), eager_attention(model):
        warnings.simplefilter("ignore")  # the tracer warns of constants that hold at any size
        torch.onnx.export(
            Logits(model).eval(),
            (torch.zeros(1, model.config.num_channels, *traced_size(model.config)),),
            traced,
            dynamo=False,
            opset_version=INTERPOLATION_OPSET if interpolated else OPSET,
            input_names=["pixel_values"],
            output_names=["logits"],
            dynamic_axes=AXES,
        )
    proto = onnx.load_model_from_string(traced.getvalue())
    proto.producer_name, proto.producer_version = "hub-unets", ""
    return proto.SerializeToString(deterministic=True)


@contextlib.contextmanager
def eager_attention(model):
    """Attention by matrix products, ours and timm's: torch traces sdpa for one number of tokens."""
    fused = [module for module in model.modules() if getattr(module, "fused_attn", False)]
    implementation = model.config._attn_implementation
    if model._supports_sdpa:
        model.set_attn_implementation("eager")
    for module in fused:
        module.fused_attn = False
    try:
        yield
    finally:
        if model._supports_sdpa:
            model.set_attn_implementation(implementation)
        for module in fused:
            module.fused_attn = True


def resize_positions(graph, positions, size, align_corners, *scales):
    """torch's antialiased bicubic interpolation as ONNX has it; torch's exporter has none."""
    lists = torch.onnx.symbolic_helper
    axes = [graph.op("Constant", value_t=torch.tensor([axis])) for axis in (0, 2)]
    batch_and_width = graph.op("Slice", graph.op("Shape", positions), *axes)
    if lists._is_packed_list(size):
        sides = [graph.op("Unsqueeze", side, axes[0]) for side in lists._unpack_list(size)]
        size = graph.op("Concat", *sides, axis_i=0)
    none = graph.op("Constant", value_t=torch.tensor([], dtype=torch.float32))
    return graph.op(
        "Resize",
        positions,
        none,
        none,
        graph.op("Concat", batch_and_width, size, axis_i=0),
        mode_s="cubic",
        antialias_i=1,
        cubic_coeff_a_f=-0.5,
        exclude_outside_i=1,
        coordinate_transformation_mode_s="half_pixel",
    )


def traced_size(config):
    """(height, width) for the tracing: small, unequal, and possible for the network."""
    if config.padding == "same":
        return 64, 96
    smallest = 2 * config.valid_margin + 4
    return smallest, smallest + 2**config.depth


def check_logits(content, model, processor):
    """Raise UserError unless file and model give the same logits of noise, at the processor's size and at another."""
    margin, config = 2 * processor.mirror_margin, model.config
    processor_size = [processor.size[side] + margin for side in ("height", "width")]
    other_size = (75, 101) if config.padding == "same" else traced_size(config)[::-1]
    for batch, size in ((1, processor_size), (2, other_size)):
        pixels = torch.randn(batch, config.num_channels, *size, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            expected = model(pixels).logits.numpy()
        logits = onnx_logits(content, pixels.numpy(), model.config.backbone)
        difference = largest_difference(logits, expected)
        if not difference <= TOLERANCE:
            raise UserError(
                f"{ONNX}: at {size[0]} x {size[1]} pixels its logits differ from PyTorch's by {difference:.2g}, more "
                f"than {TOLERANCE}: this network is not exported."
            )


def onnx_logits(content, pixels, backbone):
    """The file's logits of pixels, by ONNX Runtime; UserError where it can't run the file at their size."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # the error is ours to tell
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        return session.run(["logits"], {"pixel_values": pixels})[0]
    except Exception as error:  # each kind of failure has a class of its own
        raise UserError(
            f"{ONNX}: ONNX Runtime can't run this network at {pixels.shape[2]} x {pixels.shape[3]} pixels: "
            f"{first_line(error)}. torch's exporter does not trace backbone={backbone!r} for any size: "
            "build it without ONNX."
        ) from error


def largest_difference(logits, expected):
    """Between two arrays of logits; if the largest logit is above 10, relative to a tenth of it, as float32 rounds."""
    if logits.shape != expected.shape:
        return math.inf
    return float(np.abs(logits - expected).max() / max(1, np.abs(expected).max() / 10))
