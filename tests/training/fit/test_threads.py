"""Threads that a launched process gets."""

import subprocess
import sys

import pytest

from hub_unets.training.fit.threads import usable_cores
from tests.training import runs

ASK = "from training.fit.threads import use_all_cores; print(use_all_cores())"


def threads(environment, command=(sys.executable, "-c", ASK)):
    keep = {name: value for name, value in runs.os.environ.items() if not name.startswith(("OMP", "ACCELERATE"))}
    ended = subprocess.run(command, cwd=runs.ROOT, env=keep | environment, capture_output=True, text=True, check=True)
    return [int(line) for line in ended.stdout.split()]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"OMP_NUM_THREADS": "1"}, 1),  # the user's own, without a launcher
        ({"OMP_NUM_THREADS": "1", "ACCELERATE_MIXED_PRECISION": "no"}, usable_cores()),
        (  # said to the launcher
            {"OMP_NUM_THREADS": "2", "ACCELERATE_MIXED_PRECISION": "no", "LOCAL_WORLD_SIZE": "2"},
            min(2, usable_cores()),
        ),
        (
            {"OMP_NUM_THREADS": "1", "ACCELERATE_MIXED_PRECISION": "no", "LOCAL_WORLD_SIZE": "2"},
            max(1, usable_cores() // 2),
        ),
    ],
)
def test_threads_of_a_process(environment, expected):
    assert threads(environment) == [expected]


def test_accelerates_launcher_leaves_all_cores(tmp_path):
    (tmp_path / "ask.py").write_text(f"import sys; sys.path.insert(0, {str(runs.ROOT)!r}); {ASK}")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", str(tmp_path / "ask.py")]
    assert threads({}, launch) == [usable_cores()]


FAULTS = """
import resource, sys
import torch
from hub_unets.training.fit.threads import keep_freed_memory
if sys.argv[1] == "keep":
    print(int(keep_freed_memory()))
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(16, 1024, 1024)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


def test_freed_memory_is_kept():
    command = sys.executable, "-c", FAULTS
    (by_default,) = threads({}, (*command, "leave"))
    could, kept = threads({}, (*command, "keep"))
    if not could:
        pytest.skip("the C library is not glibc: its allocator can't be asked")
    assert kept < by_default / 20
