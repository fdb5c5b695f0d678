"""Every input is read correctly or refused with a clear error that names the file, within limits of time and memory.

Inputs are tried in a child process: one that crashes, hangs or takes too much memory is a failure with a seed, and
the next one is tried in a new child.
"""

import collections
import multiprocessing
import resource
import tempfile
import traceback
import zlib
from pathlib import Path

import datasets
import numpy as np
import pytest

from hub_unets.training.errors import UserError
from tests.fuzz.entries import ENTRIES

SECONDS, BYTES = 20, 2 * 2**30  # for one input; memory is counted from what the process holds at its start
SLOW = 10_000

FORK = multiprocessing.get_context("fork")


def outcome(name, seed):
    """ "right", "refused", or what is wrong, for one input."""
    with tempfile.TemporaryDirectory() as folder:
        datasets.config.HF_DATASETS_CACHE = Path(folder, "cache")
        (inputs := Path(folder, "inputs")).mkdir()
        try:
            expected_names, read = ENTRIES[name][1](inputs, np.random.default_rng([zlib.crc32(name.encode()), seed]))
            read()
            return "right"
        except UserError as error:
            names = [expected_names] if isinstance(expected_names, str) else expected_names
            is_named = any(text in str(error) for text in names)
            return "refused" if is_named else f"an error that does not name {' or '.join(names)}: {error}"
        except BaseException:
            return traceback.format_exc(limit=-3)


def _try_all(name, seeds, sender):
    with Path("/proc/self/statm").open() as file:
        memory_in_use = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (memory_in_use + BYTES, resource.RLIM_INFINITY))
    datasets.disable_progress_bars()
    for seed in seeds:
        sender.send((seed, outcome(name, seed)))


def outcomes(name, seeds):
    """The outcome of each seed."""
    results = {}
    while pending := [seed for seed in seeds if seed not in results]:
        receiver, sender = FORK.Pipe(duplex=False)
        child = FORK.Process(target=_try_all, args=(name, pending, sender))
        child.start()
        sender.close()
        try:
            while len(results) < len(seeds) and receiver.poll(SECONDS):
                seed, result = receiver.recv()
                results[seed] = result
            reason = f"took more than {SECONDS} s"
        except EOFError:
            child.join()
            reason = f"ended the process with {child.exitcode}"
        if unfinished := [seed for seed in pending if seed not in results]:
            results[unfinished[0]] = reason
        child.kill()
        child.join()
    return results


def assert_sound(name, seeds, record_property):
    results = outcomes(name, seeds)
    counts = collections.Counter(results.values())
    for kind in ("right", "refused"):
        record_property(kind, counts[kind])
    failures = {seed: text for seed, text in results.items() if text not in ("right", "refused")}
    if failures:
        listed = "\n".join(f"--- {name}, seed {seed}: {text[:2000]}" for seed, text in [*failures.items()][:10])
        pytest.fail(
            f"{len(failures)} of {len(results)} inputs end in neither a result nor a clear error\n{listed}",
            pytrace=False,
        )
    assert set(counts) == {"right", "refused"}  # else nothing is tried


@pytest.mark.parametrize("name", ENTRIES)
def test_hundreds_of_inputs(name, record_property):
    assert_sound(name, range(ENTRIES[name][0]), record_property)


@pytest.mark.slow
@pytest.mark.parametrize("name", ENTRIES)
def test_ten_thousand(name, record_property):
    total = sum(count for count, _ in ENTRIES.values())
    start = ENTRIES[name][0]
    assert_sound(name, range(start, start + SLOW * start // total), record_property)
