"""The run as its founder signed it: the recipe that all peers agree on, and which base model it is for.

A joiner needs an address and nothing else: it fetches this from any peer. The founder's signature travels with
it, so no peer on the way can change what is trained.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from node.core.errors import ProtocolViolation, RunMismatch
from node.core.text import brief
from node.core.types import PeerId
from node.core.versions import UPGRADE_HERE
from node.trust.identity import Identity, SignedBytes, verify

MAX_SEAL_BYTES = 128 * 1024
_CONTEXT = "run"
_FORMAT = 1


class ModelIdentity(BaseModel):
    """Which base model: its content, not its name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: str = Field(pattern=r"^[0-9a-f]{32,128}$")
    """Hex digest over the configuration and every tensor."""
    config: dict[str, Any] = Field(max_length=300)
    """The parts of the model's configuration that the digest covers, to name what differs."""
    manifest: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    """Hex digest of the manifest (`trust/manifest.py`), by which peers take the model from each other; empty if the
    run was founded by a version that had none."""


class RunSeal(BaseModel):
    """What the founder signs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = Field(default=_FORMAT, ge=1, le=_FORMAT)
    fingerprint: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Hex digest of the recipe's shared part together with the model's digest: the name of the run."""
    recipe: str = Field(max_length=64 * 1024)
    """The recipe's shared part, canonical JSON."""
    model: ModelIdentity
    founded_at_s: float = Field(ge=0, le=1e11, allow_inf_nan=False)


class SealedRun(BaseModel):
    """A run with its founder's signature, ready to be handed on as it is."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    seal: RunSeal
    founder: PeerId
    signed: SignedBytes


def seal_run(seal: RunSeal, identity: Identity) -> SealedRun:
    """Sign a new run as its founder."""
    body = json.dumps(seal.model_dump(mode="json"), sort_keys=True, separators=(",", ":")).encode()
    return SealedRun(seal=seal, founder=identity.peer_id, signed=identity.sign(_CONTEXT, body))


def open_seal(signed: SignedBytes, *, sender: PeerId) -> SealedRun:
    """Check and read a run that came from `sender` or from a file.

    Raises:
        ProtocolViolation: the signature does not hold, or the body is not a run.
        RunMismatch: a newer Potluck has founded it.
    """
    if len(signed.body) > MAX_SEAL_BYTES:
        raise ProtocolViolation(f"The run that {sender} sent is larger than {MAX_SEAL_BYTES} bytes.", peer_id=sender)
    founder = verify(_CONTEXT, signed)
    if founder is None:
        raise ProtocolViolation(f"The run that {sender} sent is not signed by its founder.", peer_id=sender)
    _refuse_newer(signed.body)
    try:
        seal = RunSeal.model_validate_json(signed.body)
    except (ValidationError, RecursionError) as error:
        raise ProtocolViolation(
            f"The run that {sender} sent cannot be read: {brief(error)}.", peer_id=sender
        ) from error
    return SealedRun(seal=seal, founder=founder, signed=signed)


def _refuse_newer(body: bytes) -> None:
    """Raise RunMismatch if a founder's own words say that they are in a format of later."""
    try:
        found = json.loads(body)["format"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return  # the reader says what is wrong
    if isinstance(found, int) and found > _FORMAT:
        raise RunMismatch(
            f"The run was founded by a newer Potluck: its seal has format {found}, and this one reads {_FORMAT}.",
            hint=UPGRADE_HERE,
        )
