"""Private keys for the tests, and their public halves."""

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

PEM, PLAIN = serialization.Encoding.PEM, serialization.NoEncryption()


def write_key(folder, name, curve=None, trusted=True):
    """A new private key as folder/NAME.pem, and if it is trusted its public key as folder/keys/NAME.pub."""
    key = ec.generate_private_key(curve or ec.SECP256R1())
    path = folder / f"{name}.pem"
    path.write_bytes(key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, PLAIN))
    if trusted:
        (folder / "keys").mkdir(exist_ok=True)
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        (folder / "keys" / f"{name}.pub").write_bytes(key.public_key().public_bytes(PEM, form))
    return path
