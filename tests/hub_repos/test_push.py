"""Pushes with the Hub's own client to a Hub on this machine."""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import RepoCard
from PIL import Image
from safetensors.torch import load_file, save_file

from hub_unets.hub_repos.publish.publication import BRANCH
from hub_unets.hub_repos.publish.space import FILES, OURS, PAGE_README
from hub_unets.hub_repos.push import push
from hub_unets.hub_repos.repository.builder import build
from hub_unets.modeling.image_processing_unet import UNetImageProcessor
from hub_unets.training.data.phantoms import phantom
from tests.hub_repos.conftest import unscored
from tests.hub_repos.loopback_hub import Blob, LoopbackHub
from tests.hub_repos.pushes import NETWORK, Pusher
from tests.training import runs
from tests.variants import model_class

TOKEN = "hf_" + "w" * 34
READER = "hf_" + "r" * 34
REPO = "someone/unet"
PARTS = ("data of validation", "figures of validation", "data of test", "figures of test")
SPACE = f"spaces/{REPO}"
STRANGER = Path(__file__).with_name("stranger.py")
FIRST_HEAD = 2  # commits on main after one push: the Hub's own, and the push's


@pytest.fixture(scope="module")
def loopback():
    hub = LoopbackHub([TOKEN], [READER])
    yield hub
    hub.close()


@pytest.fixture(scope="module")
def pusher(loopback, tmp_path_factory):
    pusher = Pusher(loopback.url, tmp_path_factory.mktemp("pushes"))
    yield pusher
    pusher.close()


@pytest.fixture(scope="module")
def run(checkpoint, tmp_path_factory):
    """A run's folder with what a Trainer leaves in it, and two pictures."""
    folder = tmp_path_factory.mktemp("run") / "unet-test"
    shutil.copytree(checkpoint, folder)
    for name in ("training_args.bin", "optimizer.pt", "rng_state.pth", ".env"):
        (folder / name).write_bytes(b"secret")
    for number, name in enumerate(("curves.png", "typical.png")):
        Image.fromarray(phantom(number, 0, 64)[0]).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def first_push(loopback, pusher, run):
    """The first push, verified and loaded in isolation: how it ended, the repositories, and its requests."""
    empty(loopback)  # left by earlier tests
    finished = pusher.push(run, REPO, token=TOKEN, isolated=True)
    assert finished.code == 0, finished.stderr
    return finished, copy.deepcopy(loopback.repositories), list(loopback.requests)


@pytest.fixture(scope="module")
def first(first_push):
    """Its end, the model's repository, and its requests."""
    finished, repositories, requests = first_push
    return finished, repositories[REPO], requests


@pytest.fixture
def hub(loopback):
    """An empty Hub."""
    empty(loopback)
    return loopback


def empty(hub):
    """Empty a Hub."""
    for memory in (hub.repositories, hub.objects, hub.collections, hub.requests, hub.rules):
        memory.clear()


@pytest.fixture
def published(hub, first_push):
    """The repository as the first push left it, and its Space."""
    hub.repositories |= copy.deepcopy(first_push[1])
    commits = [files for repository in hub.repositories.values() for files in repository.commits.values()]
    hub.objects.update({blob.sha256: blob.content for files in commits for blob in files.values()})
    return hub.repositories[REPO]


@pytest.fixture
def space(published, hub):
    """The Space as the first push left it."""
    return hub.repositories[SPACE]


@pytest.fixture
def other_run(run, tmp_path):
    """The run with other weights."""
    folder = shutil.copytree(run, tmp_path / "other")
    weights = load_file(folder / "model.safetensors")
    weights["head.classifier.bias"] += 1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def built(run, tmp_path, tag):
    build(run, tmp_path / "built", REPO, tag, space=True)
    return files_of(tmp_path / "built")


def without_attributes(files):
    return {path: content for path, content in files.items() if path != ".gitattributes"}


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


def test_the_clients_own_retries_are_enough(hub, pusher, run):
    hub.fail("POST", "/preupload/", 429, headers={"Retry-After": "7"})
    hub.fail("PUT", "/lfs/", 500, times=2)
    hub.drop("/lfs/", after_bytes=100)
    finished = pusher.push(run, REPO, token=TOKEN)
    assert finished.code == 0, finished.stderr
    assert "Waiting 8.0s before retry" in finished.stderr
    assert len(hub.repositories[REPO].history()) == FIRST_HEAD and hub.repositories[REPO].tags.keys() == {"v1"}


