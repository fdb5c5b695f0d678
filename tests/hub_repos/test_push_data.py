"""A split on the Hub: its lists and digests, and the models whose cards name it."""

import csv
import hashlib
import json

import numpy as np
import pytest
import yaml
from huggingface_hub import parse_eval_result_entries

from hub_unets.hub_repos.checks.verification import verify_folder
from hub_unets.training.data.partition import make_partition
from hub_unets.training.data.reading import read_pair
from hub_unets.training.data.sources import load_source
from tests.hub_repos.conftest import DATA
from tests.hub_repos.loopback_hub import LoopbackHub
from tests.hub_repos.pushes import Pusher

TOKEN = "hf_" + "w" * 34
REPO, MODEL = "someone/phantoms-own", "someone/unet"
STORED = f"datasets/{REPO}"


@pytest.fixture(scope="module")
def loopback():
    hub = LoopbackHub([TOKEN])
    yield hub
    hub.close()


@pytest.fixture(scope="module")
def pusher(loopback, tmp_path_factory):
    pusher = Pusher(loopback.url, tmp_path_factory.mktemp("pushes"))
    yield pusher
    pusher.close()


@pytest.fixture
def hub(loopback):
    """An empty Hub."""
    for memory in (loopback.repositories, loopback.objects, loopback.requests, loopback.rules):
        memory.clear()
    return loopback


@pytest.fixture
def push_data(pusher):
    def push(*options, data=DATA, split="own", token=TOKEN):
        return pusher.push(data, REPO, "--split", split, *options, token=token, command="push_data")

    return push


def tables(files):
    parts = ("train", "validation", "test")
    return {part: list(csv.DictReader(files[f"parts/{part}.csv"].decode().splitlines())) for part in parts}


def test_a_split_is_published_as_names_and_digests_without_a_picture(hub, push_data):
    finished = push_data()
    assert finished.code == 0, finished.stderr
    repository = hub.repositories[STORED]
    files = {path: content for path, content in repository.main.items() if path != ".gitattributes"}
    assert files.keys() == {
        "README.md", "eval.yaml", "split.json", "parts/train.csv", "parts/validation.csv", "parts/test.csv"
    }  # fmt: skip
    assert repository.tags == {"v1": repository.branches["main"]} and not hub.objects
    images, partition = make_partition(load_source(DATA), "own")
    rows = tables(files)
    assert {part: [row["name"] for row in of_part] for part, of_part in rows.items()} == {
        part: partition.names_of(part) for part in rows
    }
    record = json.loads(files["split.json"])
    assert (record["split"], record["sha256"]) == ("own", partition.sha256)
    assert record["files_sha256"] == partition.files_sha256 and record["sizes"] == partition.sizes
    stored = images[partition.test[0]]
    image, labels = read_pair(stored)
    head = f"{image.width}x{image.height}\n".encode()
    assert rows["test"][0] == {
        "name": partition.names_of("test")[0],
        "width": str(image.width),
        "height": str(image.height),
        "twins": "",
        "image_sha256": hashlib.sha256(stored["image"]["bytes"]).hexdigest(),
        "image_pixels_sha256": hashlib.sha256(head + np.asarray(image).tobytes()).hexdigest(),
        "mask_sha256": hashlib.sha256(stored["annotation"]["bytes"]).hexdigest(),
        "mask_pixels_sha256": hashlib.sha256(head + labels.tobytes()).hexdigest(),
    }
    repeated = push_data()
    assert repeated.stdout == f"Nothing changed: data set {REPO}, commit {repository.branches['main']}.\n"


def test_its_card_and_benchmark_have_the_hubs_form(hub, push_data):
    assert push_data("--name", "Phantoms").code == 0
    files = hub.repositories[STORED].main
    benchmark = yaml.safe_load(files["eval.yaml"])
    assert benchmark.keys() == {"name", "description", "evaluation_framework", "tasks"}
    assert benchmark["tasks"] == [{"id": "own", "config": "default", "split": "test"}]
    card = files["README.md"].decode()
    metadata = yaml.safe_load(card.split("---\n")[1])
    assert metadata["pretty_name"] == "Phantoms, split own"
    (config,) = metadata["configs"]
    assert config["config_name"] == "default"
    assert {entry["split"]: entry["path"] for entry in config["data_files"]} == {
        part: f"parts/{part}.csv" for part in ("train", "validation", "test")
    }
    assert "{" not in card and "No image is in here" in card


