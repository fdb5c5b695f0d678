"""What second parties say of a repository: statements under attestations/, each with its signature.

A statement is an in-toto Statement about one manifest.json, which lists every other file of a repository. A commit
that only adds statements leaves the manifest as it is, so those that are there hold for it too. Nothing here is
trusted: a statement counts as far as its signature, its manifest, its commit and its figures bear it out, and as far
as its reader trusts the key.
"""

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch

from hub_unets.hub_repos.checks import signatures
from hub_unets.hub_repos.checks.check import printable
from hub_unets.hub_repos.checks.data import stored_digests
from hub_unets.hub_repos.checks.reproduce import IMAGE_TOLERANCE, MEAN_TOLERANCE
from hub_unets.hub_repos.checks.signatures import ATTESTATIONS
from hub_unets.hub_repos.checks.static import (
    ATTESTATION,
    ATTESTATION_BYTES,
    MOST_ATTESTATIONS,
    check_schema,
)
from hub_unets.hub_repos.checks.untrusted import open_file, parse_json, read_bytes, read_json
from hub_unets.hub_repos.repository.builder import MANIFEST, sha256
from hub_unets.hub_repos.repository.code import release
from hub_unets.training.errors import UserError
from hub_unets.training.records.data_digests import digest_of_all
from hub_unets.training.records.locks import code_sha256
from hub_unets.training.records.results import environment_record

SCHEMA = json.loads(Path(__file__).with_name("attestation.schema.json").read_text(encoding="utf-8"))
LETTERS = 16  # of a digest in a file's name, and where one is shown
FILES, PIXELS = ("image", "mask"), ("image_pixels", "mask_pixels")
PER_IMAGE = ("dice", "iou", "precision", "recall", "accuracy")
FORGED = "FORGED"


class Finding(NamedTuple):
    """One signature or statement, and what it is worth."""

    verdict: str
    text: str

    def __str__(self):
        return printable(f"{self.verdict:<13}{self.text}")


def make_statement(folder, scored, checks, repo_id, commit, public_key):
    """The statement of a repository that passed every check.

    Args:
        folder: the copy that was judged.
        scored: {part: Scores}, as they were found.
        checks: names of the checks that passed.
        repo_id, commit: where it is on the Hub; None for a folder.
        public_key: PEM text; None where it is keyless.
    """
    data = read_json(folder / "results.json")["data"]
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": MANIFEST, "digest": {"sha256": sha256(folder / MANIFEST)}}],
        "predicateType": "urn:hub-unets:reproduction:1",
        "predicate": {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "repository": repo_id,
            "commit": commit,
            "verifier": {"version": release(), "code_sha256": code_sha256()},
            "checks": checks,
            "data": {
                "source": data["source"],
                "split": data["split"],
                "split_sha256": data["sha256"],
                "parts": {part: _data_of(scores) for part, scores in scored.items()},
            },
            "figures": {part: _figures(scores.summary()) for part, scores in scored.items()},
            "environment": environment_record(SimpleNamespace(device=torch.device("cpu"))),
            "public_key": public_key,
        },
    }


def _data_of(scores):
    pairs = dict(zip(scores.names, scores.digests, strict=True))
    return {
        "images": len(pairs),
        "files_sha256": digest_of_all(pairs, FILES),
        "pixels_sha256": digest_of_all(pairs, PIXELS),
    }


def _figures(metrics):
    """The compared figures of a part of results.json."""
    values = {name: metrics["per_image"][name]["value"] for name in PER_IMAGE}
    values |= {"pooled_dice": metrics["pooled"]["dice"]["value"], "loss": metrics["loss"]["value"]}
    return {name: round(value, 6) for name, value in values.items()}


