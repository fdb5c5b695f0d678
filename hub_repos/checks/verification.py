"""All checks of a built repository, in order: first those that read it, then those that run it, then its figures."""

import collections
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from hub_unets.hub_repos.checks import figures as figure_checks
from hub_unets.hub_repos.checks import static as static_checks
from hub_unets.hub_repos.checks import watch
from hub_unets.hub_repos.checks.check import Check, checked, checks_of
from hub_unets.hub_repos.checks.companions import check_companions
from hub_unets.hub_repos.checks.data import check_data_digests
from hub_unets.hub_repos.checks.int8_file import check_int8
from hub_unets.hub_repos.checks.isolated import SECONDS, most_memory
from hub_unets.hub_repos.checks.locks import check_lock
from hub_unets.hub_repos.checks.onnx_file import check_onnx
from hub_unets.hub_repos.checks.release import check_release
from hub_unets.hub_repos.checks.reproduce import reproduce
from hub_unets.hub_repos.checks.untrusted import read_json
from hub_unets.hub_repos.repository.card import render_marked
from hub_unets.hub_repos.repository.example import example_name, write_example
from hub_unets.hub_repos.repository.export import ONNX
from hub_unets.hub_repos.repository.int8 import INT8
from hub_unets.hub_repos.repository.marks import FIGURES, KINDS, NUMBER, marked_numbers


class Static(NamedTuple):
    """A check that only reads, and the names of the checks that must pass first."""

    check: Callable
    needs: tuple = ()


STATIC_CHECKS = {
    "manifest": Static(static_checks.check_manifest),
    "release": Static(check_release, ("manifest",)),
    "weights": Static(static_checks.check_weights),
    "auto map": Static(static_checks.check_auto_map),
    "config": Static(static_checks.check_config),
    "preprocessor": Static(static_checks.check_preprocessor, ("config",)),
    "results": Static(figure_checks.check_results_file, ("config", "preprocessor")),
    "network": Static(static_checks.check_network, ("weights", "results")),
    "per image": Static(figure_checks.check_per_image, ("results",)),
    "data digests": Static(check_data_digests, ("per image",)),
    "lock": Static(check_lock, ("results",)),
    "card": Static(figure_checks.check_card, ("results",)),
    "licence and notebook": Static(check_companions, ("card",)),
}

NETWORK_CHECKS = {ONNX: ("onnx", check_onnx), INT8: ("int8", check_int8)}  # of files that need not be there

ISOLATED = Path(__file__).with_name("isolated.py")
SHOWN_BYTES = 500  # of the isolated process's last lines


def verify_folder(folder, run=True, data=None, repo_id=None, revision=None, columns=(None, None), afterwards=None):
    """The checks of a built repository, in order. A check that needs another is left out where that one fails.

    Args:
        folder: the repository; it is copied, and only the copy is judged.
        run: also load and run it, in a process of its own, if every static check passes.
        data: also score it again on these images and masks, if every static check passes.
        repo_id, revision: its repository and its tag on the Hub; its card may name no other.
        columns: the image column and the mask column of `data`.
        afterwards: called with the copy, the checks and {part: Scores} of `data`, if every check passed.

    Returns:
        list of Check.
    """
    with tempfile.TemporaryDirectory() as temporary, limited_memory():
        copy = Path(temporary) / "repository"
        files = checked("files", static_checks.copy_files, Path(folder).absolute(), copy)
        files = checked("files", static_checks.check_files, copy) if files.passed else files
        if not files.passed:
            return [files]
        name_check = checked("card names this repository", figure_checks.check_named, copy, repo_id, revision)
        checks = [files, *run_static(copy), name_check]
        for file, (name, check) in NETWORK_CHECKS.items():
            if (copy / file).exists() and all(passed.passed for passed in checks):
                checks.append(checked(name, check, copy))
        if not all(check.passed for check in checks):
            return checks
        if run:
            work = Path(temporary) / "work"
            work.mkdir()
            checks += checks_of("isolated process", run_isolated, copy, work)
        scored = {}
        checks += [] if data is None else checks_of("data", reproduce, copy, data, columns, scored)
        if not all(check.passed for check in checks):
            return checks
        kinds = checks_of("figures", figure_kinds, copy, data is not None)
        if afterwards is not None and all(check.passed for check in kinds):
            afterwards(copy, checks, scored)
        return checks + kinds


