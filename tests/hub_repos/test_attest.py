"""Publish and sign, verify and attest, list and trust: three users and a forger over a Hub on this machine."""

import json
import re
import shutil

import pytest
from safetensors.torch import load_file, save_file

from hub_unets.hub_repos.checks.attestations import write_attestation
from hub_unets.hub_repos.checks.signatures import fingerprint, public_key_of
from tests.hub_repos.conftest import DATA
from tests.hub_repos.keys import write_key
from tests.hub_repos.loopback_hub import LoopbackHub
from tests.hub_repos.loopback_repository import Blob
from tests.hub_repos.pushes import Pusher

OWNER, SECOND = "hf_" + "w" * 34, "hf_" + "r" * 34
REPO = "someone/unet"

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def hub():
    hub = LoopbackHub([OWNER], [SECOND])
    yield hub
    hub.close()


@pytest.fixture(scope="module")
def commands(hub, tmp_path_factory):
    pusher = Pusher(hub.url, tmp_path_factory.mktemp("commands"))
    yield pusher
    pusher.close()


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """A folder with the private keys of publisher, bob and eve, and the public ones of the first two in keys/."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("publisher", "bob", "eve"):
        write_key(folder, name, trusted=name != "eve")
    return folder


@pytest.fixture(scope="module")
def attested(hub, commands, keys, checkpoint, tmp_path_factory):
    """Published and signed by one, attested by another, whose pull request is merged: (folder, outputs)."""
    folder = tmp_path_factory.mktemp("second")
    push = commands.push(checkpoint, REPO, "--no-space", "--sign", keys / "publisher.pem", token=OWNER)
    assert push.code == 0, push.stderr
    options = ("--data", DATA, "--attest", keys / "bob.pem", "--submit")
    verify = commands.verify(REPO, *options, token=SECOND, folder=folder)
    assert verify.code == 0, verify.stdout + verify.stderr
    hub.repositories[REPO].merge(1)
    return folder, push.stdout, verify.stdout


@pytest.fixture
def repository(attested, hub):
    """The repository as it is after that; what a test does to it is undone."""
    before = hub.repositories[REPO]
    branches, tags = dict(before.branches), dict(before.tags)
    yield before
    before.branches, before.tags = branches, tags


def listed(commands, keys, *options, trusted=True):
    """Exit code and the lines of the list that a third user sees."""
    finished = commands.verify(REPO, *options, *(["--keys", keys / "keys"] if trusted else []))
    _, _, lines = finished.stdout.partition("Signatures:\n")
    assert "FAIL" not in finished.stdout, finished.stdout
    return (
        finished.code,
        [re.split(r"\s{2,}| (?=by |manifest)", line)[0].strip() for line in lines.splitlines()],
        lines,
    )


def test_the_owner_signs_the_manifest(attested, hub, keys):
    _, push, _ = attested
    first = hub.repositories[REPO].tags["v1"]
    assert {"manifest.sig", "manifest.pub"} <= hub.repositories[REPO].at(first).keys()
    assert hub.repositories[REPO].at(first)["manifest.pub"].decode() == public_key_of(keys / "publisher.pem")
    assert re.search(r"new +manifest.sig", push)


def test_the_second_user_offers_two_files(attested, hub, keys):
    folder, _, verify = attested
    repository = hub.repositories[REPO]
    head, first = repository.branches["main"], repository.tags["v1"]
    added = repository.commits[head].keys() - repository.commits[first].keys()
    assert repository.pull_status == {1: "merged"} and f"Pull request: {hub.url}/{REPO}/discussions/1" in verify
    (statement,) = (name for name in added if name.endswith(".json"))
    assert added == {statement, statement.replace(".json", ".sig")}
    content = repository.main[statement]
    assert (folder / statement).read_bytes() == content
    predicate = json.loads(content)["predicate"]
    assert (predicate["commit"], predicate["repository"]) == (first, REPO) and head != first
    assert statement.startswith(f"attestations/{fingerprint(public_key_of(keys / 'bob.pem'))[:16]}-")
    assert {"figures of test", "data of test", "manifest", "lock"} <= set(predicate["checks"])
    assert not any(path.name.startswith(".") for path in (folder / "attestations").iterdir())


def test_a_third_user_sees_both_at_the_later_commit(repository, commands, keys):
    code, verdicts, lines = listed(commands, keys)
    assert code == 0 and verdicts[:2] == ["signed", "attested"], lines
    assert "manifest.json by publisher (key " in lines and "by bob (key " in lines
    assert f"at commit {repository.tags['v1']}: validation Dice" in lines and "the same files" in lines
    code, verdicts, lines = listed(commands, keys, trusted=False)
    assert code == 0 and verdicts[:2] == ["unknown key", "unknown key"] and lines.count("no --keys were given") == 2


def test_a_push_after_the_merge_changes_nothing(repository, commands, keys, checkpoint):
    head = repository.branches["main"]
    for options in ((), ("--sign", keys / "publisher.pem")):
        finished = commands.push(checkpoint, REPO, "--no-space", *options, token=OWNER)
        assert finished.stdout.startswith(f"Nothing changed: {REPO}, commit {head}, tag v1"), finished.stderr
    assert repository.branches["main"] == head and repository.tags.keys() == {"v1"}


def test_another_key_signs_again_without_a_new_tag(repository, commands, keys, checkpoint):
    finished = commands.push(checkpoint, REPO, "--no-space", "--sign", keys / "bob.pem", token=OWNER)
    assert finished.code == 0, finished.stderr
    assert repository.tags.keys() == {"v1"} and repository.main["manifest.pub"].decode() == public_key_of(
        keys / "bob.pem"
    )
    code, verdicts, lines = listed(commands, keys)
    assert code == 0 and verdicts[:2] == ["signed", "attested"] and "manifest.json by bob" in lines


@pytest.fixture
def other_checkpoint(checkpoint, tmp_path):
    """The run with other weights."""
    folder = shutil.copytree(checkpoint, tmp_path / "other")
    weights = load_file(folder / "model.safetensors")
    weights["head.classifier.bias"] += 1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_of_another_commit_is_named_and_the_old_signature_goes(repository, commands, keys, other_checkpoint):
    finished = commands.push(other_checkpoint, REPO, "--no-space", token=OWNER)
    assert finished.code == 0 and re.search(r"deleted +manifest.sig", finished.stdout), finished.stderr
    code, verdicts, lines = listed(commands, keys)
    assert code == 0 and verdicts[:1] == ["other commit"] and len(lines.splitlines()) == 2, lines
    assert "of another manifest; it says nothing of this one" in lines


def add(repository, path):
    """The owner merges an attestation's two files."""
    names = {f"attestations/{file.name}": Blob(file.read_bytes()) for file in (path, path.with_suffix(".sig"))}
    head = repository.branches["main"]
    repository.commit("main", repository.commits[head] | names, head)


