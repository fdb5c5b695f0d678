"""What the process that runs a repository may take, all that it starts included: each bound is broken once."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from hub_unets.hub_repos.checks import isolated, verification, watch
from hub_unets.hub_repos.checks.verification import run_isolated

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system does not list processes")
BROKEN = {
    "disk": ("EXTRA_DISK", 10**6, "for n in 1 2 3 4; do head -c 2000000 /dev/zero > $n; done", "wrote more than"),
    "files": ("MOST_FILES", 20, "mkdir $(seq 30)", "wrote more than 20 files"),
    "processes": ("MOST_PROCESSES", 3, "for n in 1 2 3 4; do sleep 60 & done", "started more than 3 processes"),
    "memory": ("most_memory", lambda: 1000, "", "took more than 1000 bytes of memory"),
}


@pytest.mark.parametrize(("name", "bound", "script", "message"), BROKEN.values(), ids=BROKEN)
def test_a_process_that_breaks_a_bound_is_ended(name, bound, script, message, repository, tmp_path, monkeypatch):
    monkeypatch.setattr(watch, name, bound)
    monkeypatch.setattr(watch, "DISK_SHARE", 0)
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\necho $$ > pid.txt\nsleep 60\n")
    python.chmod(0o755)
    (tmp_path / "work").mkdir()
    started = time.monotonic()
    (check,) = run_isolated(repository, tmp_path / "work", python)
    assert (check.name, check.passed) == ("isolated process", False)
    assert check.reason.startswith(message) and time.monotonic() - started < 30
    pid = tmp_path / "work" / "pid.txt"
    assert not pid.exists() or not watch.session_members(int(pid.read_text()))


def test_a_process_that_leaves_its_group_is_ended_too(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", "import os\nif not os.fork(): os.setpgid(0, 0)\nos.system('sleep 60')"],
        start_new_session=True,
    )
    deadline = time.monotonic() + 30
    while len(watch.session_members(process.pid)) < 4 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(watch.session_members(process.pid)) >= 4
    watch.end(process)
    while watch.session_members(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert watch.session_members(process.pid) == {}


def test_what_is_written_is_counted_and_links_are_not_followed(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(b"x" * 5000)
    (tmp_path / "link").symlink_to("/")
    before = watch.written(tmp_path)
    (tmp_path / "another").write_bytes(b"x" * 700)
    count, size = watch.written(tmp_path)
    assert (count, size - before[1]) == (4, 700) and before[0] == 3


def test_open_files_have_a_bound(repository):
    script = (
        "import runpy, sys\n"
        "runpy.run_path(sys.argv[1])['limit'](sys.argv[2])\n"
        "files = []\n"
        "try:\n"
        "    while len(files) < 5000:\n"
        "        files.append(open(sys.argv[1]))\n"
        "except OSError:\n"
        "    print(len(files))\n"
    )
    command = [sys.executable, "-I", "-c", script, verification.ISOLATED, repository]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert isolated.MOST_OPEN_FILES - 16 < int(done.stdout) <= isolated.MOST_OPEN_FILES