@pytest.mark.long
def test_slow_answers_are_awaited(hub, pusher, run):
    for path in ("/api/repos/create", "/preupload/", "/lfs/", "/commit/", "/tag/"):
        hub.slow("POST|PUT", path, 1)
    hub.slow("GET", "/tree/", 1)
    began = time.monotonic()
    finished = pusher.push(run, REPO, token=TOKEN, seconds=20)
    assert finished.code == 0, finished.stderr
    assert time.monotonic() - began > 6 and "Retrying" not in finished.stderr
    assert len(hub.repositories[REPO].history()) == FIRST_HEAD
    assert hub.count("POST", f"/models/{REPO}/commit/") == 2


@pytest.mark.long
def test_the_client_asks_again_where_an_answer_comes_too_late(hub, pusher, run):
    hub.hold("POST", "/preupload/")
    hub.hold("PUT", "/lfs/")
    finished = pusher.push(run, REPO, token=TOKEN, seconds=5)
    assert finished.code == 0, finished.stderr
    assert finished.stderr.count("timed out' thrown while requesting") == 2
    assert len(hub.repositories[REPO].history()) == FIRST_HEAD and hub.repositories[REPO].tags.keys() == {"v1"}


@pytest.mark.parametrize(
    "path",
    [
        "/commit/main",
        *(pytest.param(path, marks=pytest.mark.long) for path in ("/branch/", "/commit/hub-unets-push", "/tag/")),
    ],
)
def test_a_hub_that_answers_too_late_is_given_up_and_the_next_push_finishes(path, published, hub, pusher, other_run):
    before = published.branches["main"]
    hub.hold("POST", path)
    late = pusher.push(other_run, REPO, token=TOKEN, seconds=5)
    assert late.code == 1 and "the Hub did not answer in time: repeat the command" in late.stderr
    assert late.stderr.count("\n") == 1 and published.branches.keys() == {"main"}
    arrived = path in ("/commit/main", "/tag/")  # the request was carried out
    assert (published.parents[published.branches["main"]] if arrived else published.branches["main"]) == before
    assert pusher.push(other_run, REPO, token=TOKEN).code == 0
    head = published.branches["main"]
    assert published.parents[head] == before and published.tags == {"v1": before, "v2": head}
    assert hub.count("PUT", "/lfs/") == 1  # the weights, once


def test_a_hub_that_never_tells_what_it_holds_is_named(published, hub, pusher, run):
    hub.hold("GET", "/revision/main")
    finished = pusher.push(run, REPO, token=TOKEN, seconds=5)
    assert finished.code == 1 and finished.stderr.startswith("error: the Hub did not answer in time")
    assert finished.stderr.count("\n") == 1 and {method for method, *_ in hub.requests} == {"GET"}


@pytest.mark.parametrize("path", ["/preupload/", "/lfs/", "/branch/", "/commit/hub-unets-push", "/commit/main"])
def test_a_hub_out_of_order_leaves_main_as_it_was(path, published, hub, pusher, other_run):
    before = copy.deepcopy(published)
    hub.fail("POST|PUT", path, 500, times=6)
    finished = pusher.push(other_run, REPO, token=TOKEN)
    assert finished.code == 1
    assert "error: the Hub is out of order (500, injected): repeat the command later." in finished.stderr
    assert (published.branches, published.tags) == (before.branches, before.tags)


def test_an_answer_that_is_a_page_is_an_error_of_one_line(published, hub, pusher, other_run):
    hub.when("POST", "/validate-yaml", lambda handler: handler.answer(b"<html>Sorry</html>", 503))
    finished = pusher.push(other_run, REPO, token=TOKEN)
    assert finished.code == 1 and finished.stderr.startswith("error: the Hub did not take the files (")
    assert finished.stderr.count("\n") == 1 and published.tags.keys() == {"v1"}


def test_a_push_cut_off_before_its_tag_is_finished_by_the_next(hub, pusher, run):
    hub.fail("POST", "/tag/", 503)
    cut_off = pusher.push(run, REPO, token=TOKEN)
    repository = hub.repositories[REPO]
    assert cut_off.code == 1 and not repository.tags
    assert f"commit {repository.branches['main']} is on main, but has no tag v1 yet: " in cut_off.stderr
    assert pusher.push(run, REPO, token=TOKEN).code == 0
    assert repository.tags == {"v1": repository.branches["main"]} and len(repository.history()) == FIRST_HEAD


