"""A Hub on this machine, a process that pushes to it, a run, and the Hub as one push leaves it."""

import copy
import shutil

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from hub_unets.training.data.phantoms import phantom
from tests.hub_repos.loopback_hub import LoopbackHub
from tests.hub_repos.push.names import READER, REPO, SPACE, TOKEN
from tests.hub_repos.pushes import Pusher


@pytest.fixture(scope="package")
def loopback():
    hub = LoopbackHub([TOKEN], [READER])
    yield hub
    hub.close()


@pytest.fixture(scope="package")
def pusher(loopback, tmp_path_factory):
    pusher = Pusher(loopback.url, tmp_path_factory.mktemp("pushes"))
    yield pusher
    pusher.close()


@pytest.fixture(scope="package")
def run(checkpoint, tmp_path_factory):
    """A run's folder with what a Trainer leaves in it, and two pictures."""
    folder = tmp_path_factory.mktemp("run") / "unet-test"
    shutil.copytree(checkpoint, folder)
    for name in ("training_args.bin", "optimizer.pt", "rng_state.pth", ".env"):
        (folder / name).write_bytes(b"secret")
    for number, name in enumerate(("curves.png", "typical.png")):
        Image.fromarray(phantom(number, 0, 64)[0]).save(folder / name)
    return folder


@pytest.fixture(scope="package")
def first_push(loopback, pusher, run):
    """The first push, verified and loaded in isolation: how it ended, the repositories, and its requests."""
    empty(loopback)  # left by earlier tests
    finished = pusher.push(run, REPO, token=TOKEN, isolated=True)
    assert finished.code == 0, finished.stderr
    return finished, copy.deepcopy(loopback.repositories), list(loopback.requests)


@pytest.fixture(scope="package")
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
