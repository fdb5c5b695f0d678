"""Signatures of single files in the form of OpenSSF model-signing, by its own library and tool alike.

A signature is a Sigstore bundle. It is made with an elliptic key in a file, or without one by Sigstore, for who has
an identity that it knows. A key's fingerprint is the sha256 of its public PEM text, as model-signing has it.
"""

import contextlib
import hashlib
import io
import tempfile
from pathlib import Path

from hub_unets.hub_repos.checks.untrusted import parse_json, read_bytes
from hub_unets.hub_repos.repository.builder import MANIFEST
from hub_unets.training.errors import UserError

KEYLESS = "keyless"
SIGNATURE, PUBLIC_KEY = "manifest.sig", "manifest.pub"
SIGNED = (SIGNATURE, PUBLIC_KEY)
ATTESTATIONS = "attestations"  # the folder of what second parties say
KEY_FILES = (".pem", ".pub")
NEW_KEY = "openssl ecparam -name prime256v1 -genkey -noout -out key.pem"


def is_addition(name):
    """Whether a repository's file says something of its manifest: it is not listed there, and may come later."""
    return name in SIGNED or name.startswith(f"{ATTESTATIONS}/")


def require_signing():
    """The packages that sign and check signatures; model_signing's own module.

    Raises:
        UserError: they are not installed.
    """
    try:
        import model_signing
    except ImportError as error:
        raise UserError(f"signatures need more packages ({error}): pip install 'hub-unets[sign]'") from error
    return model_signing


def sign_file(path, signature, key):
    """Write the signature of a file.

    Args:
        path: the file.
        signature: the file to write.
        key: file of a private key (PEM, P-256, P-384 or P-521, no password); or "keyless".

    Raises:
        UserError: the key is none of these, or Sigstore gave no signature.
    """
    config = require_signing().signing.Config()
    if key == KEYLESS:
        try:
            config.use_sigstore_signer(use_ambient_credentials=True).sign(path, signature)
        except Exception as error:  # of many libraries: network, identity, clocks
            raise UserError(f"Sigstore did not sign ({type(error).__name__}: {error}): give a key's file") from error
        return
    with _about_key(key):
        config.use_elliptic_key_signer(private_key=key).sign(path, signature)


def public_key_of(key):
    """The public key of a private key's file, PEM text; None where it is keyless."""
    if key == KEYLESS:
        return None
    require_signing()
    from cryptography.hazmat.primitives import serialization

    with _about_key(key):
        public = serialization.load_pem_private_key(Path(key).read_bytes(), None).public_key()
    return _pem(public)


@contextlib.contextmanager
def _about_key(key):
    try:
        yield
    except (OSError, ValueError, TypeError, AttributeError) as error:  # the last two: a password, no elliptic curve
        kind = "no private key on the curve P-256, P-384 or P-521 without a password"
        raise UserError(f"{key} is {kind} ({error}): make one with `{NEW_KEY}`") from error


def _pem(public):
    from cryptography.hazmat.primitives import serialization

    encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    return public.public_bytes(encoding, form).decode("ascii")


def fingerprint(pem):
    """The fingerprint of a public key, PEM text. Raises ValueError where it is none."""
    require_signing()
    from cryptography.hazmat.primitives import serialization

    return hashlib.sha256(_pem(serialization.load_pem_public_key(pem.encode())).encode()).hexdigest()


def trusted_keys(folder):
    """{fingerprint: name} of the public keys in a folder, *.pub and *.pem; each is called as its file.

    Raises:
        UserError: there is none, or a file is no public key.
    """
    names = {}
    for path in sorted(path for path in Path(folder).glob("*") if path.suffix in KEY_FILES):
        try:
            names[fingerprint(path.read_text(encoding="ascii"))] = path.stem
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is no public key in PEM: leave it out of --keys") from error
    if not names:
        raise UserError(f"{folder} holds no public key: --keys takes a folder of NAME.pub")
    return names


def is_keyless(signature):
    """Whether a bundle, bytes, holds a certificate of Sigstore's instead of naming a key."""
    bundle = parse_json(signature.decode("utf-8", errors="replace"), "the signature")
    if not isinstance(bundle, dict) or not isinstance(bundle.get("verificationMaterial"), dict):
        raise UserError("the signature is no bundle of Sigstore's")
    return "publicKey" not in bundle["verificationMaterial"]


def is_signed(content, signature, pem):
    """Whether a signature is of this content, by this public key.

    Args:
        content: bytes of the signed file.
        signature: bytes of its bundle.
        pem: the public key's text.
    """
    library = require_signing()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        paths = [Path(folder) / name for name in ("content", "signature", "key")]
        for path, written in zip(paths, (content, signature, pem.encode()), strict=True):
            path.write_bytes(written)
        config = library.verifying.Config().set_hashing_config(library.hashing.Config())
        try:
            config.use_elliptic_key_verifier(public_key=paths[2]).verify(*paths[:2])
        except Exception:  # of any kind: it meets what nobody vouches for
            return False
    return True


def sign_manifest(folder, key):
    """Write the manifest's signature, and the public key where there is one."""
    sign_file(folder / MANIFEST, folder / SIGNATURE, key)
    pem = public_key_of(key)
    if pem is not None:
        (folder / PUBLIC_KEY).write_text(pem, encoding="ascii")


def is_signed_by(folder, key):
    """Whether a folder's manifest has a signature by a key that is ours."""
    if not (folder / SIGNATURE).exists():
        return False
    signature, pem = read_bytes(folder / SIGNATURE), public_key_of(key)
    if pem is None:
        return is_keyless(signature)
    return is_signed(read_bytes(folder / MANIFEST), signature, pem)