def test_files_that_arrived_before_a_connection_broke_are_not_sent_again(hub, pusher, run):
    hub.drop(Blob((run / "curves.png").read_bytes()).sha256, after_bytes=100, times=6)
    broken = pusher.push(run, REPO, token=TOKEN)
    assert broken.code == 1 and "error: the connection to the Hub broke" in broken.stderr
    assert hub.repositories[REPO].branches.keys() == {"main"} and len(hub.repositories[REPO].history()) == 1
    arrived = set(hub.objects)
    assert len(arrived) == 3
    hub.requests.clear()
    assert pusher.push(run, REPO, "--no-space", token=TOKEN).code == 0
    assert not any(hub.count("PUT", oid) for oid in arrived) and hub.count("PUT", "/lfs/") == 1


def test_a_commit_of_someone_else_is_not_overwritten(published, hub, pusher, other_run):
    def arrives(handler):
        files = published.commits[published.branches["main"]] | {"NOTES.md": Blob(b"theirs")}
        published.commit("main", files, published.branches["main"])

    hub.when("POST", "/commit/main", arrives)
    finished = pusher.push(other_run, REPO, token=TOKEN)
    assert finished.code == 1 and f"error: someone else pushed to {REPO}" in finished.stderr
    assert "repeat the command" in finished.stderr
    assert published.main["NOTES.md"] == b"theirs" and published.tags.keys() == {"v1"}
    assert pusher.push(other_run, REPO, token=TOKEN).code == 0
    assert published.main["NOTES.md"] == b"theirs" and published.tags["v2"] == published.branches["main"]


def test_other_logits_never_reach_main(published, hub, pusher, other_run):
    before = copy.deepcopy(published)
    weights = (other_run / "model.safetensors").read_bytes()

    def damaged(handler):
        handler.answer(weights[:-4] + b"\0\0\0\x7f", headers={"ETag": '"damaged"'})
        return True

    hub.when("GET", f"/lfs/{Blob(weights).sha256}", damaged)
    finished = pusher.push(other_run, REPO, token=TOKEN)
    assert finished.code == 1
    assert "(main and the tags are as they were): its logits differ from those of" in finished.stderr
    assert (published.branches, published.tags) == (before.branches, before.tags)


def test_a_file_that_the_hub_ignores_is_noticed(published, pusher, other_run):
    files = published.commits[published.branches["main"]] | {".gitignore": Blob(b"README.md\n")}
    ignoring = published.commit("main", files, published.branches["main"])
    finished = pusher.push(other_run, REPO, token=TOKEN)
    assert finished.code == 1 and "README.md did not arrive as built" in finished.stderr
    assert published.branches == {"main": ignoring}


def test_a_branch_that_a_killed_push_left_is_replaced(published, pusher, other_run):
    published.commit(BRANCH, {}, published.branches["main"])
    assert pusher.push(other_run, REPO, token=TOKEN).code == 0
    assert published.branches.keys() == {"main"} and published.tags["v2"] == published.branches["main"]


def test_a_branch_that_cannot_be_removed_is_named(published, hub, pusher, other_run):
    hub.fail("DELETE", "/branch/", 500)
    finished = pusher.push(other_run, REPO, token=TOKEN)
    assert finished.code == 0 and published.tags["v2"] == published.branches["main"]
    assert f"A branch is left: hf repos branch delete {REPO} {BRANCH}" in finished.stderr


def test_a_branch_that_another_push_makes_meanwhile_is_left_to_it(published, hub, pusher, other_run):
    hub.when("POST", "/branch/", lambda handler: published.branches.update({BRANCH: published.branches["main"]}))
    before = copy.deepcopy(published)
    finished = pusher.push(other_run, REPO, token=TOKEN)
    assert finished.code == 1 and "changed while this ran (Reference already exists): repeat" in finished.stderr
    assert published.tags == before.tags and published.branches == {**before.branches, BRANCH: before.branches["main"]}


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


def filled(content, commit):
    return content.replace(b"REPO_ID", REPO.encode()).replace(b"COMMIT", commit.encode())


def require_page(space, commit):
    """The Space is the static page of a model's commit, and holds nothing else."""
    files = without_attributes(space.main)
    assert files.keys() == OURS["static"] | {"README.md"} and space.sdk == "static"
    assert files["README.md"] == filled(PAGE_README.read_bytes(), commit)
    assert files["model.onnx"] == NETWORK and json.loads(files["settings.json"])["name"] == REPO
    assert b"connect-src 'self' https://huggingface.co https://*.hf.co;" in files["index.html"]
    assert RepoCard(files["README.md"].decode()).data.models == [REPO]