def figure_kinds(folder, with_data):
    """A line for each kind of figure on the card, of a repository that has passed the other checks.

    Args:
        folder: the repository.
        with_data: whether the data's checks were among them.
    """
    results, numbers = read_json(folder / "results.json"), collections.defaultdict(list)
    for kind, text in marked_numbers(render_marked(folder, results)):
        if NUMBER.search(text):
            numbers[kind].append(text)
    files, data, stated = (f"{len(numbers[kind])} on the card" for kind in FIGURES)
    again = "computed again" if with_data else "not computed again: that takes --data"
    return [
        Check(f"figures {KINDS['files'].sign}", True, f"{files} follow from its files"),
        Check(f"figures {KINDS['data'].sign}", True, f"{data}, {again}", note=not with_data),
        Check(f"figures {KINDS['stated'].sign}", True, f"{stated} are stated, and nothing can check them", note=True),
    ]


def run_static(folder):
    """The static checks, without those that need a check that failed or was left out."""
    checks, failed = [], set()
    for name, (check, needs) in STATIC_CHECKS.items():
        if failed.isdisjoint(needs):
            checks.append(checked(name, check, folder))
        if not (failed.isdisjoint(needs) and checks[-1].passed):
            failed.add(name)
    return checks


@contextlib.contextmanager
def limited_memory():
    """Bound the memory: taking far more than is in use now ends in an error, on systems that have such limits."""
    try:
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5]) * resource.getpagesize()
        limits = [limit for limit in (used + most_memory(), soft, hard) if limit != resource.RLIM_INFINITY]
        resource.setrlimit(resource.RLIMIT_DATA, (min(limits), hard))
    except (ImportError, OSError, ValueError):
        yield
        return
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def run_isolated(folder, work, python=sys.executable):
    """The checks of isolated.py on a repository that has passed the static ones.

    Args:
        folder: the repository.
        work: an empty folder; the process writes its home, caches, stderr.txt and findings there.
        python: the interpreter, which needs torch, torchvision, timm, transformers and pillow.
    """
    prepare(folder, work)
    inherited = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    overrides = {"HOME": str(work), "TMPDIR": str(work), "HF_HOME": str(work / "cache")}
    overrides |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    most_disk = watch.DISK_SHARE * watch.written(folder)[1] + watch.EXTRA_DISK
    with (work / "stderr.txt").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [python, "-I", ISOLATED, folder, work],
            cwd=work,
            env={**inherited, **overrides},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            outcome = watch.wait(process, work, SECONDS, most_disk)
        finally:
            watch.end(process)
    if process.returncode or not (work / "checks.json").exists():
        last_lines = (work / "stderr.txt").read_bytes()[-SHOWN_BYTES:].decode("utf-8", errors="replace")
        return [Check("isolated process", False, f"{outcome}: {' '.join(last_lines.split())}")]
    return [Check(*entry[:3]) for entry in json.loads((work / "checks.json").read_text(encoding="utf-8"))]


def prepare(folder, work):
    """Write the files that isolated.py reads: an image, and the snippets of the repository's card."""
    num_channels = static_checks.read_config(folder).num_channels
    image = (work / "image").with_suffix(Path(example_name(num_channels)).suffix)
    write_example(image, num_channels, 64)
    texts = figure_checks.snippets(folder, image)
    (work / "snippets.json").write_text(json.dumps(texts), encoding="utf-8")
