"""A sweep is a repository for each trial, and a collection."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.hub_repos.push.names import REPO, TOKEN
from tests.training import runs

PARTS = ("data of validation", "figures of validation", "data of test", "figures of test")


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
