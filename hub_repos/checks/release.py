"""Which release built a repository: its version, its code byte for byte, and the commit that it states."""

import re
import tempfile
from pathlib import Path

from hub_unets.hub_repos.checks.static import read_manifest, read_model_type
from hub_unets.hub_repos.checks.untrusted import read_bytes
from hub_unets.hub_repos.repository.builder import MANIFEST
from hub_unets.hub_repos.repository.code import changed_since, code_digest, copy_code
from hub_unets.hub_repos.repository.code import release as installed_release
from hub_unets.training.errors import UserError

RELEASE = re.compile(r"\d+\.\d+\.\d+(?:(?:a|b|rc|\.dev|\.post)\d+)?|unreleased", re.ASCII)


def check_release(folder):
    """Code and requirements are, byte for byte, those that the manifest's release builds for this variant."""
    manifest, model_type = read_manifest(folder), read_model_type(folder)
    release, digest, commit = manifest["release"], manifest["code_sha256"], manifest["commit"]
    if not RELEASE.fullmatch(release):
        raise UserError(f"{MANIFEST}: release {release[:80]!r} has no form of a release")
    if release != installed_release():
        raise UserError(f"built by {release}, this is {installed_release()}: install that release to verify")
    with tempfile.TemporaryDirectory() as built:
        copy_code(model_type, Path(built))
        expected = {path.name: path.read_bytes() for path in Path(built).iterdir()}
        expected_digest = code_digest(Path(built))
    present = {path.name for pattern in ("*.py", "requirements.txt") for path in folder.glob(pattern)}
    for name in sorted(expected.keys() ^ present):
        raise UserError(f"{name} is {'missing' if name in expected else 'not part of this variant'}")
    for name, content in expected.items():
        if read_bytes(folder / name) != content:  # as bytes: untrusted code is not even parsed
            hint = f"; it states that commit {commit} built it" if commit else ""
            raise UserError(f"{name} is not the file that release {release} builds here{hint}")
    if digest != expected_digest:
        raise UserError(f"{MANIFEST}: code_sha256 is {digest}, the code's is {expected_digest}")
    return f"hub-unets {release}, code byte for byte, sha256 {digest}; {_judged_commit(commit, model_type)}"


def _judged_commit(commit, model_type):
    """What is known of the commit that a manifest states.

    Raises:
        UserError: it is known here, and has other code.
    """
    if commit is None:
        return "no commit is stated"
    try:
        changed = changed_since(commit, model_type)
    except LookupError:
        return f"commit {commit} is stated, and can't be looked up here"
    if changed:
        raise UserError(f"{MANIFEST}: commit {commit} has another {changed}")
    return f"commit {commit} has this code"