def test_the_twins_of_kvasir_are_named(kvasir, tmp_path):
    from hub_unets.hub_repos.publish.dataset import benchmark_text, part_rows

    images, partition = make_partition(load_source(str(kvasir)), "official")
    twin = next(index for index in partition.test if partition.names[index] in partition.twins)
    (row,) = part_rows(images.select([twin]))
    others = set(partition.names_of("train")) | set(partition.names_of("validation"))
    assert row["twins"] and set(row["twins"].split()) & others
    record = {"name": "Kvasir-SEG", "split": "official", "sizes": {"test": 120}, "twins": partition.twins}
    tasks = yaml.safe_load(benchmark_text(record))["tasks"]
    assert [task["id"] for task in tasks] == ["official", "official-without-twins"]


def test_a_hub_that_knows_no_such_benchmark_gets_the_rest(hub, push_data):
    refusal = {"error": "eval.yaml: evaluation_framework must be one of ..."}
    hub.when("POST", f"/api/datasets/{REPO}/commit/main", lambda handler: handler.answer(refusal, 400))
    finished = push_data()
    assert finished.code == 0, finished.stderr
    assert "Left out: the Hub refuses eval.yaml (" in finished.stdout
    repository = hub.repositories[STORED]
    assert "eval.yaml" not in repository.main and "split.json" in repository.main and "v1" in repository.tags
    assert push_data().stdout.startswith("Nothing changed")


def test_a_model_names_the_split_and_its_commit(hub, pusher, push_data, checkpoint, tmp_path):
    assert push_data().code == 0
    commit = hub.repositories[STORED].branches["main"]
    finished = pusher.push(checkpoint, MODEL, "--dataset", f"{REPO}@v1", "--no-space", token=TOKEN)
    assert finished.code == 0, finished.stderr
    files = hub.repositories[MODEL].main
    (entry,) = parse_eval_result_entries(yaml.safe_load(files[".eval_results/test.yaml"]))
    assert (entry.dataset_id, entry.dataset_revision, entry.task_id) == (REPO, commit, "own")
    assert f"https://huggingface.co/datasets/{REPO}/tree/{commit}" in files["README.md"].decode()
    folder = tmp_path / "repository"
    for path, content in files.items():
        (folder / path).parent.mkdir(exist_ok=True, parents=True)
        (folder / path).write_bytes(content)
    checks = verify_folder(folder, run=False, repo_id=MODEL, revision="v1")
    assert [check for check in checks if not check.passed] == []
    repeated = pusher.push(checkpoint, MODEL, "--dataset", REPO, "--no-space", token=TOKEN)
    assert repeated.stdout.startswith("Nothing changed")


def test_another_split_and_a_data_set_that_is_not_there_are_refused(hub, pusher, push_data, checkpoint):
    assert push_data(data="phantoms?count=8&size=64&seed=0").code == 0
    for name, reason in (
        (REPO, f"--dataset {REPO}: its sha256 is "),
        ("someone/nothing", "the data set someone/nothing has no such thing, or your token may not see it"),
    ):
        finished = pusher.push(checkpoint, MODEL, "--dataset", name, "--no-space", token=TOKEN)
        assert finished.code == 1 and f"error: {reason}" in finished.stderr and MODEL not in hub.repositories


def test_a_dry_run_sends_nothing(hub, push_data):
    finished = push_data("--dry-run", token=None)
    assert finished.code == 0 and "parts/test.csv" in finished.stdout and not hub.repositories
    assert "not logged in" in push_data(token=None).stderr
    assert "split must be one of" in push_data(split="thirds").stderr
