"""The versions of all that one Potluck hands to another, and what to say when they differ.

One number for everything that peers say to each other, one for the state folder, one for the commands' way to a running
node; a file that stands alone names its own format. When to raise which: docs/versions.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

PROTOCOL = 1
"""Of everything between peers: the door, records, rounds, stages, weights, the run's seal."""
HOME_FORMAT = 1
"""Of a node's folder."""
LOCAL_API = 1
"""Between the commands and the node that runs on the same machine."""

UPGRADE = "git pull && make env"
"""In the folder that Potluck was cloned into."""
UPGRADE_HERE = f"Upgrade this machine: `{UPGRADE}` in Potluck's folder, then the same command again."

_SOFTWARE = re.compile(r"[0-9A-Za-z.+-]{1,32}")


@dataclass(frozen=True, slots=True)
class Speaker:
    """What a peer says of its version."""

    protocol: int
    software: str = ""
    """As `potluck --version` says; empty if it does not tell."""

    @classmethod
    def heard(cls, protocol: int, software: str) -> Speaker:
        """Return it from untrusted words."""
        return cls(protocol, software if _SOFTWARE.fullmatch(software) else "")

    @classmethod
    def me(cls) -> Speaker:
        """Return this program."""
        return cls(PROTOCOL, software())

    def __str__(self) -> str:
        return f"Potluck {self.software or 'of an unknown version'}, protocol {self.protocol}"


def software() -> str:
    """Return the version of this program."""
    try:
        return version("potluck").split("+")[0]
    except PackageNotFoundError:
        return ""


def understands(protocol: int) -> bool:
    """Return whether this program speaks with one of that protocol."""
    return protocol == PROTOCOL


def namespace(fingerprint: str, what: str) -> str:
    """Return the name under which a run's streams are served: other protocols do not find them."""
    return f"potluck/{PROTOCOL}/{fingerprint[:16]}/{what}"


def joining_refused(name: str, theirs: Speaker) -> tuple[str, str]:
    """Return what a joiner is told, and what to do, if the swarm speaks another protocol.

    Args:
        name: Of the peer that was asked.
        theirs: What it says of itself.
    """
    message = f"The peer {name} runs {theirs}; this is {Speaker.me()}. They do not understand each other."
    if theirs.protocol > PROTOCOL:
        return message, UPGRADE_HERE
    back = f"v{theirs.software}" if theirs.software else "the version that they run"
    return message, (
        f"Ask the people of the swarm to upgrade: `{UPGRADE}` in Potluck's folder and their command again, node by "
        f"node. Or join with their version: `git checkout {back} && make env`."
    )


def member_refused(name: str, theirs: Speaker) -> tuple[str, str]:
    """Return what a member of a swarm is told of a node of another protocol that wants to take part."""
    message = f"A node is left out, {name}: it runs {theirs}, and this swarm runs {Speaker.me()}."
    if theirs.protocol > PROTOCOL:
        return message, f"To train with it, upgrade this swarm's nodes one by one: `{UPGRADE}`, then the same command."
    return message, f"To train with it, upgrade that machine: `{UPGRADE}` there, then the same command."


def format_number(text: object, name: str) -> int | None:
    """Return N of a format that is called `name-N`, or None if it is called otherwise."""
    found = re.fullmatch(rf"{re.escape(name)}-(\d{{1,6}})", text) if isinstance(text, str) else None
    return int(found[1]) if found else None
