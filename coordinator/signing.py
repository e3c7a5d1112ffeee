"""Requests signed by the key behind a peer id, so that nobody can speak for another.

The scheme is the nodes' own (RSA-PSS with SHA-256 over "potluck/", a context, a zero byte and the body), written here
again because the coordinator does without the nodes' packages. A peer id is the digest of the public key.
Format: https://github.com/libp2p/specs/blob/master/peer-ids/peer-ids.md
"""

from __future__ import annotations

import hashlib
import re
from typing import Protocol

import base58
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from coordinator.v1 import coordinator_pb2 as pb

_MAX_KEY_BYTES = 1_024
_MIN_BITS, _MAX_BITS = 2048, 4096
_PEER_ID = re.compile("Qm[1-9A-HJ-NP-Za-km-z]{44}")
_PADDING = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=padding.PSS.DIGEST_LENGTH)


class Signed(Protocol):
    """A signature and the public key that checks it."""

    @property
    def public_key(self) -> bytes:
        """DER, SubjectPublicKeyInfo."""

    @property
    def signature(self) -> bytes:
        """Over the context and the body."""


class Signer(Protocol):
    """A node's key pair, as far as a client needs it."""

    def sign(self, context: str, body: bytes) -> Signed:
        """Sign `body` for one purpose."""


def context_of(method: str) -> str:
    """Return the purpose that a call of `method` is signed for."""
    return f"coordinator/{method}"


def signed_call(signer: Signer, method: str, body: bytes) -> pb.SignedCall:
    """Return `body` as a call of `method` by the signer."""
    signed = signer.sign(context_of(method), body)
    return pb.SignedCall(body=body, public_key=signed.public_key, signature=signed.signature)


def caller_of(call: pb.SignedCall, method: str) -> str | None:
    """Return the peer id that made this call of `method`, or None if the signature does not hold."""
    if len(call.public_key) > _MAX_KEY_BYTES or len(call.signature) > _MAX_KEY_BYTES:
        return None
    try:
        key = serialization.load_der_public_key(call.public_key)
        if not isinstance(key, rsa.RSAPublicKey) or not _MIN_BITS <= key.key_size <= _MAX_BITS:
            return None
        message = b"potluck/" + context_of(method).encode() + b"\x00" + call.body
        key.verify(call.signature, message, _PADDING, hashes.SHA256())
    except (ValueError, InvalidSignature, UnsupportedAlgorithm):
        return None
    return peer_id_of(call.public_key)


def peer_id_of(public_key: bytes) -> str:
    """Return the libp2p peer id of an RSA public key (DER, SubjectPublicKeyInfo)."""
    wrapped = b"\x08\x00\x12" + _varint(len(public_key)) + public_key
    return base58.b58encode(b"\x12\x20" + hashlib.sha256(wrapped).digest()).decode()  # multihash: sha2-256, 32 bytes


def is_peer_id(text: str) -> bool:
    """Whether `text` is a whole peer id of an RSA key."""
    return _PEER_ID.fullmatch(text) is not None


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
