"""Judge a repository that hub-unets built: `python -m hub_repos.verify FOLDER_OR_REPO_ID [--data DATA]`.

The static checks come first, and nothing of the repository is executed or unpickled unless all of them pass. Then it
is loaded in a process of its own without network, token or home, and with `--data` its figures are computed again.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import transformers
from huggingface_hub import HfApi, snapshot_download
from PIL import Image

from hub_repos import figure_checks, static_checks
from hub_repos.checks import Check, checked
from hub_repos.code_rules import check_code
from hub_repos.export import ONNX
from hub_repos.onnx_check import check_onnx
from hub_repos.reproduce import reproduce
from training.phantoms import phantom

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
ISOLATED = Path(__file__).with_name("isolated_check.py")
REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")


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


def download(repo_id, commit, folder):
    """Fetch every file of a commit, main's without one, and execute none; returns the commit.

    Raises:
        ValueError: the id or the commit has no form of one, or a file did not arrive as it is named.
    """
    if not REPO_ID.fullmatch(repo_id):
        raise ValueError(f"{repo_id!r} is neither a folder nor a Hub id such as owner/name")
    if commit is not None and not COMMIT.fullmatch(commit):
        raise ValueError(f"--commit must be a whole hash of 40 digits, got {commit!r}: tags and branches move")
    info = HfApi().model_info(repo_id, revision=commit)
    snapshot_download(repo_id, revision=info.sha, local_dir=folder)
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # the client's own notes
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    if found != {sibling.rfilename for sibling in info.siblings}:
        raise ValueError(f"{repo_id}: the download is not what the Hub lists")
    return info.sha


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m hub_repos.verify", description=__doc__.splitlines()[0])
    parser.add_argument("repository", metavar="FOLDER_OR_REPO_ID", help="a built folder, or an id on the Hub")
    parser.add_argument("--commit", help="the commit on the Hub, 40 digits; default: main's, which is printed")
    parser.add_argument("--data", help="images and masks to compute the figures on again, as training.evaluate's")
    arguments = parser.parse_args(argv)
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as temporary:
        folder, repo_id = Path(arguments.repository), None
        if folder.is_dir():
            if arguments.commit is not None:
                raise ValueError("--commit is for a repository on the Hub; this is a folder")
            print(folder)
        else:
            folder, repo_id = Path(temporary), arguments.repository
            print(f"{repo_id} at commit {download(repo_id, arguments.commit, folder)}")
        checks = verify_folder(folder, data=arguments.data, repo_id=repo_id)
    print("\n".join(map(str, checks)))
    failed = sum(not check.passed for check in checks)
    print(f"{failed} of {len(checks)} checks failed." if failed else f"All {len(checks)} checks passed.")
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
