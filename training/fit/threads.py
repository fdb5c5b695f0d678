"""A process's CPU threads and memory allocator, and a check of how many processes the launcher started."""

import ctypes
import os

import torch

from hub_unets.training.errors import UserError


def use_all_cores():
    """Give this process its share of the cores where accelerate's launcher left it one thread; returns the threads.

    `accelerate launch` sets OMP_NUM_THREADS=1 unless it is told otherwise (accelerate 1.15), so that training on a CPU
    would use one core of it. A larger OMP_NUM_THREADS or --num_cpu_threads_per_process stays.
    """
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ
    if launched and os.environ.get("OMP_NUM_THREADS") == "1":
        torch.set_num_threads(max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
    return torch.get_num_threads()


def usable_cores():
    """The cores that this process may use: fewer than the machine's in a container or under taskset."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def keep_freed_memory():
    """Let glibc's allocator reuse freed tensors instead of giving their pages back; returns whether it could be asked.

    By default each large tensor is mapped anew and zeroed page by page: a tenth to a third of the time of a training
    step on a CPU went into the kernel. Elsewhere than on glibc nothing is changed.
    """
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(mmap_max, 0) and mallopt(trim_threshold, -1))


def require_processes(state):
    """Raise UserError where accelerate's launcher was asked for several CPU processes and started one."""
    asked_for_several = {"ACCELERATE_USE_CPU", "MASTER_ADDR"} <= os.environ.keys()  # its --cpu names no number
    if asked_for_several and os.environ["ACCELERATE_USE_CPU"] == "True" and state.num_processes == 1:
        raise UserError(
            "`accelerate launch --cpu` starts one process, whatever --num_processes says, unless MPI does: give "
            "--multi_gpu instead of --cpu (where there is no GPU it uses the CPU), or --num_processes 1."
        )
