"""Every variant beside segmentation-models-pytorch: forward, training step, memory, multiply-accumulates."""

import copy
from functools import partial

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hub_unets.benchmarks.inference import SMP_ENCODER
from hub_unets.benchmarks.smp_weights import renamed, smp_block
from hub_unets.benchmarks.timing import compared, interleaved, peak_mb
from hub_unets.modeling.variants import find_variant, variant_names

THEIRS = {"unet": smp.Unet, "unetplusplus": smp.UnetPlusPlus}
WIDTHS = {  # in smp's U-Net++ every node but a level's last has the width of its skip
    "resnet18": [256, 128, 64, 64, 16],
    "mobilenetv2_100": [96, 32, 24, 16, 16],
}


def measure(backbones, sizes, rounds, training_rounds):
    """Rows: one for each network, size and backbone, ours and theirs timed in the same rounds.

    The first of `sizes` is for every variant, the others for those that smp has.
    """
    rows = []
    for backbone in backbones:
        for variant in variant_names():
            for size in sizes if variant in THEIRS else sizes[:1]:
                rows.append(row(variant, backbone, size, rounds, training_rounds if size == sizes[0] else 0))
                print(rows[-1], flush=True)
    return rows


def row(variant, backbone, size, rounds, training_rounds, batch=1, training_batch=4):
    """One comparison: float32, channels as they come, batch 1 forward and batch 4 for a training step."""
    network = our_network(variant, backbone)
    sides = {"ours": Logits(network)}
    result = {"variant": variant, "backbone": backbone, "size": size}
    if variant in THEIRS:
        sides["smp"] = their_network(variant, network, backbone)
        result["largest_difference"] = largest_difference(*sides.values())
    reference = [*sides][-1]
    pixels = torch.rand(batch, 3, size, size)
    calls = {name: partial(forward, module.eval(), pixels) for name, module in sides.items()}
    result["forward"] = compared(interleaved(calls, rounds), reference)
    result["forward_peak_mb"] = {name: peak_mb(call) for name, call in calls.items()}
    result["gmacs"] = {name: round(gmacs(module, size), 4) for name, module in sides.items()}
    if training_rounds:
        pixels = torch.rand(training_batch, 3, size, size)
        calls = {name: partial(training_step, module.train(), pixels) for name, module in sides.items()}
        result["training_step"] = compared(interleaved(calls, training_rounds), reference)
        result["training_peak_mb"] = {name: peak_mb(call) for name, call in calls.items()}
    return result


class Logits(nn.Module):
    """Our network with logits as its output, as smp's has."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, pixels):
        return self.network(pixels).logits


def our_network(variant, backbone):
    config_class, model_class = find_variant(variant)
    torch.manual_seed(0)
    fields = {"backbone": backbone, "decoder_channels": WIDTHS[backbone], "upsample": "bilinear"}
    return model_class(config_class(**fields)).eval()


@torch.no_grad()
def their_network(variant, network, backbone):
    """smp's network with our weights."""
    reference = THEIRS[variant](
        SMP_ENCODER[backbone],
        encoder_weights=None,
        decoder_channels=WIDTHS[backbone],
        decoder_interpolation="bilinear",
    )
    prefix = "encoder.model." if SMP_ENCODER[backbone].startswith("tu-") else "encoder."
    state = renamed(network.encoder.backbone, (r"^", prefix))
    if variant == "unet":
        blocks = {str(number): (block, 1) for number, block in enumerate(network.decoder.blocks)}
    else:
        places = {name: tuple(map(int, name.split("_"))) for name in network.decoder.nodes}
        blocks = {
            f"x_{5 - level - column}_{4 - level}": (network.decoder.nodes[name], column)
            for name, (level, column) in places.items()
        }
    for name, (block, nodes) in blocks.items():
        state |= smp_block(block, f"decoder.blocks.{name}", nodes)
    state["segmentation_head.0.weight"] = F.pad(network.head.classifier.weight, (1, 1, 1, 1))
    state["segmentation_head.0.bias"] = network.head.classifier.bias
    reference.load_state_dict(state)
    return reference.eval()


@torch.inference_mode()
def largest_difference(network, reference, size=64):
    """The largest difference between the logits of both networks, relative to the largest logit."""
    pixels = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    logits, expected = network.eval()(pixels), reference.eval()(pixels)
    return float((logits - expected).abs().max() / expected.abs().max())


@torch.inference_mode()
def forward(module, pixels):
    return module(pixels)


def training_step(module, pixels):
    """Forward, loss and backward; the optimiser costs both sides the same."""
    module.zero_grad()
    module(pixels).sigmoid().mean().backward()


@torch.no_grad()
def gmacs(module, size):
    """Billions of multiply-accumulates of one image."""
    meta_module = copy.deepcopy(module).to("meta").eval()
    with FlopCounterMode(display=False) as counter:
        meta_module(torch.zeros(1, 3, size, size, device="meta"))
    return counter.get_total_flops() / 2e9


def growth(backbone, sizes, batches, rounds):
    """Milliseconds and peak memory of U-Net's forward against side and batch."""
    module = Logits(our_network("unet", backbone)).eval()
    points = [(size, 1) for size in sizes] + [(sizes[0], batch) for batch in batches]
    calls = {
        f"{size} px, batch {batch}": partial(forward, module, torch.rand(batch, 3, size, size))
        for size, batch in points
    }
    times = compared(interleaved(calls, rounds), next(iter(calls)))
    return [
        {"size": size, "batch": batch, "ms": times[name]["ms"], "peak_mb": peak_mb(call)}
        for (size, batch), (name, call) in zip(points, calls.items(), strict=True)
    ]
