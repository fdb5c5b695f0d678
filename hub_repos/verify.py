"""Judge a repository that hub-unets built: `hub-unets verify FOLDER_OR_REPO_ID [--data DATA]`.

The static checks come first, and nothing of the repository is executed or unpickled unless all of them pass. Then it
is loaded in a process of its own without network, token or home, and with `--data` its figures are computed again.
"""

import argparse
import re
import shutil
import tempfile
from pathlib import Path

import transformers
from huggingface_hub import HfApi, snapshot_download

from hub_unets.hub_repos.checks.verification import verify_folder
from hub_unets.hub_repos.publish.remote import explained, limit_waiting, patience
from hub_unets.training.errors import UserError, run_command

REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)

COMMIT = re.compile(r"[0-9a-f]{40}")


def download(repo_id, commit, folder):
    """Fetch every file of a commit, main's without one, and execute none; returns the commit.

    Raises:
        UserError: the id or the commit has no form of one, or a file did not arrive as it is named.
    """
    if not REPO_ID.fullmatch(repo_id):
        raise UserError(f"{repo_id!r} is neither a folder nor a Hub id such as owner/name")
    if commit is not None and not COMMIT.fullmatch(commit):
        raise UserError(f"--commit must be a whole hash of 40 digits, got {commit!r}: tags and branches move")
    info = HfApi().model_info(repo_id, revision=commit, timeout=patience())
    snapshot_download(repo_id, revision=info.sha, local_dir=folder)
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # the client's own notes
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    if found != {sibling.rfilename for sibling in info.siblings}:
        raise UserError(f"{repo_id}: the download is not what the Hub lists")
    return info.sha


def main(argv=None):
    parser = argparse.ArgumentParser(prog="hub-unets verify", description=__doc__.splitlines()[0])
    parser.add_argument("repository", metavar="FOLDER_OR_REPO_ID", help="a built folder, or an id on the Hub")
    parser.add_argument("--commit", help="the commit on the Hub, 40 digits; default: main's, which is printed")
    parser.add_argument("--data", help="images and masks to compute the figures on again, as training.evaluate's")
    arguments = parser.parse_args(argv)
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as temporary:
        folder, repo_id = Path(arguments.repository), None
        if folder.is_dir():
            if arguments.commit is not None:
                raise UserError("--commit is for a repository on the Hub; this is a folder")
            print(folder)
        else:
            folder, repo_id = Path(temporary), arguments.repository
            limit_waiting()
            with explained(repo_id):
                commit = download(repo_id, arguments.commit, folder)
            print(f"{repo_id} at commit {commit}")
        checks = verify_folder(folder, data=arguments.data, repo_id=repo_id)
    print("\n".join(map(str, checks)))
    failed = sum(not check.passed for check in checks)
    print(f"{failed} of {len(checks)} checks failed." if failed else f"All {len(checks)} checks passed.")
    return 1 if failed else 0


if __name__ == "__main__":
    run_command(main)
