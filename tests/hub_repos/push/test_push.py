"""Pushes with the Hub's own client to a Hub on this machine."""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hub_unets.hub_repos.push import push
from hub_unets.hub_repos.repository.builder import build
from hub_unets.modeling.image_processing_unet import UNetImageProcessor
from hub_unets.training.data.phantoms import phantom
from tests.hub_repos.conftest import unscored
from tests.hub_repos.loopback_repository import Blob
from tests.hub_repos.push.names import FIRST_HEAD, READER, REPO, SPACE, TOKEN, files_of, without_attributes
from tests.variants import model_class

STRANGER = Path(__file__).parents[1] / "stranger.py"


def built(run, tmp_path, tag):
    build(run, tmp_path / "built", REPO, tag, space=True)
    return files_of(tmp_path / "built")


def test_a_push_is_one_commit_with_a_tag_and_holds_what_was_built(first, run, tmp_path):
    finished, repository, requests = first
    commit = repository.branches["main"]
    assert len(repository.history()) == FIRST_HEAD
    assert repository.tags == {"v1": commit} and repository.branches.keys() == {"main"} and not repository.pulls
    assert without_attributes(repository.main) == built(run, tmp_path, "v1")
    assert {"LICENSE", "notebook.ipynb"} <= repository.main.keys()
    assert f'AutoModel.from_pretrained("{REPO}", revision="{commit}", trust_remote_code=True)' in finished.stdout
    assert f'"{REPO}", revision="v1"' in repository.main["README.md"].decode()
    assert {path for path, blob in repository.commits[commit].items() if blob.lfs} == {
        "model.safetensors",
        "curves.png",
        "example.png",
        "typical.png",
    }
    assert (
        sum(method == "PUT" for method, *_ in requests) == 4 + 2
    )  # two commits share them; the page's network and runtime


def test_main_gets_the_commit_that_was_loaded(first):
    _, repository, requests = first
    commit = repository.branches["main"]
    commits = [path.split("/")[4] for method, path, _ in requests if method == "HEAD" and "/resolve/" in path]
    tried = set(commits)
    assert len(tried) == 1 and commit not in tried
    (tried,) = tried
    assert repository.commits[tried] == repository.commits[commit]
    assert repository.parents[tried] == repository.parents[commit]
    paths = [path for _, path, _ in requests]
    last_load = max(number for number, path in enumerate(paths) if f"/resolve/{tried}/" in path)
    assert last_load < paths.index(f"/api/models/{REPO}/commit/main")


def test_the_isolated_process_has_no_token(first):
    _, _, requests = first
    assert not any(has_token for _, path, has_token in requests if "/resolve/" in path)


def test_the_token_is_nowhere(first, pusher):
    finished, repository, _ = first
    assert TOKEN not in finished.stdout + finished.stderr
    assert not any(TOKEN.encode() in content for content in repository.main.values())
    assert not any(TOKEN.encode() in path.read_bytes() for path in pusher.folder.rglob("*") if path.is_file())
    assert not files_of(pusher.folder / "temporary")


def test_what_a_trainer_leaves_is_not_uploaded(first):
    _, repository, _ = first
    names = {path for files in repository.commits.values() for path in files}
    assert not {path for path in names if path.endswith((".bin", ".pt", ".pth", ".env"))}


