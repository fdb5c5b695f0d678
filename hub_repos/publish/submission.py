"""Attestations on the Hub: what its commits have to do with a verified folder, and a pull request with a new one."""

import functools

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HTTPError, RevisionNotFoundError

from hub_unets.hub_repos.checks.signatures import ATTESTATIONS, is_addition
from hub_unets.hub_repos.publish.publication import commit_files
from hub_unets.hub_repos.publish.remote import changes, explained, is_same, list_files
from hub_unets.hub_repos.repository.builder import MANIFEST


def is_unsigned(folder, repo_id, commit):
    """Whether a commit on the Hub has the folder's files but for signatures and attestations."""
    files = list_files(HfApi(), repo_id, commit)
    return all(map(is_addition, changes(folder, files, files.keys())))


def has_manifest(folder, repo_id):
    """A function that tells whether a commit on the Hub has the folder's manifest; None where the Hub does not say."""

    @functools.cache
    def has(commit):
        try:
            files = list_files(HfApi(), repo_id, commit)
        except RevisionNotFoundError:
            return False
        except HTTPError:
            return None
        return MANIFEST in files and is_same(folder / MANIFEST, files[MANIFEST])

    return has


def submit(path, repo_id, commit):
    """Offer an attestation, a statement's file and its signature, as a pull request; returns its address."""
    operations = [CommitOperationAdd(f"{ATTESTATIONS}/{file.name}", file) for file in (path, path.with_suffix(".sig"))]
    with explained(repo_id):
        message = f"Attest commit {commit}"
        offered = commit_files(HfApi(), repo_id, operations, commit_message=message, create_pr=True)
    return offered.pr_url
