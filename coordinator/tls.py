"""The coordinator's certificate: made once by itself, and known to nodes by its fingerprint in the address."""

from __future__ import annotations

import datetime as dt
import hashlib
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from coordinator.secret_files import keep_secret

_NAME = "potluck-coordinator"
_YEARS = 10


@dataclass(frozen=True)
class Certificate:
    """A certificate (PEM, perhaps with its chain) and its key (PEM)."""

    chain: bytes
    key: bytes

    @property
    def sha256(self) -> str:
        """Hex digest of the first certificate (DER)."""
        first = x509.load_pem_x509_certificate(self.chain)
        return hashlib.sha256(first.public_bytes(serialization.Encoding.DER)).hexdigest()

    @classmethod
    def read(cls, chain: Path, key: Path) -> Certificate:
        """Read one's own.

        Raises:
            OSError: a file cannot be read.
            ValueError: a file is none of that kind.
        """
        made = cls(chain.read_bytes(), key.read_bytes())
        serialization.load_pem_private_key(made.key, password=None)
        assert made.sha256
        return made

    @classmethod
    def load_or_create(cls, folder: Path) -> Certificate:
        """Read the one in the state folder, or make it there (the key's mode is 0600).

        Raises:
            OSError: it cannot be read or written.
            ValueError: a file is damaged.
        """
        chain, key = folder / "certificate.pem", folder / "certificate.key"
        if not (chain.exists() and key.exists()):
            made = _make()
            chain.unlink(missing_ok=True)  # never an old certificate beside a new key
            keep_secret(key, made.key)
            keep_secret(chain, made.chain)
        return cls.read(chain, key)


def _make() -> Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _NAME)])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))  # clocks of home computers
        .not_valid_after(now + dt.timedelta(days=365 * _YEARS))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(_NAME)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Certificate(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )
