"""Fair times on a machine that may be busy: rounds of A B A B ..., their medians, and the machine's name."""

import ctypes
import statistics
import time
from pathlib import Path

import torch

from hub_unets.training.fit.threads import keep_freed_memory, usable_cores
from hub_unets.training.records.results import cpu_name

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def interleaved(calls, rounds, warm_ups=1, usual=()):
    """Seconds of every call in every round: {name: list of `rounds` floats}.

    Args:
        calls: {name: function without arguments}; in each round each is called once, in this order.
        rounds, warm_ups: counted and uncounted rounds.
        usual: names that run with the C library's default allocation, as in any other program.
    """
    seconds = {name: [] for name in calls}
    for number in range(warm_ups + rounds):
        for name, call in calls.items():
            default_memory() if name in usual else keep_freed_memory()
            started = time.perf_counter()
            call()
            if number >= warm_ups:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def default_memory():
    """Undo `keep_freed_memory`: glibc's default M_MMAP_MAX and M_TRIM_THRESHOLD."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(-4, 65536)
    mallopt(-1, 128 * 1024)


def compared(seconds, reference, units=1):
    """{name: {"ms", "times_faster"}}: median time, and the median over rounds of `reference`'s time divided by it.

    `units` divides milliseconds: the images that one call takes.
    """
    return {
        name: {
            "ms": round(1000 * statistics.median(times) / units, 3),
            "times_faster": round(statistics.median(b / a for a, b in zip(times, seconds[reference], strict=True)), 3),
        }
        for name, times in seconds.items()
    }


def peak_mb(call):
    """Megabytes that a call adds at its peak to this process; None where the kernel does not tell."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        CLEAR.write_text("5")
        start = _status_mb("VmRSS")
    except (AttributeError, OSError):
        return None
    call()
    return round(_status_mb("VmHWM") - start, 1)


def anonymous_mb():
    """Megabytes of this process that are no file's pages."""
    return _status_mb("RssAnon")


def _status_mb(name):
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) / 1024


def hardware():
    """What every figure must name: processor, threads, versions."""
    return {"cpu": cpu_name(), "cores": usable_cores(), "threads": torch.get_num_threads(), "torch": torch.__version__}
