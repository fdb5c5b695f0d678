"""The page of what the tests try to break: `make faults` writes tests/README.md from one run of those tests."""

import platform
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from hub_unets.training.records.markdown import table
from hub_unets.training.records.results import cpu_name

TESTS = Path(__file__).parent
FUZZ = {
    "tests/fuzz/test_fuzz.py": "images, masks, folders, zips, annotations, tables, recipes",
    "tests/hub_repos/checks/test_fuzz.py": "a repository that `verify` reads",
}
FAULTS = {
    "tests/training/test_resume.py": "runs killed at every moment, resumed bit for bit; data that changes",
    "tests/training/fit/test_checkpoints.py": "damaged checkpoints, full disks, two runs in one folder",
    "tests/training/test_sweep.py": "workers killed, trials that fail",
    "tests/training/test_sweep_server.py": "a worker killed with -9, a PostgreSQL server that goes and comes back",
    "tests/hub_repos/push/test_faults.py": "pushes cut off at each request, a Hub that refuses, moves or is silent",
    "tests/hub_repos/test_verify_tampered.py": "forged, swapped and hostile repositories",
    "tests/hub_repos/test_verify_data.py": "forged figures and weights, other images, beside the data",
    "tests/hub_repos/test_verify_process.py": "code that never ends, takes all memory or looks for a token",
    "tests/hub_repos/test_handler.py": "bad requests to an endpoint",
}


def run(files, slow):
    """A `testcase` element for each test of these files that was run."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        marker_options = [] if slow else ["-m", "not slow"]
        command = [sys.executable, "-m", "pytest", "-q", "-n", "2", *marker_options, f"--junitxml={report}", *files]
        subprocess.run(command, cwd=TESTS.parent, check=False)
        return list(ElementTree.parse(report).iter("testcase"))


def file_of(case):
    """The path of a test's file."""
    parts = case.get("classname").split(".")
    return "/".join(parts[: next(number for number, part in enumerate(parts) if part.startswith("test_")) + 1]) + ".py"


def has_failed(case):
    return any(case.find(kind) is not None for kind in ("failure", "error"))


def tried(cases, name):
    """The sum of a property over tests."""
    values = [prop.get("value") for case in cases for prop in case.iter("property") if prop.get("name") == name]
    return sum(map(int, values))


def page(cases):
    """The text of tests/README.md."""
    by_file = {name: [case for case in cases if file_of(case) == name] for name in FUZZ | FAULTS}
    fuzz = [
        [subject, f"`{name}`", tried(by_file[name], "right") + tried(by_file[name], "refused"),
         tried(by_file[name], "right"), tried(by_file[name], "refused"), sum(map(has_failed, by_file[name]))]
        for name, subject in FUZZ.items()
    ]  # fmt: skip
    faults = []
    for name, subject in FAULTS.items():
        completed = [case for case in by_file[name] if case.find("skipped") is None]
        faults.append([subject, f"`{name}`", len(completed), sum(map(has_failed, completed))])
    return f"""# What the tests try to break

`make test` runs in about 13 minutes on two cores; `make test-all` takes the slow tests too. Tests mirror the source:
the tests of `training/data/reading.py` are in `tests/training/data/test_reading.py`. They use real components:
processes that `accelerate` launches, an HTTP Hub on this machine, Chromium, and PostgreSQL where it is installed.

This page is made by `make faults` ({cpu_name()}, Python {platform.python_version()}).

Seeded mutations of whatever a stranger can send, read by the code that reads it in use. An input is *right* where it
is read as what it shows, and *refused* where the error names the file and the cure. Anything else, a traceback, a
crash, a hang or too much memory, fails a test.

{table(["what is mutated", "tests", "inputs", "right", "refused", "tests failed"], fuzz)}

Faults in the middle of work. Nothing may be lost, and what is repeated must end as if nothing had happened.

{table(["what happens", "tests", "cases", "failed"], faults)}
"""


def main():
    (TESTS / "README.md").write_text(page(run([*FUZZ, *FAULTS], "--slow" in sys.argv)), encoding="utf-8")
    print(TESTS / "README.md")


if __name__ == "__main__":
    main()
