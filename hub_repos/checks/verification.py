"""All checks of a built repository, in order: what is read, then what is run, then what is computed again."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from hub_unets.hub_repos.checks import figures as figure_checks
from hub_unets.hub_repos.checks import static as static_checks
from hub_unets.hub_repos.checks.check import Check, checked
from hub_unets.hub_repos.checks.code_rules import check_code
from hub_unets.hub_repos.checks.onnx_file import check_onnx
from hub_unets.hub_repos.checks.reproduce import reproduce
from hub_unets.hub_repos.repository.export import ONNX
from hub_unets.training.data.phantoms import phantom

STATIC_CHECKS = {
    "files": static_checks.check_files,
    "manifest": static_checks.check_manifest,
    "release": static_checks.check_release,
    "imports": check_code,
    "weights": static_checks.check_weights,
    "auto map": static_checks.check_auto_map,
    "config": static_checks.check_config,
    "preprocessor": static_checks.check_preprocessor,
    "network": static_checks.check_network,
    "results": figure_checks.check_results_file,
    "per image": figure_checks.check_per_image,
    "card metadata": figure_checks.check_metadata,
    "card": figure_checks.check_card,
}

ISOLATED = Path(__file__).with_name("isolated.py")


def verify_folder(folder, run=True, data=None, repo_id=None):
    """The checks of a built repository, in order.

    Args:
        folder: the repository.
        run: also load and run it, in a process of its own, if every static check passes.
        data: also score it again on these images and masks, if every static check passes.
        repo_id: the Hub repository that it came from, the only one that its card may name.

    Returns:
        list of Check.
    """
    folder = Path(folder).absolute()
    with tempfile.TemporaryDirectory() as own:
        if checked("files", static_checks.check_files, folder).passed:  # else nothing is run
            folder = copy_files(folder, Path(own) / "repository")
        return _verify(folder, run, data, repo_id)


def copy_files(folder, copy):
    """A copy that nobody else can change between its checks and its execution."""
    copy.mkdir()
    for path in folder.iterdir():
        shutil.copyfile(path, copy / path.name, follow_symlinks=False)
    return copy


def _verify(folder, run, data, repo_id):
    checks = [checked(name, check, folder) for name, check in STATIC_CHECKS.items()]
    if (folder / ONNX).exists():
        checks.append(checked("onnx", check_onnx, folder))
    if repo_id is not None:
        checks.append(checked("card names this repository", figure_checks.check_named, folder, repo_id))
    if not all(check.passed for check in checks):
        return checks
    if run:
        with tempfile.TemporaryDirectory() as work:
            checks += run_isolated(folder, Path(work))
    if data is not None:
        checks += reproduce(folder, data)
    return checks


def run_isolated(folder, work, python=sys.executable):
    """The checks of isolated_check.py on a repository that has passed the static ones.

    Args:
        folder: the repository.
        work: an empty folder, which gets the process's home, caches, stderr.txt and findings.
        python: the interpreter, which needs torch, torchvision, timm, transformers and pillow.
    """
    prepare(folder, work)
    keep = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    with (work / "stderr.txt").open("w", encoding="utf-8") as log:
        done = subprocess.run(
            [python, "-I", ISOLATED, folder, work],
            cwd=work,
            env={**keep, "HOME": str(work), "HF_HOME": str(work / "cache"), "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            check=False,
        )
    if done.returncode or not (work / "checks.json").exists():
        last = (work / "stderr.txt").read_text(encoding="utf-8", errors="replace").split("\n")[-5:]
        return [Check("isolated process", False, f"ended with {done.returncode}: {' '.join(last)[-500:]}")]
    return [Check(*found) for found in json.loads((work / "checks.json").read_text(encoding="utf-8"))]


def prepare(folder, work):
    """What isolated_check.py reads: an image, and the snippets of the repository's card."""
    Image.fromarray(phantom(7, 0, 64)[0]).save(work / "image.png")
    texts = figure_checks.snippets(folder, work / "image.png")
    (work / "snippets.json").write_text(json.dumps(texts), encoding="utf-8")
