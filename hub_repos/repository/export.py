"""A built repository's network as ONNX: model.onnx, for any batch, height and width."""

import importlib.util
import io
import math
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

from hub_unets.modeling.image_processing_unet import UNetImageProcessor
from hub_unets.training.errors import UserError
from hub_unets.training.measure.models import read_variant
from hub_unets.training.measure.weights import load_weights

ONNX = "model.onnx"
OPSET = 17
TOLERANCE = 1e-4  # between a logit of ONNX and of PyTorch, both float32
AXES = {
    "pixel_values": {0: "batch", 2: "height", 3: "width"},
    "logits": {0: "batch", 2: "logits_height", 3: "logits_width"},  # `valid` padding returns fewer
}


class Logits(nn.Module):
    """A model whose output is its logits alone, B x 3 x H x W to B x C x H x W."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        return self.model(pixel_values).logits


def require_export():
    """Raise UserError unless the packages of the extra are installed."""
    for name in ("onnx", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            raise UserError(f"ONNX needs the package {name}: pip install 'hub-unets[export]'")


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

    traced, attention = io.BytesIO(), model.config._attn_implementation
    if model._supports_sdpa:
        model.set_attn_implementation("eager")  # torch traces sdpa for one number of tokens
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # the tracer warns of constants that hold at any size
        torch.onnx.export(
            Logits(model).eval(),
            (torch.zeros(1, model.config.num_channels, *traced_size(model.config)),),
            traced,
            dynamo=False,
            opset_version=OPSET,
            input_names=["pixel_values"],
            output_names=["logits"],
            dynamic_axes=AXES,
        )
    if model._supports_sdpa:
        model.set_attn_implementation(attention)
    proto = onnx.load_model_from_string(traced.getvalue())
    proto.producer_name, proto.producer_version = "hub-unets", ""
    return proto.SerializeToString(deterministic=True)


def traced_size(config):
    """(height, width) for the tracing: small, unequal, and possible for the network."""
    if config.padding == "same":
        return 64, 96
    smallest = 2 * config.valid_margin + 4
    return smallest, smallest + 2**config.depth


def check_logits(content, model, processor):
    """Raise UserError unless file and model give the same logits of noise, at the processor's size and at another."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    margin, config = 2 * processor.mirror_margin, model.config
    processor_size = [processor.size[side] + margin for side in ("height", "width")]
    other_size = (75, 101) if config.padding == "same" else traced_size(config)[::-1]
    for batch, size in ((1, processor_size), (2, other_size)):
        pixels = torch.randn(batch, config.num_channels, *size, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            expected = model(pixels).logits.numpy()
        (logits,) = session.run(["logits"], {"pixel_values": pixels.numpy()})
        difference = largest_difference(logits, expected)
        if not difference <= TOLERANCE:
            raise UserError(
                f"{ONNX}: at {size[0]} x {size[1]} pixels its logits differ from PyTorch's by {difference:.2g}, more "
                f"than {TOLERANCE}: this network is not exported."
            )


def largest_difference(logits, expected):
    """Between two arrays of logits; if the largest logit is above 10, relative to a tenth of it, as float32 rounds."""
    if logits.shape != expected.shape:
        return math.inf
    return float(np.abs(logits - expected).max() / max(1, np.abs(expected).max() / 10))
