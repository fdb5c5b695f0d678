"""Whatever comes, the outcome is right or a clear error that names the file, within a bound of time and memory.

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

SECONDS, BYTES = 20, 2 * 2**30  # for one input; beyond what the process has taken already
SLOW = 10_000

FORK = multiprocessing.get_context("fork")


def outcome(name, seed):
    """ "right", "refused", or what is wrong, for one input."""
    with tempfile.TemporaryDirectory() as folder:
        datasets.config.HF_DATASETS_CACHE = Path(folder, "cache")
        (inputs := Path(folder, "inputs")).mkdir()
        try:
            named, read = ENTRIES[name][1](inputs, np.random.default_rng([zlib.crc32(name.encode()), seed]))
            read()
            return "right"
        except UserError as error:
            names = [named] if isinstance(named, str) else named
            said = any(text in str(error) for text in names)
            return "refused" if said else f"an error that does not name {' or '.join(names)}: {error}"
        except BaseException:
            return traceback.format_exc(limit=-3)


def _try_all(name, seeds, sender):
    with Path("/proc/self/statm").open() as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + BYTES, resource.RLIM_INFINITY))
    datasets.disable_progress_bars()
    for seed in seeds:
        sender.send((seed, outcome(name, seed)))


def outcomes(name, seeds):
    """The outcome of each seed."""
    found = {}
    while left := [seed for seed in seeds if seed not in found]:
        receiver, sender = FORK.Pipe(duplex=False)
        child = FORK.Process(target=_try_all, args=(name, left, sender))
        child.start()
        sender.close()
        try:
            while len(found) < len(seeds) and receiver.poll(SECONDS):
                seed, result = receiver.recv()
                found[seed] = result
            reason = f"took more than {SECONDS} s"
        except EOFError:
            child.join()
            reason = f"ended the process with {child.exitcode}"
        if still := [seed for seed in left if seed not in found]:
            found[still[0]] = reason
        child.kill()
        child.join()
    return found


def assert_sound(name, seeds, record_property):
    found = outcomes(name, seeds)
    counts = collections.Counter(found.values())
    for kind in ("right", "refused"):
        record_property(kind, counts[kind])
    bad = {seed: text for seed, text in found.items() if text not in ("right", "refused")}
    if bad:
        listed = "\n".join(f"--- {name}, seed {seed}: {text[:2000]}" for seed, text in [*bad.items()][:10])
        pytest.fail(
            f"{len(bad)} of {len(found)} inputs end in neither a result nor a clear error\n{listed}", pytrace=False
        )
    assert set(counts) == {"right", "refused"}  # else nothing is tried


@pytest.mark.parametrize("name", ENTRIES)
def test_some_hundred(name, record_property):
    assert_sound(name, range(ENTRIES[name][0]), record_property)


@pytest.mark.slow
@pytest.mark.parametrize("name", ENTRIES)
def test_ten_thousand(name, record_property):
    total = sum(count for count, _ in ENTRIES.values())
    first = ENTRIES[name][0]
    assert_sound(name, range(first, first + SLOW * first // total), record_property)
