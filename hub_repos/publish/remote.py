"""What the Hub holds of a repository, how a built folder differs from it, and the Hub's errors in words for people."""

import contextlib
import hashlib
import importlib
import json
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import get_session
from huggingface_hub.errors import HFValidationError, HTTPError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile

from hub_unets.hub_repos.repository.builder import MANIFEST, sha256
from hub_unets.training.errors import UserError

CURES = {
    401: "the Hub does not accept who you are: run `hf auth login`, or set HF_TOKEN to a token with write access.",
    402: "the Hub asks for a paid plan ({said}).",
    403: "your token may not do this in {repo_id}: log in with one that may write there (`hf auth login`), choose "
    "another REPO_ID, or offer the files with --create-pr.",
    404: "{repo_id} has no such thing, or your token may not see it: {said}.",
    409: "{repo_id} changed while this ran ({said}): repeat the command.",
    412: "someone else pushed to {repo_id} since its files were compared: repeat the command. Nothing is lost.",
    429: "the Hub takes no more requests from you for now: repeat the command in some minutes.",
}
CLIENT = importlib.import_module(HTTPError.__module__.partition(".")[0])  # httpx of huggingface_hub 1, httpx2 of 2
PATIENCE = 300  # seconds for which an answer is awaited; alone, the client waits for ever


@dataclass
class Remote:
    """A repository as it is now.

    Attributes:
        head: the commit of `main`; None where there is no repository.
        files: {path: RepoFile} at that commit.
        built: the paths among them that an earlier push wrote.
        branches: names.
        tags: {name: commit}.
        private: whether it is.
        closed: whether reading it takes a token.
    """

    head: str | None = None
    files: dict = field(default_factory=dict)
    built: set = field(default_factory=set)
    branches: set = field(default_factory=set)
    tags: dict = field(default_factory=dict)
    private: bool = False
    closed: bool = False


def patience():
    """For how many seconds an answer is awaited."""
    return float(os.environ.get("HF_HUB_DOWNLOAD_TIMEOUT") or PATIENCE)


def limit_waiting():
    """Give up on a Hub that does not answer; requests that name a limit of their own keep it."""
    get_session().timeout = patience()


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
        branches={one.name for one in refs.branches},
        tags={one.name: one.target_commit for one in refs.tags},
        private=info.private,
        closed=bool(info.private or info.gated),
    )


def list_files(api, repo_id, commit, repo_type="model"):
    """{path: RepoFile} of every file of a commit."""
    tree = api.list_repo_tree(repo_id, revision=commit, recursive=True, repo_type=repo_type)
    return {one.path: one for one in tree if isinstance(one, RepoFile)}


def _built_paths(api, repo_id, commit):
    with tempfile.TemporaryDirectory() as folder:
        path = api.hf_hub_download(repo_id, MANIFEST, revision=commit, local_dir=folder)
        return set(json.loads(Path(path).read_text(encoding="utf-8")).get("files", ()))


def changes(staged, files, built=()):
    """What turns a repository's files into a folder's.

    Args:
        staged: the folder.
        files: {path: RepoFile}.
        built: the paths that are deleted where the folder lacks them; a user's own files stay.

    Returns:
        dict: path to "new", "changed" or "deleted"; sorted.
    """
    here = {path.relative_to(staged).as_posix(): path for path in staged.rglob("*") if path.is_file()}
    found = dict.fromkeys(set(built) - here.keys(), "deleted") | dict.fromkeys(here.keys() - files.keys(), "new")
    found |= {name: "changed" for name in here.keys() & files.keys() if not _is_same(here[name], files[name])}
    return dict(sorted(found.items()))


def _is_same(path, there):
    """Compare by the sha256 of an LFS object, and by git's object name of any other file."""
    if there.lfs:
        return sha256(path) == there.lfs.sha256
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == there.blob_id


@contextlib.contextmanager
def explained(repo_id, so_far=""):
    """Turn the client's errors, after its own retries, into a UserError with the cure.

    Args:
        repo_id: the repository in question.
        so_far: what has been done, to say first.
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
    said = " ".join((error.server_message or response.reason_phrase).split())
    if response.status_code >= 500:
        return f"the Hub is out of order ({response.status_code}, {said}): repeat the command later."
    cure = CURES.get(response.status_code, "the Hub answered {status}: {said}.")
    return cure.format(repo_id=repo_id, status=response.status_code, said=said)
