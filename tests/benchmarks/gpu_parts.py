"""The parts of the GPU benchmark: `python -m hub_unets.benchmarks.gpu_parts PART` prints a JSON line a figure."""

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from hub_unets.benchmarks import loops, networks
from hub_unets.benchmarks.minutes import dice_of_run, reached
from hub_unets.benchmarks.timing import compared, interleaved
from hub_unets.training.data.phantoms import phantom_dataset

SMP = "smp"


class Mode(NamedTuple):
    """How a network runs; float32 and channels as they come by default."""

    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    compiled: bool = False
    graph: bool = False


MODES = {
    "float32": Mode(),
    "bf16": Mode(torch.bfloat16, channels_last=True),
    "fp16": Mode(torch.float16, channels_last=True),
    "bf16, CUDA graph": Mode(torch.bfloat16, channels_last=True, graph=True),
    "bf16, compiled": Mode(torch.bfloat16, channels_last=True, compiled=True),
}


def prepared(module, mode, device):
    """A copy-free module on the device, in the mode's memory format, compiled where the mode says so."""
    module = module.to(device)
    if mode.channels_last:
        module = module.to(memory_format=torch.channels_last)
    return torch.compile(module) if mode.compiled else module


def as_input(pixels, mode, device):
    pixels = pixels.to(device, non_blocking=True)
    return pixels.to(memory_format=torch.channels_last) if mode.channels_last else pixels


@torch.inference_mode()
def forward(module, mode, device, pixels):
    """Logits, float32, of pixels on the host."""
    with torch.autocast(device.type, mode.dtype, enabled=mode.dtype != torch.float32):
        return module(as_input(pixels, mode, device)).float()


def forward_call(module, mode, device, pixels):
    """A function that maps `pixels`, on the host, to logits on the device; it has waited for them."""
    if not mode.graph:
        return lambda: wait(device, forward(module, mode, device, pixels))
    place = as_input(pixels, mode, device).clone()
    replay, logits = captured(module, mode, device, place)
    return lambda: (place.copy_(pixels, non_blocking=True), replay(), wait(device, logits))[-1]


@torch.inference_mode()
def captured(module, mode, device, place):
    """A CUDA graph's replay on the tensor `place`, and the logits that it fills."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            forward(module, mode, device, place)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = forward(module, mode, device, place)
    return graph.replay, logits


def wait(device, result=None):
    """`result`, once the device has done all that it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return result


def latency(device, sizes=(256, 352), rounds=200, modes=MODES):
    """Milliseconds from one image's pixels on the host to its logits: median and 95 % quantile."""
    for size in sizes:
        pixels = torch.rand(1, 3, size, size)
        for name, mode in modes.items():
            module = prepared(networks.Logits(networks.our_network("unet", "mobilenetv2_100")), mode, device)
            seconds = interleaved({name: forward_call(module.eval(), mode, device, pixels)}, rounds, 10)[name]
            quantiles = statistics.quantiles(seconds, n=20, method="inclusive")
            p50, p95 = (round(1000 * value, 3) for value in (statistics.median(seconds), quantiles[-1]))
            yield {"mode": name, "size": size, "p50_ms": p50, "p95_ms": p95}


def sides(variant, backbone, mode, device):
    """Ours and smp's network with the same weights."""
    network = networks.our_network(variant, backbone)
    theirs = networks.their_network(variant, network, backbone)
    return {"ours": prepared(networks.Logits(network), mode, device), SMP: prepared(theirs, mode, device)}


def against_smp(device, call_of, batch, size, rounds, modes):
    """Milliseconds an image of both sides; `call_of` takes a module, a mode, the device and pixels."""
    pixels = torch.rand(batch, 3, size, size)
    for variant in networks.THEIRS:
        for backbone in networks.WIDTHS:
            for name in modes:
                both = sides(variant, backbone, MODES[name], device)
                calls = {side: call_of(module, MODES[name], device, pixels) for side, module in both.items()}
                times = compared(interleaved(calls, rounds, 3), SMP, batch)
                figures = {"ours_ms": times["ours"]["ms"], "smp_ms": times[SMP]["ms"]}
                figures["times_faster"] = times["ours"]["times_faster"]
                yield {"variant": variant, "backbone": backbone, "mode": name, **figures}


