"""The key pair behind a peer id, its file, and signatures that anybody can check against that id.

A libp2p peer id is the digest of a public key, so a signature that carries its public key needs no directory:
hash the key, compare with the id. The file has libp2p's own format (a protobuf `PrivateKey`), because the
transport's daemon reads the same file to prove the id in its handshake.
Format: https://github.com/libp2p/specs/blob/master/peer-ids/peer-ids.md
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import base58
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from node.core.errors import ConfigError, OutOfDisk
from node.core.files import room_text, write_whole
from node.core.text import brief
from node.core.types import PeerId

_KEY_BITS = 2048
_MAX_KEY_FILE_BYTES = 16_384
_MAX_PUBLIC_KEY_BYTES = 1_024
_PADDING = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=padding.PSS.DIGEST_LENGTH)


@dataclass(frozen=True, slots=True)
class SignedBytes:
    """A body with a signature and the public key that checks it."""

    body: bytes
    public_key: bytes
    signature: bytes


class Identity:
    """This node's key pair; made once, kept in a file that only its owner can read."""

    def __init__(self, key: rsa.RSAPrivateKey, path: Path) -> None:
        self._key = key
        self.path = path
        self.public_key = key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        self.peer_id = peer_id_of(self.public_key)

    @classmethod
    def load_or_create(cls, path: Path) -> Identity:
        """Read the key at `path`, or make one there (mode 0600, its folder is made too).

        Raises:
            ConfigError: the file is there and is not such a key.
            OutOfDisk: it cannot be written.
        """
        if not path.exists():
            key = rsa.generate_private_key(public_exponent=65537, key_size=_KEY_BITS)
            der = key.private_bytes(
                serialization.Encoding.DER, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
            )
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(path, _wrap(der), mode=0o600)
            except OSError as error:
                raise OutOfDisk(
                    f"Cannot write {path}: {error.strerror}. {room_text(path.parent, len(der))}",
                    hint="Make room on the disk, or choose another --home.",
                ) from error
        data = path.read_bytes()[: _MAX_KEY_FILE_BYTES + 1]
        try:
            loaded = serialization.load_der_private_key(_unwrap(data), password=None)
        except (ValueError, IndexError, UnsupportedAlgorithm) as error:
            raise ConfigError(
                f"{path} is not an identity of Potluck: {brief(error)}.",
                hint="Restore it from a backup, or move it away to get a new peer id.",
            ) from error
        if not isinstance(loaded, rsa.RSAPrivateKey):
            raise ConfigError(f"{path} holds a key that is not RSA.", hint="Move it away to get a new peer id.")
        return cls(loaded, path)

    def sign(self, context: str, body: bytes) -> SignedBytes:
        """Sign `body` for one purpose; a signature made for another `context` does not pass for this one."""
        signature = self._key.sign(_message(context, body), _PADDING, hashes.SHA256())
        return SignedBytes(body, self.public_key, signature)


def verify(context: str, signed: SignedBytes) -> PeerId | None:
    """Return the peer id that signed `signed` for `context`, or None if the signature does not hold."""
    if len(signed.public_key) > _MAX_PUBLIC_KEY_BYTES or len(signed.signature) > _MAX_PUBLIC_KEY_BYTES:
        return None
    try:
        key = serialization.load_der_public_key(signed.public_key)
        if not isinstance(key, rsa.RSAPublicKey):
            return None
        key.verify(signed.signature, _message(context, signed.body), _PADDING, hashes.SHA256())
    except (ValueError, InvalidSignature, UnsupportedAlgorithm):
        return None
    return peer_id_of(signed.public_key)


def peer_id_of(public_key: bytes) -> PeerId:
    """Return the libp2p peer id of an RSA public key (DER, SubjectPublicKeyInfo)."""
    digest = hashlib.sha256(_wrap(public_key)).digest()
    return PeerId(base58.b58encode(b"\x12\x20" + digest).decode())  # multihash: sha2-256, 32 bytes


def short(peer_id: str) -> str:
    """Return the last eight characters, for people; RSA peer ids all begin alike."""
    return peer_id[-8:]


def _message(context: str, body: bytes) -> bytes:
    return b"potluck/" + context.encode() + b"\x00" + body


def _wrap(der: bytes) -> bytes:
    """Encode libp2p's key message: field 1 `Type` = RSA (0), field 2 `Data`."""
    return b"\x08\x00\x12" + _varint(len(der)) + der


def _unwrap(data: bytes) -> bytes:
    if len(data) > _MAX_KEY_FILE_BYTES or data[:3] != b"\x08\x00\x12":
        raise ValueError("it does not begin like a libp2p RSA key")
    length, shift, at = 0, 0, 3
    while True:
        byte = data[at]
        length |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            break
    if len(data) != at + length:
        raise ValueError(f"it has {len(data) - at} bytes of key, {length} were announced")
    return data[at:]


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
