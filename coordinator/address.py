"""Where a coordinator is and what opens it, in one line that can be pasted.

`coordinator://HOST:PORT/TOKEN#SHA256` pins the certificate; without `#SHA256` the certificate is one that the
machine's own authorities vouch for; `coordinator+insecure://HOST:PORT/TOKEN` is plain text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_FORM = re.compile(
    r"coordinator(?P<insecure>\+insecure)?://(?:\[(?P<six>[0-9A-Fa-f:.]{2,45})\]|(?P<host>[A-Za-z0-9.-]{1,253}))"
    r":(?P<port>[0-9]{1,5})/(?P<token>[A-Za-z0-9_-]{16,128})(?:#(?P<sha256>[0-9a-f]{64}))?"
)
EXAMPLE = "coordinator://192.168.1.5:7300/TOKEN#FINGERPRINT"


def is_coordinator_address(text: str) -> bool:
    """Whether `text` means to be one, right or wrong."""
    return text.startswith(("coordinator://", "coordinator+insecure://"))


@dataclass(frozen=True, slots=True)
class CoordinatorAddress:
    """A coordinator's host, port and token, and how its certificate is known."""

    host: str
    port: int
    token: str
    sha256: str | None = None
    """Hex digest of the certificate (DER); None: it is checked against the machine's authorities."""
    insecure: bool = False

    @classmethod
    def parse(cls, text: str) -> CoordinatorAddress:
        """Read an address.

        Raises:
            ValueError: it is none, with what is wrong in words.
        """
        found = _FORM.fullmatch(text.strip())
        if found is None:
            raise ValueError(f"a coordinator's address has the form {EXAMPLE}")
        port = int(found["port"])
        if not 0 < port < 65536:
            raise ValueError(f"{port} is not a port")
        insecure = found["insecure"] is not None
        if insecure and found["sha256"]:
            raise ValueError("an address in plain text has no certificate")
        return cls(found["host"] or found["six"], port, found["token"], found["sha256"], insecure)

    @property
    def target(self) -> str:
        """HOST:PORT, with an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        scheme = "coordinator+insecure" if self.insecure else "coordinator"
        return f"{scheme}://{self.target}/{self.token}{f'#{self.sha256}' if self.sha256 else ''}"