def app_of(commit):
    """The Gradio Space's files for a model's commit."""
    names = {"app.py", "README.md"}
    return {name: filled(content, commit) if name in names else content for name, content in files_of(FILES).items()}


def test_the_space_is_a_static_page_of_one_commit(first, first_push):
    finished, repository, requests = first
    space, commit = first_push[1][SPACE], repository.branches["main"]
    assert len(space.history()) == FIRST_HEAD and not space.tags and not space.private and space.hardware is None
    require_page(space, commit)
    assert space.main["LICENSE"] == repository.main["LICENSE"]
    assert finished.stdout.splitlines()[-1].endswith(f"/spaces/{REPO}")
    paths = [path for _, path, _ in requests]
    assert paths.index(f"/api/models/{REPO}/tag/{commit}") < paths.index(f"/api/spaces/{REPO}/commit/main")
    assert f"https://huggingface.co/spaces/{REPO}." in repository.main["README.md"].decode()


def test_the_space_follows_a_new_commit_and_keeps_what_a_user_added(published, space, pusher, other_run):
    files = space.commits[space.branches["main"]] | {"NOTES.md": Blob(b"a user's own")}
    edited = space.commit("main", files, space.branches["main"])
    finished = pusher.push(other_run, REPO, token=TOKEN)
    assert finished.code == 0, finished.stderr
    assert space.parents[space.branches["main"]] == edited and space.main["NOTES.md"] == b"a user's own"
    assert space.main["README.md"] == filled(PAGE_README.read_bytes(), published.branches["main"])
    listed = finished.stdout.partition(f"\nSpace {REPO} (static):\n")[2].splitlines()
    assert listed[0].split() == ["changed", "README.md"] and listed[1].startswith("Space: http")


def test_a_gradio_space_asks_for_zerogpu_and_stays_one_until_another_is_asked_for(published, hub, pusher, other_run):
    del hub.repositories[SPACE]
    assert pusher.push(other_run, REPO, "--space", "gradio", token=TOKEN).code == 0
    space, commit = hub.repositories[SPACE], published.branches["main"]
    assert without_attributes(space.main) == app_of(commit) and (space.sdk, space.hardware) == ("gradio", "zero-a10g")
    assert f'MODEL, REVISION = "{REPO}", "{commit}"' in space.main["app.py"].decode()
    assert f"https://huggingface.co/spaces/{REPO}." in published.main["README.md"].decode()
    repeated = pusher.push(other_run, REPO, token=TOKEN, npm=False)
    assert repeated.stdout.splitlines()[-1] == f"Nothing changed: Space {REPO}, commit {space.branches['main']}."
    changed = pusher.push(other_run, REPO, "--space", "static", token=TOKEN)
    assert changed.code == 0 and re.search(r"deleted +app.py\n", changed.stdout)
    require_page(space, commit)


def test_a_space_of_another_kind_is_left_alone(space, hub, pusher, other_run):
    space.sdk, before = "docker", space.branches["main"]
    finished = pusher.push(other_run, REPO, token=TOKEN)
    assert finished.code == 0 and space.branches["main"] == before
    assert f"Left alone: the Space {REPO} is of kind docker; --space static replaces it." in finished.stdout
    assert f"https://huggingface.co/spaces/{REPO}." in hub.repositories[REPO].main["README.md"].decode()


def test_where_a_gradio_space_costs_money_the_page_is_sent(hub, pusher, run, monkeypatch):
    monkeypatch.setattr(hub, "pays", False)
    finished = pusher.push(run, REPO, "--space", "gradio", token=TOKEN)
    assert finished.code == 0, finished.stderr
    asked = "(402, Creating a Gradio Space requires a PRO subscription). The static page is sent instead"
    assert f"No Gradio Space: the Hub asks for a paid plan {asked}" in finished.stdout
    model = hub.repositories[REPO]
    require_page(hub.repositories[SPACE], model.branches["main"])
    assert model.tags.keys() == {"v1"} and hub.count("POST", "/api/repos/create") == 3
    assert f"https://huggingface.co/spaces/{REPO}." in model.main["README.md"].decode()


def test_where_neither_can_be_had_the_model_stays_published(hub, pusher, run, monkeypatch):
    monkeypatch.setattr(hub, "pays", False)
    finished = pusher.push(run, REPO, "--space", "gradio", token=TOKEN, npm=False)
    assert finished.code == 1 and hub.repositories.keys() == {REPO}
    assert hub.repositories[REPO].tags.keys() == {"v1"}
    assert "its Space is not, and the same command sends it: npm is not installed" in finished.stderr


