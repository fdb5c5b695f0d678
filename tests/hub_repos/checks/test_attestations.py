"""What a statement is worth: by whom, about which manifest, and whether it says what the repository says."""

import json
import sys

import pytest

from hub_unets.hub_repos.checks import signatures
from hub_unets.hub_repos.checks.attestations import findings, make_statement, write_attestation
from hub_unets.hub_repos.checks.data import stored_digests
from hub_unets.hub_repos.checks.signatures import public_key_of, trusted_keys
from hub_unets.hub_repos.checks.static import check_files, check_manifest, copy_files
from hub_unets.training.records.results import read_per_image
from tests.hub_repos.keys import write_key

COMMIT = "c" * 40


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """A folder with bob.pem, whom the reader trusts, and eve.pem."""
    folder = tmp_path_factory.mktemp("keys")
    write_key(folder, "bob")
    write_key(folder, "eve", trusted=False)
    return folder


@pytest.fixture(scope="module")
def trusted(keys):
    return trusted_keys(keys / "keys")


def statement_of(folder, key):
    """What `verify --data` finds: the figures and data of the repository itself."""
    parts, _ = read_per_image(folder / "per_image.csv")
    for part, pairs in stored_digests(folder).items():
        parts[part].digests = [pairs[name] for name in parts[part].names]
    return make_statement(folder, parts, ["files", "manifest"], "someone/unet", COMMIT, public_key_of(key))


def attest(folder, key, change=lambda statement: None, resign=True):
    """Write an attestation, its statement changed before it is signed, or after."""
    statement = statement_of(folder, key)
    if resign:
        change(statement)
    path = write_attestation(statement, key, folder / "attestations")
    if not resign:
        change(statement)
        path.write_text(json.dumps(statement))
    return path


def perfect(statement):
    statement["predicate"]["figures"]["test"]["dice"] = 0.99


def of_another_manifest(statement):
    statement["subject"][0]["digest"]["sha256"] = "f" * 64


def verdicts(folder, trusted, has_manifest=None):
    return [(found.verdict, found.text) for found in findings(folder, folder, trusted, has_manifest)]


def test_a_trusted_keys_statement_is_listed_with_what_it_found(copy, keys, trusted):
    path = attest(copy, keys / "bob.pem")
    ((verdict, text),) = verdicts(copy, trusted)
    dice = json.loads((copy / "results.json").read_text())["metrics"]["test"]["per_image"]["dice"]["value"]
    assert verdict == "attested" and text.startswith(f"by bob (key {path.stem.split('-')[0]}), 2")
    assert f"at commit {COMMIT}: validation Dice" in text and f"test Dice {dice:.4f}; the same files; cpu" in text
    predicate = json.loads(path.read_text())["predicate"]
    assert predicate["verifier"].keys() == {"version", "code_sha256"} and predicate["environment"]["torch"]
    assert sorted(path.name for path in path.parent.iterdir()) == [path.name, path.with_suffix(".sig").name]


def test_the_repository_itself_is_judged_without_them(copy, keys, tmp_path):
    attest(copy, keys / "bob.pem")
    signatures.sign_manifest(copy, keys / "bob.pem")
    copy_files(copy, tmp_path / "judged")
    assert not (tmp_path / "judged/attestations").exists()
    check_files(tmp_path / "judged")
    check_manifest(tmp_path / "judged")


@pytest.mark.parametrize("given", [True, False])
def test_a_key_that_is_not_trusted_is_unknown(given, copy, keys, trusted):
    attest(copy, keys / "eve.pem")
    ((verdict, text),) = verdicts(copy, trusted if given else None)
    assert verdict == "unknown key" and "anyone can make one" in text
    assert ("not among --keys" if given else "no --keys were given") in text


def test_a_statement_of_another_manifest_says_nothing(copy, keys, trusted):
    attest(copy, keys / "bob.pem", of_another_manifest)
    ((verdict, text),) = verdicts(copy, trusted)
    assert verdict == "other commit" and f"at commit {COMMIT}: of another manifest" in text


def other_key(statement):
    statement["predicate"]["public_key"] = public_key_of(other_key.path)


def other_split(statement):
    statement["predicate"]["data"]["split_sha256"] = "f" * 64


FORGED = {
    "figures changed after it was signed": (perfect, False, "its signature is not of this statement by its own key"),
    "another's key": (other_key, False, "its signature is not of this statement by its own key"),
    "figures that the repository has not": (perfect, True, "it found test dice 0.99, results.json says 0."),
    "another split": (other_split, True, "it is of another split of the data"),
    "a part less": (lambda told: told["predicate"]["figures"].pop("test"), True, "it has figures of validation"),
    "more than a statement": (lambda told: told.update(more=1), True, "the statement: Additional properties"),
    "no number": (
        lambda told: told["predicate"]["figures"]["test"].update(dice=float("nan")),
        True,
        "NaN is no number",
    ),
}


