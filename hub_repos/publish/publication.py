"""A built repository on its way to the Hub.

Before `main` changes, the same files are loaded from the Hub, by commit hash, in a process that does not know this
project, and must give the checkpoint's logits bit for bit. The Hub's client can't move a branch to a commit or take
one back, and merging a pull request makes another commit and leaves a discussion behind. So the files are committed
to a temporary branch, loaded from there, and then committed to `main` on condition that its head has not moved: the
same files on the same parent. The price: small files are sent twice; large ones are stored once.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HTTPError, RevisionNotFoundError

from hub_unets.hub_repos.checks import signatures
from hub_unets.hub_repos.checks.verification import verify_folder
from hub_unets.hub_repos.publish.remote import CLIENT, Remote, changes, explained, list_files
from hub_unets.hub_repos.repository.builder import MANIFEST, build
from hub_unets.hub_repos.repository.card import Standing
from hub_unets.hub_repos.repository.eval_results import FOLDER as EVAL_FOLDER
from hub_unets.hub_repos.repository.export import load_network, traced_size
from hub_unets.training.errors import UserError

BRANCH = "hub-unets-push"
RELOAD = Path(__file__).with_name("reload.py")
KEPT_ENVIRONMENT = (
    *("PATH", "LD_LIBRARY_PATH", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR", "HF_ENDPOINT", "HF_HUB_DISABLE_XET"),
    *("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT", "HF_XET_CLIENT_READ_TIMEOUT"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
)
PICKLES = (".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth")
ACCESS_TOKEN = re.compile(rb"hf_[A-Za-z0-9]{30,}")
LARGE = 10_000_000  # bytes; the Hub keeps larger files, and all binary ones, apart from git


@dataclass
class Publication:
    """One push under way.

    Attributes:
        api: the Hub's client.
        checkpoint: the run's folder.
        repo_id: the repository on the Hub.
        scratch: a temporary folder.
        remote: the Hub's repository when the files were compared.
        tag: the tag from the command line, and after `stage` the card's; None for a pull request.
        standing: the trial's Standing in a sweep, for the card.
        onnx: whether the repository holds model.onnx.
        space: whether the model has a Space, which the card then names.
        dataset: (repo_id, commit) of the data set's repository on the Hub, for the card; None names none.
        changed: {path: "new", "changed" or "deleted"}, after `stage`.
        noise, expected: pixels B x C x H x W, and the checkpoint's logits of them, after `run_checkpoint`.
    """

    api: HfApi
    checkpoint: Path
    repo_id: str
    scratch: Path
    remote: Remote
    tag: str | None = None
    standing: Standing | None = None
    onnx: bool = False
    key: str | None = None
    space: bool = False
    dataset: tuple | None = None
    changed: dict | None = None
    noise: np.ndarray | None = None
    expected: np.ndarray | None = None

    @property
    def staged(self):
        return self.scratch / "repository"

    def stage(self, create_pr):
        """Build the repository, and compare it with `main`.

        The card names the tag, so an unchanged checkpoint gives `main`'s files only with a tag that `main` has: these
        tags are tried first.
        """
        head, tags = self.remote.head, self.remote.tags
        head_tags = [name for name, commit in tags.items() if commit == head] or list(filter(self.holds_main, tags))
        for tag in [self.tag] if self.tag else [*head_tags, None if create_pr else next_tag(tags)]:
            shown = {"space": self.space, "dataset": self.dataset}
            build(self.checkpoint, self.staged, self.repo_id, tag, self.standing, self.onnx, **shown)
            changed = changes(self.staged, self.remote.files, self.remote.built)
            if not changed:
                break
        if tag in tags and (changed or tag not in head_tags):
            raise UserError(
                f"tag {tag} is that of commit {tags[tag]}, and a tag does not move: leave out --tag to get "
                f"{next_tag(tags)}, or remove the old one with `hf repos tag delete {self.repo_id} {tag}`."
            )
        self.tag, self.changed = tag, changed | self.stage_signature(MANIFEST in changed)

    def holds_main(self, tag):
        """Whether a tag's commit has the files of `main`, but for signatures and attestations that came later."""
        files = list_files(self.api, self.repo_id, self.remote.tags[tag])
        there, here = (
            {name: file.blob_id for name, file in each.items() if not signatures.is_addition(name)}
            for each in (files, self.remote.files)
        )
        return there == here

    def stage_signature(self, is_changed):
        """Sign the manifest, or keep `main`'s signature where it is of this manifest by this key; what changes.

        Args:
            is_changed: whether the manifest is; then an old signature goes where there is no key.
        """
        there = self.remote.files.keys() & set(signatures.SIGNED)
        if self.key is None:
            return dict.fromkeys(sorted(there), "deleted") if is_changed else {}
        if not is_changed:
            for name in there:
                self.api.hf_hub_download(self.repo_id, name, revision=self.remote.head, local_dir=self.staged)
            shutil.rmtree(self.staged / ".cache", ignore_errors=True)  # the client's own notes
        if not signatures.is_signed_by(self.staged, self.key):
            signatures.sign_manifest(self.staged, self.key)
        here = {name for name in signatures.SIGNED if (self.staged / name).exists()}
        files = {name: self.remote.files[name] for name in there}
        return {name: kind for name, kind in changes(self.staged, files, there).items() if name in here | there}

    def listing(self):
        """Lines that list the changes."""
        state = f"main is at {self.remote.head}" if self.remote.head else "not on the Hub, or not for you to see"
        yield f"{self.repo_id}: {state}"
        for name, kind in self.changed.items():
            path = self.staged / name
            size = f"{path.stat().st_size:>12,} bytes{'  LFS' if is_large(path) else ''}" if path.exists() else ""
            yield f"  {kind:<8}{name:<32}{size}".rstrip()

    def run_checkpoint(self):
        """Compute what `try_out` compares with, before the Hub holds anything of it."""
        model = load_network(self.checkpoint)
        shape = 2, model.config.num_channels, *traced_size(model.config)
        self.noise = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        self.expected = logits_of(model, self.noise)

    def publish(self):
        """Make one commit on `main`, after a trial on a branch, and its tag; returns the commit's hash."""
        if self.changed:
            with self.temporary_branch():
                self.try_out(self.send(revision=BRANCH).oid)
                commit = self.send(revision="main").oid
        else:  # an earlier push was cut off before its tag
            commit = self.remote.head
            self.try_out(commit)
        if self.tag not in self.remote.tags:
            with explained(self.repo_id, f"commit {commit} is on main, but has no tag {self.tag} yet: "):
                self.api.create_tag(self.repo_id, tag=self.tag, revision=commit)
        print(f"Published: {self.api.endpoint}/{self.repo_id}, commit {commit}, tag {self.tag}")
        return commit

    def open_pull_request(self):
        """Open a pull request of one commit, and close it if that fails its trial; returns the commit's hash."""
        commit_info = self.send(create_pr=True)
        try:
            self.try_out(commit_info.oid)
        except BaseException:
            self.api.change_discussion_status(self.repo_id, commit_info.pr_num, "closed")
            raise
        print(f"Pull request: {commit_info.pr_url}")
        return commit_info.oid

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

    def send(self, **target):
        """Make one commit on top of the compared head; the Hub refuses it if `main` has moved."""
        operations = [
            CommitOperationDelete(name) if kind == "deleted" else CommitOperationAdd(name, self.staged / name)
            for name, kind in self.changed.items()
        ]
        target |= {
            "parent_commit": self.remote.head,
            "commit_message": " ".join(["Publish", *([self.tag] if self.tag else [])]),
        }
        return commit_files(self.api, self.repo_id, operations, **target)

    def try_out(self, commit):
        """Raise UserError unless a commit holds the built files, loads, and gives the checkpoint's logits."""
        try:
            if differing := changes(self.staged, list_files(self.api, self.repo_id, commit)):
                raise UserError(f"{', '.join(differing)} did not arrive as built.")
            logits = self.reload(commit, self.noise)
            if not np.array_equal(logits, self.expected):
                difference = np.abs(logits - self.expected).max()
                raise UserError(f"its logits differ from those of {self.checkpoint} by up to {difference:.3g}.")
        except UserError as error:
            main = "main and the tags are as they were" if self.changed else "main is at it, without its tag"
            raise UserError(f"commit {commit} of {self.repo_id} is not as it should be ({main}): {error}") from error

    def reload(self, commit, pixels):
        """The logits of a commit on the Hub, loaded with a fresh cache, and without a token unless one is needed."""
        environment = {name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ}
        environment |= {"HOME": str(self.scratch), "HF_HOME": str(self.scratch / "cache")}
        if self.remote.closed:
            environment["HF_TOKEN"] = get_token()
        np.save(self.scratch / "pixels.npy", pixels)
        process = subprocess.run(
            [sys.executable, "-I", RELOAD, self.repo_id, commit, "pixels.npy", "logits.npy"],
            cwd=self.scratch,
            env=environment,
            capture_output=True,
            text=True,
        )
        if process.returncode:
            reason = (process.stderr.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
            raise UserError(f"it does not load: {reason}")
        return np.load(self.scratch / "logits.npy")


def commit_files(api, repo_id, operations, **target):
    """`HfApi.create_commit`, with errors that `explained` knows."""
    try:
        return api.create_commit(repo_id, operations, **target)
    except (RuntimeError, json.JSONDecodeError) as error:  # an upload broke; the answer was a web page
        if error.__cause__:
            raise error.__cause__ from None
        raise UserError(f"the Hub did not take the files ({error}): repeat the command.") from error


def next_tag(tags):
    """`v` and the number after the largest in use."""
    numbers = [int(match[1]) for match in (re.fullmatch(r"v(\d+)", tag) for tag in tags) if match]
    return f"v{max(numbers, default=0) + 1}"


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


def logits_of(model, pixels):
    """A model's logits, B x C x H x W; on one thread, as in reload.py, so that rounding agrees."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        logits = model(torch.from_numpy(pixels)).logits.numpy()
    torch.set_num_threads(threads)
    return logits
