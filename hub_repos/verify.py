"""Judge a repository that hub-unets built: `hub-unets verify FOLDER_OR_REPO_ID [--data DATA]`.

Only a copy is judged. The static checks come first; unless all pass, no code of the repository is executed and nothing
is unpickled. Then a separate process loads it, without network, token or home and with bounds on time, memory and
files. With `--data` its figures are computed again. Signatures and attestations are listed last; `--attest` writes
one, and `--submit` offers it on the Hub.
"""

import argparse
import re
import shutil
import tempfile
from pathlib import Path

import transformers
from huggingface_hub import HfApi, get_token, snapshot_download
from huggingface_hub.errors import HTTPError

from hub_unets.hub_repos.checks import attestations, signatures
from hub_unets.hub_repos.checks.figures import loaded_repository
from hub_unets.hub_repos.checks.static import MOST_ATTESTATIONS, known_file
from hub_unets.hub_repos.checks.untrusted import read_text
from hub_unets.hub_repos.checks.verification import verify_folder
from hub_unets.hub_repos.publish.remote import explained, limit_waiting, patience
from hub_unets.hub_repos.publish.submission import has_manifest, is_unsigned, submit
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
    if sum(signatures.is_addition(sibling.rfilename) for sibling in info.siblings) > MOST_ATTESTATIONS:
        raise UserError(f"{repo_id}: more than {MOST_ATTESTATIONS} files of attestations")
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
    """The revision that the card names, if it is this commit but for signatures and attestations; else the commit."""
    try:
        revision = loaded_repository(read_text(folder / "README.md"))[1]
        revision_commit = revision and HfApi().model_info(repo_id, revision=revision, timeout=patience()).sha
    except (UserError, HTTPError):  # a damaged card, which the checks report, or a revision that does not exist
        return commit
    if revision_commit in (None, commit):
        return revision or commit
    return revision if is_unsigned(folder, repo_id, revision_commit) else commit


def attest(statement, arguments, commit):
    """Sign and write the statement of a repository that passed, and with --submit open a pull request with it."""
    place = Path() if commit else Path(arguments.repository)
    path = attestations.write_attestation(statement, arguments.attest, place / signatures.ATTESTATIONS)
    print(f"Attested: {path}, signature {path.with_suffix('.sig').name}")
    if arguments.submit:
        print(f"Pull request: {submit(path, arguments.repository, commit)}")


def require_sensible(arguments):
    """Raise UserError for arguments that can't be meant, before anything is downloaded or scored."""
    if arguments.attest and not arguments.data:
        raise UserError("--attest needs --data: a statement says that the figures were computed again")
    if arguments.submit and (Path(arguments.repository).is_dir() or not arguments.attest):
        raise UserError("--submit needs --attest KEY, and a repository on the Hub")
    if arguments.submit and not get_token():
        raise UserError("--submit needs a login: run `hf auth login`, or set HF_TOKEN to a token.")
    if arguments.attest:
        signatures.public_key_of(arguments.attest)


def parse(argv):
    """The command line's arguments.

    Raises:
        UserError: they can't be meant together.
    """
    parser = argparse.ArgumentParser(prog="hub-unets verify", description=__doc__.splitlines()[0])
    parser.add_argument("repository", metavar="FOLDER_OR_REPO_ID", help="a built folder, or an id on the Hub")
    parser.add_argument("--commit", help="the commit on the Hub, 40 digits; default: main's, which is printed")
    parser.add_argument("--repo_id", help="of a folder: the repository that its card may name, as in owner/name")
    parser.add_argument("--revision", help="of a folder: the tag that its card may name")
    parser.add_argument("--data", help="images and masks to compute the figures on again, as training.evaluate's")
    parser.add_argument("--image_column", help="column or sub-folder of the images in --data")
    parser.add_argument("--mask_column", help="column or sub-folder of the masks in --data")
    parser.add_argument("--attest", metavar="KEY", help="sign that the figures came out again: a private key's file")
    parser.add_argument("--submit", action="store_true", help="offer the attestation as a pull request")
    parser.add_argument("--keys", metavar="FOLDER", help="public keys that you trust, each file called as its owner")
    arguments = parser.parse_args(argv)
    require_sensible(arguments)
    return arguments


def main(argv=None):
    arguments = parse(argv)
    trusted = signatures.trusted_keys(arguments.keys) if arguments.keys else None
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as temporary:
        folder, repo_id, revision = Path(arguments.repository), arguments.repo_id, arguments.revision
        commit, signed, statements = None, [], []
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

        def afterwards(copy, checks, scored):
            told = has_manifest(copy, repo_id) if commit else None
            signed.extend(attestations.findings(copy, folder, trusted, told))
            if arguments.attest:
                names, pem = [check.name for check in checks], signatures.public_key_of(arguments.attest)
                statements.append(attestations.make_statement(copy, scored, names, repo_id, commit, pem))

        columns, origin = (arguments.image_column, arguments.mask_column), {"repo_id": repo_id, "revision": revision}
        checks = verify_folder(folder, data=arguments.data, columns=columns, afterwards=afterwards, **origin)
    code = report(checks, signed)
    for statement in statements:
        attest(statement, arguments, commit)
    return code


def report(checks, signed):
    """Print checks and Findings; the exit code."""
    print("\n".join([*map(str, checks), *(["Signatures:"] if signed else []), *map(str, signed)]))
    judged = [check for check in checks if not check.note]
    failed = sum(not check.passed for check in judged)
    forged = sum(finding.verdict == attestations.FORGED for finding in signed)
    print(f"{failed} of {len(judged)} checks failed." if failed else f"All {len(judged)} checks passed.")
    if forged:
        print(f"{forged} of {len(signed)} signatures are forged.")
    return 1 if failed or forged else 0


if __name__ == "__main__":
    run_command(main)
