"""The Space of a published model: the files in `space_app/` with the model's repository and commit filled in."""

from pathlib import Path

from huggingface_hub import CommitOperationAdd
from huggingface_hub.errors import RepositoryNotFoundError

from hub_unets.hub_repos.publish.publication import commit_files
from hub_unets.hub_repos.publish.remote import changes, explained, list_files
from hub_unets.training.errors import UserError

FILES = Path(__file__).with_name("space_app")


def stage_space(folder, repo_id, commit):
    """Write the Space's files for a model's repository and commit."""
    folder.mkdir()
    for path in (path for path in FILES.iterdir() if path.is_file()):
        content = path.read_bytes()
        if path.suffix in (".py", ".md"):
            content = content.replace(b"REPO_ID", repo_id.encode()).replace(b"COMMIT", commit.encode())
        (folder / path.name).write_bytes(content)


def push_space(api, repo_id, commit, private, scratch, dry_run=False):
    """Send the Space of a model: one commit, or none where nothing changed; other files in it stay.

    Args:
        api: the Hub's client.
        repo_id: the model's, and the Space's.
        commit: the model's commit that the Space shows; None, in a dry run, for one that does not exist yet.
        private: whether the model is private; then the Space is too.
        scratch: a temporary folder.
        dry_run: compare only.

    Raises:
        UserError: the Space could not be sent; the message gives the cure.
    """
    stage_space(scratch / "space", repo_id, commit or "COMMIT")
    with explained(f"the Space {repo_id}"):
        head, files, is_private = _read_space(api, repo_id)
        if private and head and not is_private:
            raise UserError(f"the Space {repo_id} is public and its model is not: make it private on the Hub first.")
        changed = changes(scratch / "space", files)
        if not changed:
            print(f"Nothing changed: Space {repo_id}, commit {head}.")
            return
        print("\n".join([f"Space {repo_id}:", *(f"  {kind:<8}{name}" for name, kind in changed.items())]))
        if dry_run:
            return
        if head is None:
            api.create_repo(repo_id, repo_type="space", space_sdk="gradio", private=private or None)
            head, *_ = _read_space(api, repo_id)
        operations = [CommitOperationAdd(name, scratch / "space" / name) for name in changed]
        message = f"Show commit {commit}"
        commit_files(api, repo_id, operations, repo_type="space", commit_message=message, parent_commit=head)
    print(f"Space: {api.endpoint}/spaces/{repo_id}")


def _read_space(api, repo_id):
    """The Space's head, {path: RepoFile}, and whether it is private; None and no files if it does not exist."""
    try:
        info = api.space_info(repo_id, revision="main")
    except RepositoryNotFoundError:
        return None, {}, False
    return info.sha, list_files(api, repo_id, info.sha, "space"), info.private
