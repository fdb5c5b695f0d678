"""The process in which a repository's own code runs: without a token, with limits, and with an end."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from hub_unets.hub_repos.checks import verification
from hub_unets.hub_repos.checks.check import Check, checked
from hub_unets.hub_repos.checks.isolated import SECONDS, most_memory
from hub_unets.hub_repos.checks.verification import (
    STATIC_CHECKS,
    Static,
    limited_memory,
    prepare,
    run_isolated,
    verify_folder,
)
from tests.hub_repos.tampering import drop_tensor, failures, write


def test_the_isolated_process_knows_no_token_and_its_death_is_a_failure(repository, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nenv > env.txt\necho broken >&2\nexit 3\n")
    python.chmod(0o755)
    (tmp_path / "work").mkdir()
    checks = run_isolated(repository, tmp_path / "work", python)
    assert checks == [Check("isolated process", False, "ended with 3: broken")]
    environment = dict(line.split("=", 1) for line in (tmp_path / "work" / "env.txt").read_text().splitlines())
    known = {"PATH", "LD_LIBRARY_PATH", "HOME", "TMPDIR", "HF_HOME", "HF_HUB_OFFLINE", "CUDA_VISIBLE_DEVICES"}
    assert environment.keys() <= known | {"PWD", "SHLVL", "_"}
    assert environment["HOME"] == str(tmp_path / "work")


@pytest.mark.parametrize("step", ["run_isolated", "reproduce", "figure_kinds"])
def test_a_step_that_breaks_is_a_failed_check_after_the_others(step, repository, monkeypatch):
    steps = dict.fromkeys(("run_isolated", "reproduce", "figure_kinds"), list)
    for name, returned in (steps | {step: {}.__getitem__}).items():
        monkeypatch.setattr(verification, name, lambda *arguments, returned=returned: returned(()))
    *others, last = verify_folder(repository, data="x", afterwards=lambda *_: pytest.fail("it was attested"))
    assert all(check.passed for check in others) and len(others) > len(STATIC_CHECKS)
    assert (last.passed, last.reason) == (False, "KeyError: ()")


def test_a_config_may_leave_out_what_is_its_default(copy, tmp_path):
    config = json.loads((copy / "config.json").read_text())
    del config["num_channels"]
    (copy / "config.json").write_text(json.dumps(config))
    (tmp_path / "work").mkdir()
    prepare(copy, tmp_path / "work")
    assert (tmp_path / "work/image.png").exists()


def test_the_isolated_process_ends_with_its_first_failure(copy, tmp_path):
    drop_tensor(copy)
    (tmp_path / "work").mkdir()
    (check,) = run_isolated(copy, tmp_path / "work")
    assert (check.name, check.passed) == ("load", False)
    assert '"missing_keys": ["head.classifier.bias"]' in check.reason


def test_the_checked_files_are_those_that_run(copy, monkeypatch):
    """Whoever may write to the folder changes it after the last check."""
    code, ran = (copy / "layers.py").read_bytes(), []
    monkeypatch.setitem(STATIC_CHECKS, "late", Static(lambda _: write("layers.py", b"import os")(copy) and ""))
    monkeypatch.setattr(
        verification, "run_isolated", lambda folder, work: ran.append((folder / "layers.py").read_bytes()) or []
    )
    verify_folder(copy)
    assert ran == [code] and (copy / "layers.py").read_bytes() != code


def test_a_failed_first_check_ends_it(copy, monkeypatch):
    """A folder that is repaired later would otherwise run unchecked."""
    (copy / "curves.png").symlink_to("example.png")
    monkeypatch.setitem(STATIC_CHECKS, "late", Static(lambda _: (copy / "curves.png").unlink()))
    monkeypatch.setattr(verification, "run_isolated", lambda *_: pytest.fail("it was run"))
    assert failures(copy) == {"files": "curves.png is a symbolic link: a repository holds plain files only"}


def test_an_endless_process_is_ended_with_its_children(repository, tmp_path, monkeypatch):
    monkeypatch.setattr(verification, "SECONDS", 1)
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nsleep 600 &\necho $! > child.txt\nwait\n")
    python.chmod(0o755)
    (tmp_path / "work").mkdir()
    (check,) = run_isolated(repository, tmp_path / "work", python)
    assert (check.name, check.passed) == ("isolated process", False)
    assert check.reason.startswith("took more than 1 seconds")
    child = Path("/proc", (tmp_path / "work" / "child.txt").read_text().strip(), "status")
    deadline = time.monotonic() + 30
    while child.exists() and "zombie" not in child.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not child.exists() or "zombie" in child.read_text()


def test_the_isolated_process_has_resource_limits(repository, tmp_path):
    script = (
        "import resource, runpy, sys\n"
        "runpy.run_path(sys.argv[1])['limit'](sys.argv[2])\n"
        "for name in ('CPU', 'DATA', 'FSIZE'):\n"
        "    print(resource.getrlimit(getattr(resource, f'RLIMIT_{name}'))[0])\n"
        "try:\n"
        "    bytearray(2**50)\n"
        "except MemoryError:\n"
        "    print('no memory')\n"
    )
    command = [sys.executable, "-I", "-c", script, verification.ISOLATED, repository]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    cpu, data, file_size, allocation = process.stdout.split("\n")[:4]
    largest = max(path.stat().st_size for path in repository.iterdir())
    assert int(cpu) == SECONDS * os.cpu_count() and int(data) == most_memory()
    assert (int(file_size), allocation) == (2 * largest + 2**26, "no memory")


def test_too_much_memory_is_a_failure_in_words():
    def take():
        return torch.zeros(2**38)

    with limited_memory():
        check = checked("figures", take)
    assert re.fullmatch(r"it takes more memory than a repository may \(\d+ GB\)", check.reason)
    assert torch.zeros(8).sum() == 0
