"""The Space of a published model: a page that runs it in the reader's browser, or a Gradio app on the Hub's machines.

A static Space is free for everyone. A Gradio Space takes a paid plan, or one of the few that a free account may run on
ZeroGPU; where the Hub refuses it, the page is sent instead.
"""

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, SpaceHardware
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from hub_unets.hub_repos.page.page import FILES as PAGE_FILES
from hub_unets.hub_repos.page.page import RUNTIME, SETTINGS, build_page, require_rgb
from hub_unets.hub_repos.publish.publication import commit_files
from hub_unets.hub_repos.publish.remote import changes, explained, list_files, patience
from hub_unets.hub_repos.repository.example import EXAMPLE
from hub_unets.hub_repos.repository.export import ONNX
from hub_unets.hub_repos.repository.licence import LICENCE, licence_text
from hub_unets.modeling.image_processing_unet import UNetImageProcessor
from hub_unets.training.errors import UserError
from hub_unets.training.records.results import read_results

KINDS = ("static", "gradio", "none")
FILES = Path(__file__).with_name("space_app")
PAGE_README = Path(__file__).with_name("space_page") / "README.md"
PAYMENT_REQUIRED = 402
OWN_HOST = "connect-src 'self'"
HUBS_STORAGE = " https://huggingface.co https://*.hf.co"  # where the Hub sends whoever asks a Space for a large file
OURS = {  # files by kind: they go when the Space becomes one of the other kind
    "static": {*PAGE_FILES.values(), *RUNTIME.values(), SETTINGS, ONNX, EXAMPLE, LICENCE},
    "gradio": {path.name for path in FILES.iterdir() if path.is_file()} - {"README.md"},
}


@dataclass
class Space:
    """A model's Space, before and after.

    Attributes:
        api: the Hub's client.
        repo_id: the model's, and the Space's.
        checkpoint: the run's folder.
        staged: a folder for the files.
        kind: one of KINDS; None is what the Hub holds, else static.
        head: the commit of the Space's `main`; None where there is no Space.
        files: {path: RepoFile} there.
        sdk: its kind there.
        private: whether it is.
        obstacle: why there is no page, from `prepare` on.
        runtime: an unpacked onnxruntime-web for the page; None fetches it.
    """

    api: HfApi
    repo_id: str
    checkpoint: Path
    staged: Path
    kind: str | None = None
    head: str | None = None
    files: dict = field(default_factory=dict)
    private: bool = False
    sdk: str | None = None
    obstacle: UserError | None = None
    runtime: Path | None = None

    def read(self):
        """What the Hub holds."""
        try:
            info = self.api.space_info(self.repo_id, revision="main", timeout=patience())
        except RepositoryNotFoundError:
            self.kind = self.kind or "static"
            return
        self.head, self.private, self.sdk = info.sha, info.private, info.sdk
        self.files = list_files(self.api, self.repo_id, info.sha, "space")
        if self.kind is None and info.sdk not in (None, *OURS):
            print(f"Left alone: the Space {self.repo_id} is of kind {info.sdk}; --space static replaces it.")
        self.kind = self.kind or (info.sdk or "static" if info.sdk in (None, *OURS) else "none")

    def prepare(self, runtime=None, read_only=False):
        """Read what there is and, unless it is to be left alone, stage the page.

        Returns:
            bool: whether there is a Space, or will be one after `send`: what the card, written before, may say.
        """
        self.runtime = runtime
        if self.kind == "none":
            return False
        with explained(f"the Space {self.repo_id}"):
            self.read()
        if read_only or self.kind == "none":
            return self.head is not None
        try:
            if self.kind == "static":
                stage_page(self.staged, self.checkpoint, self.repo_id, runtime)
            else:
                require_rgb(UNetImageProcessor.from_pretrained(self.checkpoint), self.repo_id)
        except UserError as error:
            self.obstacle = error
        return self.head is not None or self.obstacle is None

    def send(self, commit, private, dry_run=False):
        """Send it: one commit, or none where nothing changed; a user's own files in it stay.

        Args:
            commit: the model's that the Space shows; None, in a dry run, is one that is not yet known.
            private: whether the model is; then the Space is too.
            dry_run: compare only.

        Raises:
            UserError: what went wrong, and the cure.
        """
        if self.obstacle is not None:
            raise self.obstacle
        with explained(f"the Space {self.repo_id}"):
            if private and self.head and not self.private:
                raise UserError(
                    f"the Space {self.repo_id} is public and its model is not: make it private on the Hub first."
                )
            if self.head is None and not dry_run:
                self.create(private)
            self.fill_in(commit or "COMMIT")
            self.commit(f"Show commit {commit}", dry_run)

    def create(self, private):
        """An empty Space of the kind; where the Hub wants money for a Gradio one, a static one."""
        options = {"space_hardware": SpaceHardware.ZERO_A10G} if self.kind == "gradio" else {}
        try:
            self.api.create_repo(
                self.repo_id, repo_type="space", space_sdk=self.kind, private=private or None, **options
            )
        except HfHubHTTPError as error:
            if self.kind != "gradio" or error.response.status_code != PAYMENT_REQUIRED:
                raise
            reason = " ".join((error.server_message or "Payment Required").split())
            print(
                f"No Gradio Space: the Hub asks for a paid plan (402, {reason}). The static page is sent instead, "
                "which is free; `--space static` asks for it at once."
            )
            self.kind = "static"
            stage_page(self.staged, self.checkpoint, self.repo_id, self.runtime)
            self.create(private)
            return
        self.read()

    def fill_in(self, commit):
        """Name the model's commit in the staged files; a Gradio app is staged here."""
        if self.kind == "gradio":
            stage_space(self.staged, self.repo_id, commit)
        else:
            readme = PAGE_README.read_text(encoding="utf-8")
            (self.staged / "README.md").write_text(filled(readme, self.repo_id, commit), encoding="utf-8")

    def commit(self, message, dry_run):
        """Commit what differs, if anything does."""
        stale = OURS.get(self.sdk, set()) & self.files.keys() if self.sdk != self.kind else ()
        changed = changes(self.staged, self.files, stale)
        if not changed:
            print(f"Nothing changed: Space {self.repo_id}, commit {self.head}.")
            return
        lines = [f"  {kind:<8}{name}" for name, kind in changed.items()]
        print("\n".join([f"Space {self.repo_id} ({self.kind}):", *lines]))
        if dry_run:
            return
        operations = [
            CommitOperationDelete(name) if kind == "deleted" else CommitOperationAdd(name, self.staged / name)
            for name, kind in changed.items()
        ]
        where = {"repo_type": "space", "commit_message": message, "parent_commit": self.head}
        commit_files(self.api, self.repo_id, operations, **where)
        print(f"Space: {self.api.endpoint}/spaces/{self.repo_id}")


def stage_space(folder, repo_id, commit):
    """Write the Gradio Space's files for a model's repository and commit."""
    folder.mkdir()
    for path in (path for path in FILES.iterdir() if path.is_file()):
        if path.suffix in (".py", ".md"):
            text = filled(path.read_text(encoding="utf-8"), repo_id, commit)
            (folder / path.name).write_text(text, encoding="utf-8")
        else:
            shutil.copyfile(path, folder / path.name)


def filled(text, repo_id, commit):
    return text.replace("REPO_ID", repo_id).replace("COMMIT", commit)


def stage_page(folder, checkpoint, repo_id, runtime=None):
    """Write the static Space's files for a run's folder, all but README.md.

    Raises:
        UserError: what the page lacks: npm, the packages of the extra `export`, or a preprocessing that it knows.
    """
    build_page(checkpoint, folder, runtime, name=repo_id)
    index = folder / "index.html"
    text = index.read_text(encoding="utf-8")
    index.write_text(text.replace(OWN_HOST, OWN_HOST + HUBS_STORAGE), encoding="utf-8")
    (folder / LICENCE).write_text(licence_text(read_results(checkpoint / "results.json")), encoding="utf-8")