def write_attestation(statement, key, folder):
    """Sign a statement and write both files into a folder; returns the statement's path.

    Its name is the beginning of the key's fingerprint, keyless of the signature's sha256, and of the manifest's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    unnamed, signature = folder / ".statement.json", folder / ".statement.sig"
    try:
        unnamed.write_text(json.dumps(statement, indent=2) + "\n", encoding="utf-8")
        signatures.sign_file(unnamed, signature, key)
        pem, (subject,) = statement["predicate"]["public_key"], statement["subject"]
        signer = signatures.fingerprint(pem) if pem else sha256(signature)
        path = folder / f"{signer[:LETTERS]}-{subject['digest']['sha256'][:LETTERS]}.json"
        signature.replace(path.with_suffix(".sig"))
        return unnamed.replace(path)
    finally:
        for left in (unnamed, signature):
            left.unlink(missing_ok=True)


def read_attestations(folder):
    """{name without suffix: (statement, signature)}, bytes, None for a file that is missing, of a repository's folder.

    Raises:
        UserError: a file that is none of these, no plain file, or too many.
    """
    place, pairs = Path(folder) / ATTESTATIONS, {}
    if place.is_symlink():
        raise UserError(f"{ATTESTATIONS} is a symbolic link: a repository holds plain files only")
    names = sorted(path.name for path in place.iterdir()) if place.is_dir() else []
    if len(names) > MOST_ATTESTATIONS:
        raise UserError(f"{ATTESTATIONS} holds more than {MOST_ATTESTATIONS} files")
    for name in names:
        if not ATTESTATION.fullmatch(f"{ATTESTATIONS}/{name}"):
            raise UserError(f"{ATTESTATIONS}/{name[:80]} is no attestation's file")
        with open_file(place / name) as file:
            content = file.read(ATTESTATION_BYTES + 1)
        if len(content) > ATTESTATION_BYTES:
            raise UserError(f"{ATTESTATIONS}/{name} is larger than {ATTESTATION_BYTES} bytes")
        stem, _, kind = name.partition(".")
        pairs.setdefault(stem, {})[kind] = content
    return {stem: (pair.get("json"), pair.get("sig")) for stem, pair in pairs.items()}


def findings(folder, origin, names, has_manifest=None):
    """What the manifest's signature and each attestation of a repository are worth.

    Args:
        folder: a copy that passed every check.
        origin: the folder that it is a copy of, with the attestations.
        names: {fingerprint: name} of the keys that the reader trusts; None where none were given.
        has_manifest: a function that tells whether a commit on the Hub has this manifest, None where it can't tell;
            None for a folder.

    Returns:
        list of Finding.
    """
    try:
        attestations = read_attestations(origin)
    except UserError as error:
        return [Finding(FORGED, str(error))]
    signed = [signatures.SIGNATURE] if (folder / signatures.SIGNATURE).exists() else []
    if not signed and not attestations:
        return []
    try:
        signatures.require_signing()
    except UserError as error:
        return [Finding("not checked", f"{name}: {error}") for name in [*signed, *attestations]]
    judged = [_judged(signatures.SIGNATURE, _judge_manifest, folder, names) for _ in signed]
    for name, pair in attestations.items():
        judged.append(_judged(f"{ATTESTATIONS}/{name}", _judge, name, pair, folder, names, has_manifest))
    return judged


def _judged(name, judge, *arguments):
    try:
        return judge(*arguments)
    except Exception as error:  # of any kind: it is what nobody vouches for
        return Finding(FORGED, f"{name}: {' '.join(str(error).split())[:500]}")


def _judge_manifest(folder, names):
    signature = read_bytes(folder / signatures.SIGNATURE)
    if signatures.is_keyless(signature):
        return _keyless(signatures.SIGNATURE, MANIFEST)
    pem = _require_key(read_bytes(folder / signatures.PUBLIC_KEY).decode("ascii"))
    if not signatures.is_signed(read_bytes(folder / MANIFEST), signature, pem):
        raise UserError(f"it is no signature of {MANIFEST} by the key in {signatures.PUBLIC_KEY}")
    known, signer = _signer(pem, names)
    return Finding("signed" if known else "unknown key", f"{MANIFEST} {signer}")


def _judge(name, pair, folder, names, has_manifest):
    """The Finding of one statement; raises what it claims and what is not so."""
    statement, signature = pair
    if statement is None or signature is None:
        raise UserError("a statement without a signature" if signature is None else "a signature without a statement")
    if signatures.is_keyless(signature):
        return _keyless(f"{ATTESTATIONS}/{name}.sig", f"{ATTESTATIONS}/{name}.json")
    claim, manifest = _claim_of(statement)
    pem = _require_key(claim["public_key"])
    if not signatures.is_signed(statement, signature, pem):
        raise UserError("its signature is not of this statement by its own key: one of them was changed")
    if name != f"{signatures.fingerprint(pem)[:LETTERS]}-{manifest[:LETTERS]}":
        raise UserError("its name is not that of its key and manifest")
    known, signer = _signer(pem, names)
    at = f", {claim['time']}" + (f", at commit {claim['commit']}" if claim["commit"] else ", of a folder")
    if manifest != sha256(folder / MANIFEST):
        return Finding("other commit", f"{signer}{at}: of another manifest; it says nothing of this one")
    if has_manifest and claim["commit"] and has_manifest(claim["commit"]) is False:
        raise UserError(f"{signer}: it names commit {claim['commit']}, which has not this manifest")
    agreement = _require_agreement(claim, folder)
    return Finding("attested" if known else "unknown key", f"{signer}{at}: {agreement}")


def _claim_of(statement):
    """The predicate and the manifest's digest of a statement, bytes, whose form is ours."""
    content = parse_json(statement.decode("utf-8"), "the statement")
    check_schema(content, SCHEMA, "the statement")
    return content["predicate"], content["subject"][0]["digest"]["sha256"]