@pytest.mark.parametrize(("change", "resign", "message"), FORGED.values(), ids=FORGED)
def test_a_forged_statement_is_named(change, resign, message, copy, keys, trusted):
    other_key.path = keys / "bob.pem"
    path = attest(copy, keys / ("eve.pem" if change is other_key else "bob.pem"), change, resign)
    ((verdict, text),) = verdicts(copy, trusted)
    assert verdict == "FORGED" and text.startswith(f"attestations/{path.stem}: ") and message in text


@pytest.mark.parametrize(("told", "verdict"), [(True, "attested"), (None, "attested"), (False, "FORGED")])
def test_the_commit_must_have_the_manifest(told, verdict, copy, keys, trusted):
    attest(copy, keys / "bob.pem")
    asked = []
    ((found, text),) = verdicts(copy, trusted, lambda commit: asked.append(commit) or told)
    assert (found, asked) == (verdict, [COMMIT])
    assert (f"it names commit {COMMIT}, which has not this manifest" in text) == (verdict == "FORGED")


def break_pair(path):
    path.with_suffix(".sig").unlink()


BROKEN = {
    "no signature": (break_pair, "a statement without a signature"),
    "no statement": (lambda path: path.unlink(), "a signature without a statement"),
    "no JSON": (lambda path: path.write_text("hello"), "the statement is not JSON"),
    "no signature's form": (
        lambda path: path.with_suffix(".sig").write_text("[]"),
        "the signature is no bundle of Sigstore's",
    ),
    "another name": (
        lambda path: [file.rename(file.with_name("0" * 16 + file.name[16:])) for file in path.parent.glob("*")],
        "its name is not that of its key and manifest",
    ),
    "a foreign file": (lambda path: (path.parent / "run.py").touch(), "attestations/run.py is no attestation's file"),
    "too large": (lambda path: path.write_text("x" * 70_000), "is larger than 65536 bytes"),
    "a link": (lambda path: (path.unlink(), path.symlink_to("/etc/passwd")), "is a symbolic link"),
    "too many": (
        lambda path: [(path.parent / f"{number:016x}-{'0' * 16}.json").touch() for number in range(200)],
        "attestations holds more than 200 files",
    ),
}


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN)
def test_what_is_broken_is_named_and_breaks_nothing(change, message, copy, keys, trusted):
    change(attest(copy, keys / "bob.pem"))
    ((verdict, text),) = verdicts(copy, trusted)
    assert verdict == "FORGED" and message in text


def test_other_pixels_than_published_are_said(copy, keys, trusted):
    def re_encoded(statement):
        statement["predicate"]["data"]["parts"]["test"]["files_sha256"] = "f" * 64

    def changed(statement):
        re_encoded(statement)
        statement["predicate"]["data"]["parts"]["test"]["pixels_sha256"] = "f" * 64

    for change, said in ((re_encoded, "; the same pixels; "), (changed, "; neither files nor pixels all the same; ")):
        attest(copy, keys / "bob.pem", change)
        ((_, text),) = verdicts(copy, trusted)
        assert said in text


def test_the_manifests_signature_is_judged_first(copy, keys, trusted):
    signatures.sign_manifest(copy, keys / "bob.pem")
    attest(copy, keys / "eve.pem")
    (verdict, text), (second, _) = verdicts(copy, trusted)
    assert (verdict, second) == ("signed", "unknown key") and text.startswith("manifest.json by bob (key ")
    assert verdicts(copy, None)[0][0] == "unknown key"
    (copy / "manifest.pub").write_text(public_key_of(keys / "eve.pem"))
    assert verdicts(copy, trusted)[0] == (
        "FORGED",
        "manifest.sig: it is no signature of manifest.json by the key in manifest.pub",
    )
    (copy / "manifest.pub").unlink()
    assert verdicts(copy, trusted)[0] == ("FORGED", "manifest.sig: manifest.pub is missing")


def test_sigstores_signatures_and_a_missing_library_are_not_judged(copy, keys, trusted, monkeypatch):
    path = attest(copy, keys / "bob.pem")
    path.with_suffix(".sig").write_text('{"verificationMaterial": {"certificate": {}}}')
    ((verdict, text),) = verdicts(copy, trusted)
    assert verdict == "not checked" and f"`model_signing verify sigstore attestations/{path.name} --signature" in text
    monkeypatch.setitem(sys.modules, "model_signing", None)
    ((verdict, text),) = verdicts(copy, trusted)
    assert verdict == "not checked" and "pip install 'hub-unets[sign]'" in text


def test_a_repository_without_any_has_none_to_list(repository, trusted):
    assert verdicts(repository, trusted) == []
