"""What names the release: its version, its code's bytes and digest, and a commit only where it can be looked up."""

import json
import shutil
import subprocess

import pytest

from hub_unets.hub_repos.checks.release import check_release
from hub_unets.hub_repos.checks.verification import verify_folder
from hub_unets.hub_repos.repository import code
from hub_unets.training.errors import UserError


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout of this project's published code, with two commits; the first has another `layers.py`."""
    project = tmp_path / "project"
    for package in code.PACKAGES:
        shutil.copytree(code.PROJECT / package, project / package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(code, "PROJECT", project)
    layers = project / "modeling" / "layers.py"
    text = layers.read_text(encoding="utf-8")
    git(project, "init", "-q")
    layers.write_text(text + "# earlier\n", encoding="utf-8")
    commit(project)
    layers.write_text(text, encoding="utf-8")
    commit(project)
    return project


def git(project, *arguments):
    identity = "-c", "user.name=a", "-c", "user.email=a@b"
    command = ["git", "-C", str(project), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def commit(project):
    git(project, "add", "-A")
    git(project, "commit", "-qm", "x")


def state(folder, **fields):
    manifest = json.loads((folder / "manifest.json").read_text()) | fields
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return manifest


def test_a_commit_is_compared_where_it_is_known(copy, checkout):
    earlier, latest = (git(checkout, "rev-parse", name) for name in ("HEAD~1", "HEAD"))
    digest = state(copy, commit=latest)["code_sha256"]
    assert check_release(copy) == (
        f"hub-unets {code.release()}, code byte for byte, sha256 {digest}; commit {latest} has this code"
    )
    state(copy, commit=earlier)
    with pytest.raises(UserError, match=f"commit {earlier} has another modeling/layers.py"):
        check_release(copy)


@pytest.mark.parametrize(("stated", "note"), [("0" * 40, "is stated, and can't be looked up here"), (None, "")])
def test_a_commit_that_nothing_here_knows_is_not_claimed(stated, note, copy, checkout):
    state(copy, commit=stated)
    assert check_release(copy).endswith(f"commit {stated} {note}" if stated else "no commit is stated")
    shutil.rmtree(checkout / ".git")
    assert check_release(copy).endswith(f"commit {stated} {note}" if stated else "no commit is stated")


def test_the_commit_is_that_of_an_unchanged_checkout(checkout):
    assert code.head_commit() == git(checkout, "rev-parse", "HEAD")
    (checkout / "modeling" / "layers.py").write_text("changed")
    assert code.head_commit() is None
    shutil.rmtree(checkout / ".git")
    assert code.head_commit() is None


def test_the_codes_digest_is_of_the_code(copy):
    state(copy, code_sha256="0" * 64)
    with pytest.raises(UserError, match=r"code_sha256 is 0{64}, the code's is [0-9a-f]{64}"):
        check_release(copy)


@pytest.mark.parametrize("fields", [{"commit": "main"}, {"code_sha256": "x"}, {"commit": 1}])
def test_commit_and_digest_have_their_form(fields, copy):
    state(copy, **fields)
    with pytest.raises(UserError, match=f"manifest.json: {min(fields)}: "):
        check_release(copy)


def test_a_repository_of_an_earlier_release_says_what_to_do(copy):
    release = "0.1.0, commit " + "a" * 40
    manifest = state(copy, schema_version=1, release=release)
    del manifest["code_sha256"], manifest["commit"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    failed = {check.name: check.reason for check in verify_folder(copy) if not check.passed}
    message = "install that one to verify, or build the repository again"
    assert failed == {"manifest": f"manifest.json is of an earlier release, '{release}': {message}"}