@pytest.mark.parametrize("options", [(), ("--space", "static")])
def test_without_npm_the_model_is_published_and_its_card_names_no_space(options, hub, pusher, run):
    finished = pusher.push(run, REPO, *options, token=TOKEN, npm=False)
    model = hub.repositories[REPO]
    assert hub.repositories.keys() == {REPO} and model.tags == {"v1": model.branches["main"]}
    assert f"huggingface.co/spaces/{REPO}" not in model.main["README.md"].decode()
    reason = "npm is not installed, and fetches onnxruntime-web@"
    if options:
        assert finished.code == 1 and f"its Space is not, and the same command sends it: {reason}" in finished.stderr
    else:
        assert finished.code == 0 and f"No Space: {reason}" in finished.stdout
    given = pusher.push(run, REPO, "--runtime", pusher.runtime, token=TOKEN, npm=False)
    assert given.code == 0, given.stderr
    require_page(hub.repositories[SPACE], model.branches["main"])
    assert model.tags.keys() == {"v1", "v2"} and f"/spaces/{REPO}." in model.main["README.md"].decode()


@pytest.mark.parametrize("options", [("--no-space",), ("--space", "none"), ("--create-pr",)])
def test_a_push_without_a_space(options, hub, published, pusher, other_run):
    del hub.repositories[SPACE]
    assert pusher.push(other_run, REPO, *options, token=TOKEN).code == 0
    assert hub.repositories.keys() == {REPO} and not hub.count("POST", "/spaces/|/repos/create")
    revision = "refs/pr/1" if "--create-pr" in options else "main"
    assert f"huggingface.co/spaces/{REPO}" not in published.at(revision)["README.md"].decode()


@pytest.mark.parametrize("path", ["/api/repos/create", "/api/spaces/.*/commit/main"])
def test_a_space_that_fails_leaves_the_model_published_and_comes_with_the_next_push(path, hub, published, pusher, run):
    del hub.repositories[SPACE]
    before = copy.deepcopy(published)
    hub.fail("POST", path, 500, times=6)
    finished = pusher.push(run, REPO, token=TOKEN)
    assert finished.code == 1 and published == before
    published_as = f"error: {REPO} is published, commit {before.branches['main']}; its Space is not, and the same"
    assert published_as in finished.stderr and "the Hub is out of order (500, injected)" in finished.stderr
    hub.rules.clear()
    assert pusher.push(run, REPO, token=TOKEN).code == 0
    require_page(hub.repositories[SPACE], before.branches["main"])


def test_a_space_is_not_written_over_someone_elses_commit(space, hub, pusher, other_run):
    def arrives(handler):
        files = space.commits[space.branches["main"]] | {"page.js": Blob(b"theirs")}
        space.commit("main", files, space.branches["main"])

    hub.when("POST", "/api/spaces/.*/commit/main", arrives)
    finished = pusher.push(other_run, REPO, token=TOKEN)
    assert finished.code == 1 and f"someone else pushed to the Space {REPO}" in finished.stderr
    assert space.main["page.js"] == b"theirs"


def test_a_private_models_space_is_private(hub, pusher, run):
    finished = pusher.push(run, REPO, "--private", token=TOKEN)
    assert finished.code == 0 and hub.repositories[SPACE].private
    hub.repositories[SPACE].private = False
    repeated = pusher.push(run, REPO, token=TOKEN)
    assert repeated.code == 1 and f"the Space {REPO} is public and its model is not" in repeated.stderr


def test_a_dry_run_lists_the_space(hub, pusher, run):
    finished = pusher.push(run, REPO, "--dry-run")
    listed = finished.stdout.partition(f"\nSpace {REPO} (static):\n")[2].splitlines()
    assert {line.split()[1] for line in listed[:-1]} == OURS["static"] | {"README.md"}
    assert listed[-1] == "Dry run: nothing was sent." and not hub.repositories


@pytest.fixture
def sweep(run, other_run, tmp_path):
    """A sweep's folder with two trials, and a third whose weights are elsewhere."""
    folder = tmp_path / "family"
    shutil.copytree(run, folder / "trials" / "b0+scse")
    shutil.copytree(other_run, folder / "trials" / "plain")
    (folder / "leaderboard.csv").write_text(
        "name,group,place,validation_dice\nb0+scse,pretrained,1,0.9\nelsewhere,pretrained,2,0.8\nplain,scratch,1,0.7\n"
    )
    return folder