def statement_of(repository):
    (content,) = (text for name, text in repository.main.items() if re.fullmatch("attestations/.*json", name))
    return json.loads(content)


def test_a_forged_one_and_one_by_an_unknown_key_are_named(repository, commands, keys, tmp_path):
    statement = statement_of(repository)
    statement["predicate"]["public_key"] = public_key_of(keys / "eve.pem")
    add(repository, write_attestation(statement, keys / "eve.pem", tmp_path))
    code, verdicts, lines = listed(commands, keys)
    assert code == 0 and sorted(verdicts[:3]) == ["attested", "signed", "unknown key"]
    assert "which is not among --keys; anyone can make one" in lines
    statement["predicate"]["public_key"] = public_key_of(keys / "bob.pem")  # in bob's name, by eve's key
    add(repository, write_attestation(statement, keys / "eve.pem", tmp_path))
    code, verdicts, lines = listed(commands, keys)
    assert code == 1 and "FORGED" in verdicts and "its signature is not of this statement by its own key" in lines
    assert lines.splitlines()[-1] == "1 of 3 signatures are forged."


def test_one_that_names_a_commit_with_another_manifest_is_forged(repository, commands, keys, tmp_path):
    statement = statement_of(repository)
    statement["predicate"]["commit"] = repository.history()[-1]
    add(repository, write_attestation(statement, keys / "bob.pem", tmp_path))
    code, _, lines = listed(commands, keys)
    assert code == 1 and f"it names commit {repository.history()[-1]}, which has not this manifest" in lines


def test_a_failed_check_attests_nothing(repository, commands, keys, tmp_path):
    data = "phantoms?count=6&size=64&seed=1"
    finished = commands.verify(REPO, "--data", data, "--attest", keys / "bob.pem", folder=tmp_path)
    assert finished.code == 1 and "FAIL split" in finished.stdout and "Attested" not in finished.stdout
    assert not (tmp_path / "attestations").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--attest", "bob.pem"), "--attest needs --data"),
        (("--submit", "--data", DATA), "--submit needs --attest KEY"),
        (("--attest", "bob.pem", "--data", DATA, "--submit"), "--submit needs a login"),
        (("--attest", "none.pem", "--data", DATA), "none.pem is no private key"),
    ],
)
def test_what_cannot_be_meant_is_said_before_anything_is_scored(options, message, commands, keys):
    finished = commands.verify(REPO, *options, folder=keys)
    assert finished.code == 1 and message in finished.stderr and finished.stdout == ""


def test_a_folder_keeps_its_attestation(attested, commands, keys, hub, tmp_path):
    """Built by hand from the commit: what a user downloads."""
    folder = tmp_path / "model"
    for name, content in hub.repositories[REPO].at("v1").items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    options = ("--repo_id", REPO, "--revision", "v1", "--keys", keys / "keys")
    finished = commands.verify(folder, *options, "--data", DATA, "--attest", keys / "bob.pem")
    assert finished.code == 0, finished.stdout
    (path,) = (folder / "attestations").glob("*.json")
    assert json.loads(path.read_text())["predicate"]["commit"] is None
    finished = commands.verify(folder, *options)
    assert finished.code == 0 and re.search(
        r"^attested +by bob \(key \w+\), \S+, of a folder: ", finished.stdout, re.M
    )
