"""What a network costs: multiply-accumulates, and milliseconds on this machine."""

import copy
import statistics
import time

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from hub_unets.training.measure.segmenter import Segmenter

WARM_UPS, REPEATS = 2, 5


@torch.no_grad()
def gmacs(model, size):
    """Billions of multiply-accumulates of one image of size x size pixels in convolutions and matrix products."""
    on_meta = copy.deepcopy(model).to("meta").eval()
    with FlopCounterMode(display=False) as counter:
        on_meta(torch.zeros(1, model.config.num_channels, size, size, device="meta"))
    return counter.get_total_flops() / 2e9


@torch.inference_mode()
def cpu_milliseconds(load, size, rounds=3):
    """Median milliseconds of one image's forward pass for each model: float32, eager, all threads, batch 1.

    Args:
        load: {name: a function that returns the model}; one model at a time is in memory.
        size: {name: side in pixels of `pixel_values`}.
        rounds: how often each model is timed in turn, so that a busy minute does not slow one of them alone.


    Returns:
        dict: name to milliseconds.
    """
    times = {name: [] for name in load}
    for _ in range(rounds):
        for name, load_one in load.items():
            model = load_one().float().eval().to(memory_format=torch.channels_last)
            pixels = torch.randn(1, model.config.num_channels, size[name], size[name])
            pixels = pixels.to(memory_format=torch.channels_last)
            for _ in range(WARM_UPS):
                model(pixels)
            times[name] += [_seconds(model, pixels) for _ in range(REPEATS)]
    return {name: 1000 * statistics.median(seconds) for name, seconds in times.items()}


def end_to_end_milliseconds(model, processor, images, warm_ups=2):
    """Median and 95 % quantile of the time from image to mask at its own size, one image at a time.

    Args:
        model: in eval mode, on its device.
        processor: its image processor.
        images: as `read_image` gives them, each timed once.

    Returns:
        dict: `p50` and `p95` in milliseconds, `images` and the CPU `threads`.
    """
    segment, seconds = Segmenter(model, processor), []
    for image in [*images[:warm_ups], *images]:
        started = time.perf_counter()
        segment([image])
        seconds.append(time.perf_counter() - started)
    p50, p95 = np.quantile(seconds[-len(images) :], (0.5, 0.95)) * 1000
    return {"p50": float(p50), "p95": float(p95), "images": len(images), "threads": torch.get_num_threads()}


def _seconds(model, pixels):
    started = time.perf_counter()
    model(pixels)
    return time.perf_counter() - started