def test_a_sweep_is_a_repository_for_each_trial_and_a_collection(hub, pusher, sweep):
    finished = pusher.push(sweep, REPO, token=TOKEN)
    assert finished.code == 0, finished.stderr
    assert hub.repositories.keys() == {f"{REPO}-b0-scse", f"{REPO}-plain"}
    assert "Left out: the weights of elsewhere are not here" in finished.stdout
    ((slug, collection),) = hub.collections.items()
    assert collection["title"] == "family" and not collection["private"]
    assert [(item["id"], item["note"]["text"]) for item in collection["items"]] == [
        (f"{REPO}-b0-scse", "Place 1 of 2 by validation Dice (pretrained)"),
        (f"{REPO}-plain", "Place 1 of 1 by validation Dice (scratch)"),
    ]
    card = hub.repositories[f"{REPO}-b0-scse"].main["README.md"].decode()
    assert " Place 1ˢ of 2ˢ by validation Dice (pretrained) in the sweep" in card
    assert f"[family](https://huggingface.co/collections/{slug}), which links the others.\n" in card
    repeated = pusher.push(sweep, REPO, token=TOKEN)
    assert repeated.stdout.count("Nothing changed") == 2 and len(collection["items"]) == 2


def test_a_run_without_a_test_part_is_pushed(hub, pusher, run, tmp_path):
    finished = pusher.push(unscored(run, tmp_path / "run"), REPO, token=TOKEN)
    assert finished.code == 0, finished.stderr
    card = hub.repositories[REPO].main["README.md"].decode()
    assert "**Not scored on a test part**" in card and "model-index" not in card


@pytest.mark.long
def test_a_trained_trial_passes_every_check_by_its_id_and_commit(hub, pusher, tmp_path):
    for number, name in enumerate(("plain+3", "plain+4"), start=3):
        training = runs.run(tmp_path / "family" / "trials" / name, model__base_channels=number, num_train_epochs=1)
        assert training.code == 0, training.stderr
    (tmp_path / "family" / "leaderboard.csv").write_text("name,group,place\nplain+4,scratch,1\nplain+3,scratch,2\n")
    finished = pusher.push(tmp_path / "family", REPO, token=TOKEN)
    assert finished.code == 0, finished.stderr
    trial = f"{REPO}-plain-3"
    commit, environment = hub.repositories[trial].branches["main"], {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-m", "hub_repos.verify", trial, "--commit", commit, "--data", runs.TINY["data"]]
    process = subprocess.run(
        command,
        cwd=runs.ROOT,
        env=os.environ | environment | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"},
        capture_output=True,
        text=True,
    )
    header, *lines, _, footer = process.stdout.splitlines()
    assert process.returncode == 0, process.stdout + process.stderr
    assert header == f"{trial} at commit {commit}" and footer == f"All {len(lines)} checks passed."
    ran = [line.removeprefix("ok   ").partition(":")[0] for line in lines][-14:]
    last = ["split", *PARTS, "best epoch", "figures ʳ", "figures ᵈ"]
    assert ran == ["load", "logits", "pipeline", "endpoint", "snippets", "saves again", *last]
    assert (
        " Place 2ˢ of 2ˢ by validation Dice (scratch) in the sweep"
        in hub.repositories[trial].main["README.md"].decode()
    )


def test_two_trials_are_never_one_repository(hub, pusher, sweep):
    (sweep / "trials" / "plain").rename(sweep / "trials" / "b0-scse")
    leaderboard = sweep / "leaderboard.csv"
    leaderboard.write_text(leaderboard.read_text().replace("plain,", "b0-scse,"))
    finished = pusher.push(sweep, REPO, token=TOKEN)
    assert finished.code == 1 and "would be one repository" in finished.stderr
    assert not hub.repositories and not hub.collections


def test_a_dry_run_of_a_sweep_makes_no_collection(hub, pusher, sweep):
    finished = pusher.push(sweep, REPO, "--dry-run")
    assert finished.code == 0 and finished.stdout.count("Dry run: nothing was sent.") == 2
    assert not hub.repositories and not hub.collections


def test_a_sweep_that_has_not_ended_is_refused(pusher, sweep):
    (sweep / "leaderboard.csv").unlink()
    finished = pusher.push(sweep, REPO, token=TOKEN)
    assert finished.code == 1 and "error: " in finished.stderr and "has no leaderboard.csv yet" in finished.stderr
