"""The state of a repository on the Hub, how a built folder differs from it, and the Hub's errors in plain words."""

import contextlib
import hashlib
import importlib
import json
import math
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import errors, get_session, get_token
from huggingface_hub.errors import HFValidationError, HTTPError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile

from hub_unets.hub_repos.repository.builder import MANIFEST, sha256
from hub_unets.training.errors import UserError

CURES = {
    401: "the Hub does not accept who you are: run `hf auth login`, or set HF_TOKEN to a token with write access.",
    402: "the Hub asks for a paid plan ({said}).",
    403: "your token may not do this in {repo_id}: log in with one that may write there (`hf auth login`), choose "
    "another REPO_ID, or offer the files with --create-pr.",
    404: "{repo_id} has no such thing, or your token may not see it: {message}.",
    409: "{repo_id} changed while this ran ({message}): repeat the command.",
    412: "someone else pushed to {repo_id} since its files were compared: repeat the command. Nothing is lost.",
    429: "the Hub takes no more requests from you for now: repeat the command in some minutes.",
}
CLIENT = importlib.import_module(HTTPError.__module__.partition(".")[0])  # httpx of huggingface_hub 1, httpx2 of 2
OIDC_ERRORS = (errors.OIDCError,) if hasattr(errors, "OIDCError") else ()  # since huggingface_hub 1.19
PATIENCE = 300  # seconds to wait for an answer; by itself, the client waits for ever


@dataclass
class Remote:
    """A repository as it is now.

    Attributes:
        head: the commit of `main`; None where there is no repository.
        files: {path: RepoFile} at that commit.
        built: the paths among them that an earlier push wrote.
        branches: names.
        tags: {name: commit}.
        private: whether it is private.
        closed: whether reading it needs a token.
    """

    head: str | None = None
    files: dict = field(default_factory=dict)
    built: set = field(default_factory=set)
    branches: set = field(default_factory=set)
    tags: dict = field(default_factory=dict)
    private: bool = False
    closed: bool = False


def patience():
    """Seconds to wait for an answer."""
    return float(os.environ.get("HF_HUB_DOWNLOAD_TIMEOUT") or PATIENCE)


def limit_waiting():
    """Stop waiting for a Hub that does not answer; requests with their own limit keep it."""
    get_session().timeout = patience()
    os.environ.setdefault("HF_XET_CLIENT_READ_TIMEOUT", f"{math.ceil(patience())}s")  # read when Xet is first used


def require_token():
    """Raise UserError unless there is a token: of a login, of HF_TOKEN, or a trusted publisher's in a CI job."""
    try:
        with explained(os.environ.get("HF_OIDC_RESOURCE", "the Hub")):
            token = get_token()
    except OIDC_ERRORS as error:
        raise UserError(f"this CI job gets no token: {' '.join(str(error).split())}") from error
    if not token:
        raise UserError("not logged in: run `hf auth login`, or set HF_TOKEN to a token with write access.")


def read_remote(api, repo_id):
    """The repository's state; an empty one where there is none."""
    try:
        info = api.model_info(repo_id, revision="main", timeout=patience())
    except RepositoryNotFoundError:
        return Remote()
    refs, files = api.list_repo_refs(repo_id), list_files(api, repo_id, info.sha)
    return Remote(
        head=info.sha,
        files=files,
        built=_built_paths(api, repo_id, info.sha) & files.keys() if MANIFEST in files else set(),
        branches={ref.name for ref in refs.branches},
        tags={ref.name: ref.target_commit for ref in refs.tags},
        private=info.private,
        closed=bool(info.private or info.gated),
    )


def list_files(api, repo_id, commit, repo_type="model"):
    """{path: RepoFile} of every file of a commit."""
    tree = api.list_repo_tree(repo_id, revision=commit, recursive=True, repo_type=repo_type)
    return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}


def _built_paths(api, repo_id, commit):
    with tempfile.TemporaryDirectory() as folder:
        path = api.hf_hub_download(repo_id, MANIFEST, revision=commit, local_dir=folder)
        return set(json.loads(Path(path).read_text(encoding="utf-8")).get("files", ()))


def changes(staged, files, built=()):
    """The changes that turn a repository's files into a folder's.

    Args:
        staged: the folder.
        files: {path: RepoFile}.
        built: the paths to delete if the folder lacks them; other files, the user's own, stay.

    Returns:
        dict: path to "new", "changed" or "deleted"; sorted.
    """
    paths = {path.relative_to(staged).as_posix(): path for path in staged.rglob("*") if path.is_file()}
    kinds = dict.fromkeys(set(built) - paths.keys(), "deleted") | dict.fromkeys(paths.keys() - files.keys(), "new")
    kinds |= {name: "changed" for name in paths.keys() & files.keys() if not is_same(paths[name], files[name])}
    return dict(sorted(kinds.items()))


def is_same(path, remote_file):
    """Compare by the sha256 of an LFS object, and by git's object id of any other file."""
    if remote_file.lfs:
        return sha256(path) == remote_file.lfs.sha256
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == remote_file.blob_id


@contextlib.contextmanager
def explained(repo_id, so_far=""):
    """Turn the client's errors, after its own retries, into a UserError with the cure.

    Args:
        repo_id: the repository in question.
        so_far: the steps that are done, for the start of the message.
    """
    try:
        yield
    except HFValidationError as error:
        raise UserError(f"{so_far}{error}") from error
    except (HTTPError, OfflineModeIsEnabled) as error:
        raise UserError(so_far + _cure_for(error, repo_id)) from error


def _cure_for(error, repo_id):
    if isinstance(error, OfflineModeIsEnabled):
        return "the client is set to stay offline: unset HF_HUB_OFFLINE."
    response = getattr(error, "response", None)
    if isinstance(error, CLIENT.TimeoutException):
        return (
            "the Hub did not answer in time: repeat the command, with HF_HUB_DOWNLOAD_TIMEOUT=600 (seconds) if it "
            "happens again; what arrived is not sent again."
        )
    if response is None:
        return f"the connection to the Hub broke ({error}): repeat the command; files that arrived are not sent again."
    message = " ".join((error.server_message or response.reason_phrase).split())
    if response.status_code >= 500:
        return f"the Hub is out of order ({response.status_code}, {message}): repeat the command later."
    cure = CURES.get(response.status_code, "the Hub answered {status}: {message}.")
    return cure.format(repo_id=repo_id, status=response.status_code, message=message)
