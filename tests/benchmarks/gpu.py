"""Measure on CUDA devices what a CPU can't show: `hub-unets bench-gpu`, at most eight minutes.

Each part is a process of its own that prints a JSON line a figure, so that one that hangs or fails costs its share of
the time and nothing else. Without a CUDA device nothing is measured.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

from hub_unets.benchmarks import gpu_page
from hub_unets.training.errors import UserError, run_command

HERE, SECONDS = Path(__file__).parent, 480
PARTS = "hub_unets.benchmarks.gpu_parts"


class Part(NamedTuple):
    """A part's name, the seconds below which it is not begun, and those that it may take at most."""

    name: str
    least: float
    most: float


PLAN = [  # the most telling first
    Part("latency", 30, 90),
    Part("forward", 40, 80),
    Part("step", 40, 80),
    Part("loop", 30, 60),
    Part("processes", 60, 120),
    Part("accuracy", 60, 400),
]


class Budget:
    """Seconds that are left of a total; `clock` tells seconds."""

    def __init__(self, seconds, clock=time.monotonic):
        self.clock, self.end = clock, clock() + seconds

    def left(self):
        return self.end - self.clock()


def run_parts(plan, budget, run_part):
    """Run the parts that still fit, in order.

    Args:
        plan: Parts.
        budget: a Budget.
        run_part: takes a name and the seconds that it may take; returns its rows and why it ended early, or "".

    Returns:
        {name: {"rows": list, "note": why there are none or not all, or ""}}.
    """
    results = {}
    for part in plan:
        left = budget.left()
        if left < part.least:
            results[part.name] = {"rows": [], "note": f"left out: {max(left, 0):.0f} s were left of the budget"}
            continue
        started = budget.clock()
        rows, note = run_part(part.name, min(part.most, left))
        results[part.name] = {"rows": rows, "note": note}
        print(f"{part.name}: {len(rows)} figures, {budget.clock() - started:.0f} s {note}", flush=True)
    return results


def run_process(command, seconds):
    """The JSON lines that a process prints within some seconds, and why it ended early, or ""; it is killed with all
    that it started."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    note = ""
    try:
        printed, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        note = f"stopped after {seconds:.0f} s"
        os.killpg(process.pid, signal.SIGKILL)
        printed, errors = process.communicate()
    if process.returncode and not note:
        note = f"failed: {(errors.strip().splitlines() or ['no message'])[-1][:300]}"
    return [json.loads(line) for line in printed.splitlines() if line.startswith("{") and line.endswith("}")], note


def hardware():
    """What every figure must name."""
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {"devices": names, "cores": os.cpu_count(), "torch": torch.__version__, "cuda": torch.version.cuda}


def main(argv=None):
    parser = argparse.ArgumentParser(prog="hub-unets bench-gpu", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", help="Folder of Kvasir-SEG, for the minutes to accuracy; without it they are left out."
    )
    parser.add_argument("--backbone_weights", help="ImageNet weights of mobilenetv2_100; default: as the recipe says.")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="The budget.")
    parser.add_argument("--output", type=Path, default=HERE, help="Folder for gpu.json, gpu.md and gpu.png.")
    arguments = parser.parse_args(argv)
    if not arguments.seconds > 0:
        raise UserError(f"seconds must be above 0, got {arguments.seconds}.")
    if not torch.cuda.is_available():
        print("No CUDA device is at hand: nothing was measured, and no page written.")
        return 0
    options = [f"--{name}={value}" for name in ("data", "backbone_weights") if (value := getattr(arguments, name))]
    plan = [part for part in PLAN if part.name != "processes" or torch.cuda.device_count() > 1]
    plan = [part for part in plan if part.name != "accuracy" or arguments.data]
    parts = run_parts(
        plan,
        Budget(arguments.seconds),
        lambda name, seconds: run_process([sys.executable, "-m", PARTS, name, *options], seconds),
    )
    arguments.output.mkdir(parents=True, exist_ok=True)
    results = {"hardware": hardware(), "seconds": arguments.seconds, "parts": parts}
    (arguments.output / gpu_page.RESULTS).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    gpu_page.write_page(arguments.output)
    print(arguments.output / gpu_page.PAGE)
    return 0


if __name__ == "__main__":
    run_command(main)
