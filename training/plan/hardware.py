"""What a machine can do: device, cores, free memory, precision."""

from pathlib import Path
from typing import NamedTuple

import psutil
import torch

CGROUPS = (  # limit, use and statistics of a container's memory, in its second version and its first
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ),
)
CACHED = "inactive_file", "active_file", "total_inactive_file", "total_active_file"  # pages that the kernel gives back


class Hardware(NamedTuple):
    """Where a run will train.

    Attributes:
        device: "cpu", "cuda", or another of torch's types.
        memory: free bytes, of the GPU where there is one.
        precision: "bf16", "fp16" or "fp32".
        processes: that share each step.
        text: all of it in words.
    """

    device: str
    memory: int
    precision: str
    processes: int
    text: str


def look_at_hardware(arguments) -> Hardware:
    """The hardware of a run with these RunArguments."""
    device = arguments.device.type
    precision = "bf16" if arguments.bf16 else "fp16" if arguments.fp16 else "fp32"
    memory = torch.cuda.mem_get_info()[0] if device == "cuda" else free_memory()
    name = torch.cuda.get_device_name() if device == "cuda" else f"{device}, {torch.get_num_threads()} thread(s)"
    share = f", one of {arguments.world_size} processes" if arguments.world_size > 1 else ""
    text = f"{name}, {memory / 2**30:.1f} GiB free, computes in {precision}{share}"
    return Hardware(device, memory, precision, arguments.world_size, text)


def free_memory(cgroups=CGROUPS) -> int:
    """Bytes of memory that this process may still take: the machine's, or a container's where that is less."""
    free = psutil.virtual_memory().available
    for limit, usage, statistics in cgroups:
        try:
            unused = int(Path(limit).read_text()) - int(Path(usage).read_text())
            free = min(free, unused + _cached(Path(statistics).read_text()))
        except (OSError, ValueError):  # no such group; "max"
            continue
    return max(0, free)


def _cached(statistics):
    """Bytes of files' pages by a group's memory.stat; where it has totals, these are all that count."""
    values = dict(line.split() for line in statistics.splitlines())
    names = [name for name in CACHED if name in values]
    return sum(int(values[name]) for name in names[-2:])