def forward_part(device, batch=16, size=256, rounds=20, modes=("float32", "bf16", "fp16", "bf16, compiled")):
    def call_of(module, *arguments):
        return forward_call(module.eval(), *arguments)

    return against_smp(device, call_of, batch, size, rounds, modes)


def step_part(device, batch=16, size=256, rounds=10, modes=("float32", "bf16", "bf16, compiled")):
    def call_of(module, mode, device, pixels):
        return partial(training_step, module.train(), mode, device, pixels)

    return against_smp(device, call_of, batch, size, rounds, modes)


def training_step(module, mode, device, pixels):
    """Forward, loss and backward."""
    module.zero_grad()
    with torch.autocast(device.type, mode.dtype, enabled=mode.dtype != torch.float32):
        loss = module(as_input(pixels, mode, device)).float().sigmoid().mean()
    loss.backward()
    wait(device)


def loop(device, images=256, size=256, batch_size=16, workers=8, rounds=40):
    """Images a second of the training loop with our loader and the plain one, in as many workers."""
    rows = phantom_dataset(images, size=size)
    with tempfile.TemporaryDirectory() as folder:
        batches = loops.loaders(rows, size, batch_size, folder, workers)
        for name in (loops.OURS, loops.PLAIN):
            network, optimizer = loops.prepared("mobilenetv2_100", name == loops.OURS, device)
            iterator = batches[name]
            call = lambda network=network, optimizer=optimizer, name=name, iterator=iterator: loops.step(  # noqa: E731
                network, optimizer, name == loops.OURS, next(iterator)
            )
            seconds = interleaved({name: call}, rounds, 5)[name]
            yield {"side": name, "workers": workers, "images_per_second": round(batch_size * rounds / sum(seconds), 1)}


def processes(device):
    """Images a second of a training on one device and on all of them (DDP)."""
    for count in sorted({1, torch.cuda.device_count()}):
        with tempfile.TemporaryDirectory() as folder:
            launch = ["-m", "accelerate.commands.launch", "--num_processes", str(count), "--num_machines", "1"]
            launch += ["--mixed_precision", "no", "--dynamo_backend", "no", *(["--multi_gpu"] if count > 1 else [])]
            options = ["--data", "phantoms?count=600&size=256&seed=0", "--num_train_epochs", "6"]
            options += ["--output_dir", f"{folder}/run", "--dataloader_num_workers", "2"]
            command = [sys.executable, *launch, "-m", "hub_unets.training.run", "unet_phantoms", *options]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            history = read_history(Path(folder) / "run")
        speed = next(float(row["train_samples_per_second"]) for row in history if row.get("train_samples_per_second"))
        yield {"devices": count, "images_per_second": round(speed, 1)}


def accuracy(device, data, backbone_weights, targets=(0.88, 0.9)):
    """Minutes from the command's start until the validation Dice first exceeds each target; a row as soon as known."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        options = ["--data", data, "--output_dir", str(run), "--dataloader_num_workers", "8"]
        options += ["--backbone_weights", backbone_weights] if backbone_weights else []
        command = [sys.executable, "-m", "hub_unets.training.run", "unet_mobilenetv2", *options]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        for target, passed in reached(process, partial(dice_of_run, run), targets):
            yield {"dice_above": target, "minutes": passed}


def read_history(run):
    with (run / "history.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


RUN = {"latency": latency, "forward": forward_part, "step": step_part, "loop": loop, "processes": processes}


def main(argv=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=[*RUN, "accuracy"])
    parser.add_argument("--data")
    parser.add_argument("--backbone_weights")
    arguments = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if arguments.part == "accuracy":
        rows = accuracy(device, arguments.data, arguments.backbone_weights)
    else:
        rows = RUN[arguments.part](device)
    for row in rows:
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
