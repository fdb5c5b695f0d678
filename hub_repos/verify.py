"""Judge a repository that hub-unets built: `hub-unets verify FOLDER_OR_REPO_ID [--data DATA]`.

Only a copy is judged. The static checks come first; unless all pass, no code of the repository is executed and nothing
is unpickled. Then a separate process loads it, without network, token or home and with bounds on time, memory and
files. With `--data` its figures are computed again.
"""

import argparse
import re
import shutil
import tempfile
from pathlib import Path

import transformers
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HTTPError

from hub_unets.hub_repos.checks.figures import loaded_repository
from hub_unets.hub_repos.checks.static import known_file
from hub_unets.hub_repos.checks.untrusted import read_text
from hub_unets.hub_repos.checks.verification import verify_folder
from hub_unets.hub_repos.publish.remote import explained, limit_waiting, patience
from hub_unets.training.errors import UserError, run_command

REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)

COMMIT = re.compile(r"[0-9a-f]{40}")


def download(repo_id, commit, folder):
    """Fetch every file of a commit, and execute none; returns the commit, which is main's where None is given.

    Raises:
        UserError: the id or the commit is malformed, the repository holds other files than hub-unets builds, or larger
            ones, or the files that arrived are not those that the Hub lists.
    """
    if not REPO_ID.fullmatch(repo_id):
        raise UserError(f"{repo_id!r} is neither a folder nor a Hub id such as owner/name")
    if commit is not None and not COMMIT.fullmatch(commit):
        raise UserError(f"--commit must be a whole hash of 40 digits, got {commit!r}: tags and branches move")
    info = HfApi().model_info(repo_id, revision=commit, timeout=patience(), files_metadata=True)
    for sibling in info.siblings:
        require_known(sibling, repo_id)
    try:
        snapshot_download(repo_id, revision=info.sha, local_dir=folder)
    except RuntimeError as error:  # of hf_xet, which moves large files
        raise UserError(f"{repo_id}: the download broke ({str(error)[:200]}): repeat the command.") from error
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # the client's notes
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    if files != {sibling.rfilename for sibling in info.siblings}:
        raise UserError(f"{repo_id}: the download is not what the Hub lists")
    return info.sha


def require_known(sibling, repo_id):
    """Raise UserError for a file on the Hub that hub-unets does not build, or that is too large."""
    try:
        _, limit = known_file(sibling.rfilename)
    except UserError as error:
        raise UserError(f"{repo_id}: {error}") from error
    if (sibling.size or 0) > limit:
        raise UserError(f"{repo_id}: {sibling.rfilename} is larger than {limit} bytes")


def revision_of(folder, repo_id, commit):
    """The revision that the card names, if it is this commit on the Hub; otherwise the commit."""
    try:
        revision = loaded_repository(read_text(folder / "README.md"))[1]
        revision_commit = revision and HfApi().model_info(repo_id, revision=revision, timeout=patience()).sha
    except (UserError, HTTPError):  # a damaged card, which the checks report, or a revision that does not exist
        return commit
    return revision if revision_commit == commit else commit


def main(argv=None):
    parser = argparse.ArgumentParser(prog="hub-unets verify", description=__doc__.splitlines()[0])
    parser.add_argument("repository", metavar="FOLDER_OR_REPO_ID", help="a built folder, or an id on the Hub")
    parser.add_argument("--commit", help="the commit on the Hub, 40 digits; default: main's, which is printed")
    parser.add_argument("--repo_id", help="of a folder: the repository that its card may name, as in owner/name")
    parser.add_argument("--revision", help="of a folder: the tag that its card may name")
    parser.add_argument("--data", help="images and masks to compute the figures on again, as training.evaluate's")
    parser.add_argument("--image_column", help="column or sub-folder of the images in --data")
    parser.add_argument("--mask_column", help="column or sub-folder of the masks in --data")
    arguments = parser.parse_args(argv)
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as temporary:
        folder, repo_id, revision = Path(arguments.repository), arguments.repo_id, arguments.revision
        if folder.is_dir():
            if arguments.commit is not None:
                raise UserError("--commit is for a repository on the Hub; this is a folder")
            print(folder)
        else:
            if repo_id or revision:
                raise UserError("--repo_id and --revision are for a folder; this is a repository on the Hub")
            folder, repo_id = Path(temporary), arguments.repository
            limit_waiting()
            with explained(repo_id):
                commit = download(repo_id, arguments.commit, folder)
                revision = revision_of(folder, repo_id, commit)
            print(f"{repo_id} at commit {commit}")
        columns = arguments.image_column, arguments.mask_column
        checks = verify_folder(folder, data=arguments.data, repo_id=repo_id, revision=revision, columns=columns)
    print("\n".join(map(str, checks)))
    judged = [check for check in checks if not check.note]
    failed = sum(not check.passed for check in judged)
    print(f"{failed} of {len(judged)} checks failed." if failed else f"All {len(judged)} checks passed.")
    return 1 if failed else 0


if __name__ == "__main__":
    run_command(main)
