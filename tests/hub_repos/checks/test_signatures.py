"""Signatures of files: made and checked by model-signing, and refused in words where a key is none."""

import base64
import json
import subprocess
import sys

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from hub_unets.hub_repos.checks import signatures
from hub_unets.hub_repos.checks.signatures import (
    fingerprint,
    is_keyless,
    is_signed,
    is_signed_by,
    public_key_of,
    sign_file,
    sign_manifest,
    trusted_keys,
)
from tests.hub_repos.keys import PEM, PLAIN, write_key


@pytest.fixture
def signed(tmp_path):
    """A folder with a manifest, its signature and public key; and the private key's file."""
    key = write_key(tmp_path, "ann")
    (tmp_path / "model").mkdir()
    (tmp_path / "model/manifest.json").write_text('{"files": {}}')
    sign_manifest(tmp_path / "model", str(key))
    return tmp_path / "model", key


def test_a_signature_is_of_one_content_and_one_key(signed, tmp_path):
    folder, key = signed
    content, signature, pem = ((folder / f"manifest.{kind}").read_bytes() for kind in ("json", "sig", "pub"))
    pem = pem.decode()
    assert pem == public_key_of(key) == (tmp_path / "keys/ann.pub").read_text()
    assert is_signed(content, signature, pem) and is_signed_by(folder, key) and not is_keyless(signature)
    assert not is_signed(content + b" ", signature, pem)
    other = write_key(tmp_path, "bob")
    assert not is_signed(content, signature, public_key_of(other)) and not is_signed_by(folder, other)
    assert not is_signed(content, b"{}", pem) and not is_signed(content, b"\xff", pem)


def test_a_signature_is_an_in_toto_statement_that_names_the_key(signed):
    folder, _ = signed
    bundle = json.loads((folder / "manifest.sig").read_text())
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://model_signing/signature/v1.0"
    hint = bundle["verificationMaterial"]["publicKey"]["hint"]
    assert hint == fingerprint((folder / "manifest.pub").read_text())


def test_the_stock_tool_agrees(signed):
    folder, _ = signed
    command = [sys.executable, "-m", "model_signing", "verify", "key", "manifest.json"]
    options = ["--signature", "manifest.sig", "--public_key", "manifest.pub"]
    assert subprocess.run([*command, *options], cwd=folder, capture_output=True).returncode == 0
    (folder / "manifest.json").write_text("{}")
    assert subprocess.run([*command, *options], cwd=folder, capture_output=True).returncode == 1


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP521R1()])
def test_longer_curves_sign_too(curve, tmp_path):
    key = write_key(tmp_path, "ann", curve)
    (tmp_path / "a").write_text("a")
    sign_file(tmp_path / "a", tmp_path / "a.sig", key)
    assert is_signed(b"a", (tmp_path / "a.sig").read_bytes(), public_key_of(key))


def private(key, encryption=PLAIN):
    return key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, encryption)


BAD_KEYS = {
    "rsa": lambda: private(rsa.generate_private_key(65537, 2048)),
    "another curve": lambda: private(ec.generate_private_key(ec.SECP256K1())),
    "a password": lambda: private(
        ec.generate_private_key(ec.SECP256R1()), serialization.BestAvailableEncryption(b"abc")
    ),
    "no key": lambda: b"hello",
    "no file": None,
}


@pytest.mark.parametrize("make", BAD_KEYS.values(), ids=BAD_KEYS)
def test_what_is_no_key_for_it_is_said(make, tmp_path):
    if make:
        (tmp_path / "key.pem").write_bytes(make())
    (tmp_path / "a").write_text("a")
    with pytest.raises(
        ValueError, match=r"key.pem is no private key on the curve P-256, .*: make one with `openssl ec"
    ):
        sign_file(tmp_path / "a", tmp_path / "a.sig", tmp_path / "key.pem")
    assert not (tmp_path / "a.sig").exists()


def test_trusted_keys_are_called_as_their_files(signed, tmp_path):
    folder, _ = signed
    assert trusted_keys(tmp_path / "keys") == {fingerprint((folder / "manifest.pub").read_text()): "ann"}
    (tmp_path / "keys/bad.pem").write_text("hello")
    with pytest.raises(ValueError, match=r"bad.pem is no public key in PEM"):
        trusted_keys(tmp_path / "keys")
    with pytest.raises(ValueError, match="holds no public key: --keys takes a folder of NAME.pub"):
        trusted_keys(tmp_path / "none")


def test_without_the_library_the_cure_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(ValueError, match=r"signatures need more packages \(.*\): pip install 'hub-unets\[sign\]'"):
        sign_file(tmp_path / "a", tmp_path / "a.sig", tmp_path / "key.pem")


def test_keyless_asks_sigstore(monkeypatch, tmp_path):
    """Its own servers are not reached here: that it is asked is all that is tested."""
    config = signatures.require_signing().signing.Config
    asked = []
    monkeypatch.setattr(config, "use_sigstore_signer", lambda self, **options: asked.append(options) or self)
    monkeypatch.setattr(
        config, "sign", lambda self, path, signature: signature.write_text('{"verificationMaterial": {}}')
    )
    (tmp_path / "manifest.json").write_text("{}")
    sign_manifest(tmp_path, "keyless")
    assert asked == [{"use_ambient_credentials": True}] and not (tmp_path / "manifest.pub").exists()
    assert is_signed_by(tmp_path, "keyless")

    def refuse(self, **options):
        raise OSError("no identity")

    monkeypatch.setattr(config, "use_sigstore_signer", refuse)
    with pytest.raises(ValueError, match=r"Sigstore did not sign \(OSError: no identity\): give a key's file"):
        sign_manifest(tmp_path, "keyless")