def _require_key(pem):
    try:
        signatures.fingerprint(pem or "")
    except ValueError as error:
        raise UserError("it names no public key in PEM") from error
    return pem


def _signer(pem, names):
    """Whether the reader trusts a key, and who it is."""
    digest = signatures.fingerprint(pem)
    if names and digest in names:
        return True, f"by {names[digest]} (key {digest[:LETTERS]})"
    why = "which is not among --keys" if names else "no --keys were given"
    return False, f"by key {digest[:LETTERS]} ({why}; anyone can make one)"


def _keyless(signature, path):
    command = f"model_signing verify sigstore {path} --signature {signature}"
    return Finding("not checked", f"{signature}: signed by Sigstore for an identity; check it with `{command}`")


def _require_agreement(claim, folder):
    """What a statement found, in words, where it is what results.json says."""
    results = read_json(folder / "results.json")
    if claim["data"]["split_sha256"] != results["data"]["sha256"]:
        raise UserError("it is of another split of the data")
    if claim["figures"].keys() != results["metrics"].keys() - {"test_without_twins"}:
        raise UserError(f"it has figures of {', '.join(claim['figures'])}")
    for part, figures in claim["figures"].items():
        for name, value in _figures(results["metrics"][part]).items():
            if not abs(figures[name] - value) <= (IMAGE_TOLERANCE if name == "loss" else MEAN_TOLERANCE):
                raise UserError(f"it found {part} {name} {figures[name]}, results.json says {value}")
    dice = ", ".join(f"{part} Dice {figures['dice']:.4f}" for part, figures in claim["figures"].items())
    return f"{dice}; {_agreement_of_data(claim, folder)}; {claim['environment']['device']}"


def _agreement_of_data(claim, folder):
    stored, parts = stored_digests(folder), claim["data"]["parts"]
    if not stored:
        return "no digests to compare its data with"
    for fields, key, text in ((FILES, "files_sha256", "the same files"), (PIXELS, "pixels_sha256", "the same pixels")):
        if all(parts.get(part, {}).get(key) == digest_of_all(pairs, fields) for part, pairs in stored.items()):
            return text
    return "neither files nor pixels all the same"
