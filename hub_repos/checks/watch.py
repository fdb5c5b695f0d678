"""Bounds of a process and all that it starts together, which no limit of a single process can hold."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

from hub_unets.hub_repos.checks.isolated import most_memory

INTERVAL = 0.2  # seconds between two looks
MOST_PROCESSES = 32
MOST_FILES = 10_000
DISK_SHARE, EXTRA_DISK = 3, 2**28  # of the repository's bytes, and bytes beside them


def wait(process, folder, seconds, most_disk):
    """Wait until a process ends, breaks a bound or runs out of time; returns what happened.

    Args:
        process: a Popen with a session of its own.
        folder: where it may write.
        seconds: for all of it.
        most_disk: bytes of all files in the folder together.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return f"ended with {process.wait(INTERVAL)}"
        if broken := broken_bound(process.pid, folder, most_disk):
            return broken
    return f"took more than {seconds} seconds"


def broken_bound(session, folder, most_disk):
    """The bound that a session's processes or the folder's files break, in words; None where they keep all."""
    files, size = written(folder)
    members = session_members(session)
    figures = {
        f"wrote more than {MOST_FILES} files": files > MOST_FILES,
        f"wrote more than {most_disk} bytes": size > most_disk,
        f"started more than {MOST_PROCESSES} processes": len(members) > MOST_PROCESSES,
        f"took more than {most_memory()} bytes of memory": sum(members.values()) > most_memory(),
    }
    return next((words for words, broken in figures.items() if broken), None)


def written(folder):
    """How many files and folders there are in a folder, and their bytes on the disk; links are not followed."""
    count, size = 0, 0
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            with contextlib.suppress(OSError):  # it was removed just now
                size += Path(parent, name).lstat().st_size
            count += 1
        if count > MOST_FILES:
            break
    return count, size


def session_members(session):
    """{pid: bytes in memory} of every process of a session; empty where the system does not list processes."""
    members = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):  # it ended just now
            fields = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                members[int(path.parent.name)] = int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
    return members


def end(process):
    """End a process and every process of its session."""
    with contextlib.suppress(AttributeError, ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    for pid in session_members(process.pid):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
