"""A built repository on its way to the Hub.

`main` never shows what was not loaded from the Hub before, by commit hash, in a process that does not know this
project, with the checkpoint's logits bit for bit. The Hub's client can't move a branch to a commit or take one back,
and merging a pull request makes another commit and leaves a discussion behind. So the files are committed to a
temporary branch, loaded from there, and then committed to `main` on condition that its head has not moved: the same
files on the same parent. The price is that small files are sent twice; large ones are stored once.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HTTPError, RevisionNotFoundError

from hub_unets.hub_repos.checks.verification import verify_folder
from hub_unets.hub_repos.publish.remote import CLIENT, Remote, changes, explained, list_files
from hub_unets.hub_repos.repository.builder import build
from hub_unets.hub_repos.repository.card import Standing
from hub_unets.hub_repos.repository.eval_results import FOLDER as EVAL_FOLDER
from hub_unets.hub_repos.repository.export import load_network
from hub_unets.training.errors import UserError

BRANCH = "hub-unets-push"
RELOAD = Path(__file__).with_name("reload.py")
KEPT_ENVIRONMENT = (
    *("PATH", "LD_LIBRARY_PATH", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR", "HF_ENDPOINT", "HF_HUB_DISABLE_XET"),
    *("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
)
PICKLES = (".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth")
ACCESS_TOKEN = re.compile(rb"hf_[A-Za-z0-9]{30,}")
LARGE = 10_000_000  # bytes; these, and all that is not text, the Hub keeps apart from git


@dataclass
class Publication:
    """One push under way.

    Attributes:
        api: the Hub's client.
        checkpoint: the run's folder.
        repo_id: where it goes.
        scratch: a temporary folder.
        remote: what the Hub held when the files were compared.
        tag: the one asked for, and from `stage` on the one that the card names; None for a pull request.
        standing: the trial's Standing in a sweep, for the card.
        onnx: whether the repository holds model.onnx.
        space: whether the model has a Space, which the card then names.
        changed: {path: "new", "changed" or "deleted"}, from `stage` on.
    """

    api: HfApi
    checkpoint: Path
    repo_id: str
    scratch: Path
    remote: Remote
    tag: str | None = None
    standing: Standing | None = None
    onnx: bool = False
    space: bool = False
    changed: dict | None = None

    @property
    def staged(self):
        return self.scratch / "repository"

    def stage(self, create_pr):
        """Build what is to be published, and compare it with `main`.

        The card names the tag, so a checkpoint that has not changed builds `main`'s files with a tag that `main` has:
        these are tried first.
        """
        head, tags = self.remote.head, self.remote.tags
        of_main = [name for name, commit in tags.items() if commit == head]
        for tag in [self.tag] if self.tag else [*of_main, None if create_pr else next_tag(tags)]:
            build(self.checkpoint, self.staged, self.repo_id, tag, self.standing, self.onnx, space=self.space)
            changed = changes(self.staged, self.remote.files, self.remote.built)
            if not changed:
                break
        if tag in tags and (changed or tags[tag] != head):
            raise UserError(
                f"tag {tag} is that of commit {tags[tag]}, and a tag does not move: leave out --tag to get "
                f"{next_tag(tags)}, or remove the old one with `hf repos tag delete {self.repo_id} {tag}`."
            )
        self.tag, self.changed = tag, changed

    def listing(self):
        """Lines that say what changes."""
        at = f"main is at {self.remote.head}" if self.remote.head else "not on the Hub, or not for you to see"
        yield f"{self.repo_id}: {at}"
        for name, kind in self.changed.items():
            path = self.staged / name
            size = f"{path.stat().st_size:>12,} bytes{'  LFS' if is_large(path) else ''}" if path.exists() else ""
            yield f"  {kind:<8}{name:<32}{size}".rstrip()

    def publish(self):
        """One commit on `main`, tried out on a branch before, and its tag; the commit's hash."""
        if self.changed:
            with self.temporary_branch():
                self.try_out(self.send(revision=BRANCH).oid)
                commit = self.send(revision="main").oid
        else:  # an earlier push was cut off before its tag
            commit = self.remote.head
            self.try_out(commit)
        with explained(self.repo_id, f"commit {commit} is on main, but has no tag {self.tag} yet: "):
            self.api.create_tag(self.repo_id, tag=self.tag, revision=commit)
        print(f"Published: {self.api.endpoint}/{self.repo_id}, commit {commit}, tag {self.tag}")
        return commit

    def open_pull_request(self):
        """A pull request of one commit, closed again where it does not load as it should; the commit's hash."""
        offered = self.send(create_pr=True)
        try:
            self.try_out(offered.oid)
        except BaseException:
            self.api.change_discussion_status(self.repo_id, offered.pr_num, "closed")
            raise
        print(f"Pull request: {offered.pr_url}")
        return offered.oid

    @contextlib.contextmanager
    def temporary_branch(self):
        """A branch at `main`'s head, removed at the end; one that a killed push left is replaced."""
        if BRANCH in self.remote.branches:
            self.api.delete_branch(self.repo_id, branch=BRANCH)
        try:
            self.api.create_branch(self.repo_id, branch=BRANCH, revision=self.remote.head)
        except CLIENT.TransportError:  # it may have been made all the same
            self.remove_branch()
            raise
        try:
            yield
        finally:
            self.remove_branch()

    def remove_branch(self):
        try:
            self.api.delete_branch(self.repo_id, branch=BRANCH)
        except RevisionNotFoundError:
            pass
        except HTTPError:
            print(f"A branch is left: hf repos branch delete {self.repo_id} {BRANCH}", file=sys.stderr)

    def send(self, **where):
        """One commit on top of the head that was compared; the Hub refuses it where that has moved."""
        operations = [
            CommitOperationDelete(name) if kind == "deleted" else CommitOperationAdd(name, self.staged / name)
            for name, kind in self.changed.items()
        ]
        where |= {
            "parent_commit": self.remote.head,
            "commit_message": " ".join(["Publish", *([self.tag] if self.tag else [])]),
        }
        return commit_files(self.api, self.repo_id, operations, **where)

    def try_out(self, commit):
        """Raise UserError unless a commit holds what was built, loads, and has the checkpoint's logits."""
        pixels = np.random.default_rng(0).normal(size=(2, 3, 64, 96)).astype(np.float32)
        try:
            if wrong := changes(self.staged, list_files(self.api, self.repo_id, commit)):
                raise UserError(f"{', '.join(wrong)} did not arrive as built.")
            found, expected = self.reload(commit, pixels), logits_of(self.checkpoint, pixels)
            if not np.array_equal(found, expected):
                difference = np.abs(found - expected).max()
                raise UserError(f"its logits differ from those of {self.checkpoint} by up to {difference:.3g}.")
        except UserError as error:
            main = "main and the tags are as they were" if self.changed else "main is at it, without its tag"
            raise UserError(f"commit {commit} of {self.repo_id} is not as it should be ({main}): {error}") from error

    def reload(self, commit, pixels):
        """The logits of a commit on the Hub, loaded with a fresh cache, and without a token where none is needed."""
        environment = {name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ}
        environment |= {"HOME": str(self.scratch), "HF_HOME": str(self.scratch / "cache")}
        if self.remote.closed:
            environment["HF_TOKEN"] = get_token()
        np.save(self.scratch / "pixels.npy", pixels)
        done = subprocess.run(
            [sys.executable, "-I", RELOAD, self.repo_id, commit, "pixels.npy", "logits.npy"],
            cwd=self.scratch,
            env=environment,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise UserError(f"it does not load: {reason}")
        return np.load(self.scratch / "logits.npy")


def commit_files(api, repo_id, operations, **where):
    """`HfApi.create_commit`, its errors those that `explained` knows."""
    try:
        return api.create_commit(repo_id, operations, **where)
    except (RuntimeError, json.JSONDecodeError) as error:  # around what broke an upload; an answer that is a page
        if error.__cause__:
            raise error.__cause__ from None
        raise UserError(f"the Hub did not take the files ({error}): repeat the command.") from error


def next_tag(tags):
    """`v` and the number after all that are taken."""
    taken = [int(found[1]) for found in (re.fullmatch(r"v(\d+)", tag) for tag in tags) if found]
    return f"v{max(taken, default=0) + 1}"


def is_large(path):
    """Whether the Hub keeps a file apart from git."""
    with path.open("rb") as file:
        return path.stat().st_size > LARGE or b"\0" in file.read(512)


def require_publishable(staged):
    """Raise UserError for a link, a pickle, a hidden file or an access token."""
    for path in sorted(staged.rglob("*")):
        name = path.relative_to(staged).as_posix()
        if path.is_symlink():
            raise UserError(f"{name} is a symbolic link: only real files are published.")
        is_hidden = path.name.startswith(".") and name != EVAL_FOLDER
        if path.suffix in PICKLES or is_hidden:
            raise UserError(f"{name} is never published: it may hold code, an optimizer's state or credentials.")
        if path.is_file() and path.suffix != ".safetensors" and ACCESS_TOKEN.search(path.read_bytes()):
            raise UserError(f"{name} holds what looks like an access token: remove it from the run's folder.")


def require_verified(staged, repo_id, tag=None):
    """Raise UserError with the reasons of the checks that failed."""
    if failed := [check for check in verify_folder(staged, repo_id=repo_id, revision=tag) if not check.passed]:
        reasons = "; ".join(f"{check.name}: {check.reason}" for check in failed)
        raise UserError(f"the built repository fails its checks, and nothing was sent: {reasons}")


def logits_of(checkpoint, pixels):
    """The checkpoint's logits, B x C x H x W; on one thread, as in the other process, so that sums agree."""
    model = load_network(checkpoint)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        logits = model(torch.from_numpy(pixels)).logits.numpy()
    torch.set_num_threads(threads)
    return logits