def test_a_stranger_loads_the_commit_from_the_hub(published, hub, run, tmp_path):
    Image.fromarray(phantom(7, 0, 64)[0]).save(tmp_path / "image.png")
    keep = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    commit = published.branches["main"]
    process = subprocess.run(
        [sys.executable, "-I", STRANGER, REPO, commit, "image.png", "found.npz"],
        cwd=tmp_path,
        env=keep | {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.url},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    arrays, image = np.load(tmp_path / "found.npz"), Image.open(tmp_path / "image.png")
    model, processor = model_class("unet").from_pretrained(run).eval(), UNetImageProcessor.from_pretrained(run)
    with torch.inference_mode():
        outputs = model(**processor(image))
    mask = processor.post_process_semantic_segmentation(outputs, [(image.height, image.width)])[0].numpy()
    assert np.array_equal(arrays["pixel_values"], processor(image)["pixel_values"].numpy())
    assert np.array_equal(arrays["logits"], outputs.logits.numpy())
    assert np.array_equal(arrays["union"], mask == 1) and 0 < mask.mean() < 1
    assert {path.split("/")[4] for _, path, _ in hub.requests if "/resolve/" in path} == {commit}


def test_a_repeated_push_commits_nothing(published, hub, pusher, run):
    before = copy.deepcopy(published)
    finished = pusher.push(run, REPO, token=TOKEN)
    assert finished.code == 0, finished.stderr
    space_commit = hub.repositories[SPACE].branches["main"]
    assert finished.stdout.splitlines() == [
        f"Nothing changed: {REPO}, commit {before.branches['main']}, tag v1.",
        f"Nothing changed: Space {REPO}, commit {space_commit}.",
    ]
    assert published == before and {method for method, *_ in hub.requests} <= {"GET", "HEAD"}


def test_other_weights_are_a_second_commit_and_stale_files_go(published, pusher, other_run, tmp_path):
    manifest = json.loads(published.main["manifest.json"])
    manifest["files"]["old_layers.py"] = {"sha256": "0", "bytes": 1}
    files = published.commits[published.branches["main"]] | {
        "manifest.json": Blob(json.dumps(manifest).encode()),
        "old_layers.py": Blob(b"x"),
        "NOTES.md": Blob(b"a user's own"),
    }
    edited = published.commit("main", files, published.branches["main"])
    finished = pusher.push(other_run, REPO, token=TOKEN)
    assert finished.code == 0, finished.stderr
    head = published.branches["main"]
    assert published.parents[head] == edited
    assert published.tags == {"v1": published.parents[edited], "v2": head}
    assert without_attributes(published.main) == built(other_run, tmp_path, "v2") | {"NOTES.md": b"a user's own"}
    assert re.search(r"deleted +old_layers.py\n", finished.stdout) and "layers.py  " not in finished.stdout
    assert re.search(r"changed +model.safetensors +[\d,]+ bytes  LFS\n", finished.stdout)


def test_a_tag_does_not_move(published, pusher, other_run):
    before = copy.deepcopy(published)
    finished = pusher.push(other_run, REPO, "--tag", "v1", token=TOKEN)
    assert finished.code == 1 and published == before
    assert f"error: tag v1 is that of commit {published.tags['v1']}" in finished.stderr
    assert f"to get v2, or remove the old one with `hf repos tag delete {REPO} v1`" in finished.stderr


def test_a_tag_can_be_named(hub, pusher, run):
    assert pusher.push(run, REPO, "--tag", "release-1", token=TOKEN).code == 0
    repository = hub.repositories[REPO]
    assert repository.tags == {"release-1": repository.branches["main"]}
    assert 'revision="release-1"' in repository.main["README.md"].decode()


def test_a_pull_request_leaves_main_alone(published, pusher, other_run):
    before = copy.deepcopy(published)
    finished = pusher.push(other_run, REPO, "--create-pr", token=READER)
    assert finished.code == 0, finished.stderr
    assert (published.branches, published.tags) == (before.branches, before.tags)
    assert published.parents[published.pulls[1]] == before.branches["main"] and published.pull_status == {1: "open"}
    assert published.at("refs/pr/1")["model.safetensors"] == (other_run / "model.safetensors").read_bytes()
    assert f'revision="{published.pulls[1]}"' in finished.stdout and "/discussions/1" in finished.stdout


def test_a_pull_request_that_does_not_load_is_closed(published, hub, pusher, other_run):
    hub.when("GET", "/api/models/.*/tree/", lambda handler: None)  # main's
    hub.fail("GET", "/api/models/.*/tree/", 500, times=6)
    finished = pusher.push(other_run, REPO, "--create-pr", token=TOKEN)
    assert finished.code == 1 and published.pull_status == {1: "closed"}


@pytest.mark.long
def test_a_private_repository_is_loaded_with_the_token(hub, pusher, run):
    finished = pusher.push(run, REPO, "--private", token=TOKEN, isolated=True)
    assert finished.code == 0, finished.stderr
    assert hub.repositories[REPO].private and hub.repositories[REPO].tags.keys() == {"v1"}
    assert all(has_token for _, path, has_token in hub.requests if "/resolve/" in path)
    assert TOKEN not in finished.stdout + finished.stderr


def test_a_public_repository_does_not_become_private(published, pusher, run):
    finished = pusher.push(run, REPO, "--private", token=TOKEN)
    assert finished.code == 1 and f"error: {REPO} is public: make it private on the Hub first" in finished.stderr


def test_a_dry_run_only_reads(published, hub, pusher, other_run):
    before = copy.deepcopy(published)
    finished = pusher.push(other_run, REPO, "--dry-run")
    assert finished.code == 0 and published == before
    assert re.search(r"changed +model.safetensors +[\d,]+ bytes  LFS\n", finished.stdout)
    assert re.search(r"changed +README.md +[\d,]+ bytes\n", finished.stdout)
    assert finished.stdout.endswith("Dry run: nothing was sent.\n")
    assert {method for method, *_ in hub.requests} <= {"GET", "HEAD"}


def test_a_dry_run_of_a_new_repository_makes_none(hub, pusher, run):
    finished = pusher.push(run, REPO, "--dry-run")
    assert finished.code == 0 and re.search(r"new +README.md +[\d,]+ bytes\n", finished.stdout)
    assert not hub.repositories


@pytest.mark.parametrize(
    ("token", "repo_id", "message"),
    [
        (None, REPO, "not logged in: run `hf auth login`"),
        ("hf_" + "f" * 34, REPO, "the Hub does not accept who you are: run `hf auth login`"),
        (READER, REPO, f"your token may not do this in {REPO}: log in with one"),
        (TOKEN, "someone-else/unet", "your token may not do this in someone-else/unet"),
        (TOKEN, "unet", "REPO_ID is namespace/name, such as someone/unet, got 'unet'"),
        (TOKEN, "some one/unet", "Repo id must use alphanumeric chars"),
    ],
)
def test_who_may_push_where(token, repo_id, message, hub, pusher, run):
    finished = pusher.push(run, repo_id, token=token)
    assert finished.code == 1 and f"error: {message}" in finished.stderr
    assert finished.stderr.count("\n") == 1 and not hub.repositories


def test_the_client_may_not_be_offline(run):
    with pytest.raises(ValueError, match="the client is set to stay offline: unset HF_HUB_OFFLINE"):
        push(run, REPO, dry_run=True)


def test_a_link_in_the_run_is_refused(hub, pusher, run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "worst.png").symlink_to("/etc/hostname")
    finished = pusher.push(tmp_path / "run", REPO, token=TOKEN)
    assert finished.code == 1 and "holds symbolic links (worst.png)" in finished.stderr and not hub.repositories


def test_a_run_without_a_test_part_is_pushed(hub, pusher, run, tmp_path):
    finished = pusher.push(unscored(run, tmp_path / "run"), REPO, token=TOKEN)
    assert finished.code == 0, finished.stderr
    card = hub.repositories[REPO].main["README.md"].decode()
    assert "**Not scored on a test part**" in card and "model-index" not in card
