"""What peers announce in the DHT: signed, schema-checked, bounded, expiring.

A record is checked at two doors: by every node that is asked to store or that fetches one (`PeerRecordValidator`,
so that garbage does not spread), and again, with the run's own bounds, where it becomes a `Peer`.
"""

from __future__ import annotations

import math

from google.protobuf.message import DecodeError
from hivemind.dht.validation import DHTRecord, RecordValidatorBase
from hivemind.utils import MSGPackSerializer
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from node.core.types import Peer, PeerId, PeerState, Progress, Shard
from node.network.addresses import MAX_ADDRESS_CHARS
from node.trust.identity import Identity, SignedBytes, verify
from node.v1 import swarm_pb2

MAX_RECORD_BYTES = 6_000
"""Below the size at which hivemind's own pipes and the DHT's messages get into trouble."""
_MAX_STAGES = 64
_MAX_U63 = 2**63 - 1
_CONTEXT = "peer-record"


class _ProgressRecord(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: int = Field(ge=0, lt=1024)
    version: int = Field(ge=0, le=_MAX_U63)
    adapter_hash: str = Field(pattern=r"^[0-9a-f]{0,128}$")
    committed_tokens: int = Field(ge=0, le=_MAX_U63)
    tokens: int = Field(ge=0, le=_MAX_U63)
    tokens_per_s: float = Field(ge=0, le=1e9, allow_inf_nan=False)


class _PeerRecord(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(max_length=64)
    addresses: tuple[str, ...] = Field(max_length=16)
    first_stage: int = Field(ge=0, lt=1024)
    stop_stage: int = Field(ge=0, le=1024)
    state: PeerState
    loss: float | None = Field(ge=0, le=1e6, allow_inf_nan=False)
    tokens_given: int = Field(ge=0, le=_MAX_U63)
    progress: tuple[_ProgressRecord, ...] = Field(max_length=_MAX_STAGES)
    at_s: float = Field(ge=0, le=1e11, allow_inf_nan=False)

    @field_validator("addresses")
    @classmethod
    def _short(cls, addresses: tuple[str, ...]) -> tuple[str, ...]:
        if any(len(address) > MAX_ADDRESS_CHARS for address in addresses):
            raise ValueError("an address is too long")
        return addresses

    @field_validator("name")
    @classmethod
    def _printable(cls, name: str) -> str:
        return "".join(character for character in name if character.isprintable())


def encode_peer(peer: Peer, *, fingerprint: str, at_s: float, identity: Identity) -> bytes:
    """Return the signed record of this node's own `peer` for the run with that fingerprint."""
    record = swarm_pb2.PeerRecord(
        fingerprint=fingerprint,
        peer_id=peer.peer_id,
        name=peer.name,
        addresses=peer.addresses,
        first_stage=peer.shard.first_stage,
        stop_stage=peer.shard.stop_stage,
        state=peer.state.value,
        tokens_given=peer.tokens_given,
        at_s=at_s,
    )
    if peer.loss is not None and math.isfinite(peer.loss):
        record.loss = peer.loss
    for progress in peer.progress:
        record.progress.add(
            stage=progress.stage,
            version=progress.version,
            adapter_hash=progress.adapter_hash,
            committed_tokens=progress.committed_tokens,
            tokens=progress.tokens,
            tokens_per_s=progress.tokens_per_s,
        )
    signed = identity.sign(_CONTEXT, record.SerializeToString())
    envelope = swarm_pb2.Signed(body=signed.body, public_key=signed.public_key, signature=signed.signature)
    return envelope.SerializeToString()


def decode_peer(data: object, *, fingerprint: str, expires_at_s: float) -> Peer | None:
    """Return the peer in a record of the run with that fingerprint, or None if anything is wrong with it."""
    record = _open(data)
    if record is None or record.fingerprint != fingerprint:
        return None
    try:
        checked = _PeerRecord(
            name=record.name,
            addresses=tuple(record.addresses),
            first_stage=record.first_stage,
            stop_stage=record.stop_stage,
            state=PeerState(record.state),
            loss=record.loss if record.HasField("loss") else None,
            tokens_given=record.tokens_given,
            progress=tuple(
                _ProgressRecord(
                    stage=p.stage,
                    version=p.version,
                    adapter_hash=p.adapter_hash,
                    committed_tokens=p.committed_tokens,
                    tokens=p.tokens,
                    tokens_per_s=p.tokens_per_s,
                )
                for p in record.progress[: _MAX_STAGES + 1]
            ),
            at_s=record.at_s,
        )
    except (ValidationError, ValueError):
        return None
    return Peer(
        peer_id=PeerId(record.peer_id),
        name=checked.name,
        addresses=checked.addresses,
        shard=Shard(checked.first_stage, checked.stop_stage),
        state=checked.state,
        loss=checked.loss,
        tokens_given=checked.tokens_given,
        progress=tuple(Progress(**p.model_dump(), at_s=checked.at_s) for p in checked.progress),
        expires_at_s=expires_at_s,
    )


def _open(data: object) -> swarm_pb2.PeerRecord | None:
    """Return the record inside a signed envelope if its own peer signed it, else None."""
    if not isinstance(data, bytes) or len(data) > MAX_RECORD_BYTES:
        return None
    try:
        envelope = swarm_pb2.Signed.FromString(data)
        signer = verify(_CONTEXT, SignedBytes(envelope.body, envelope.public_key, envelope.signature))
        record = swarm_pb2.PeerRecord.FromString(envelope.body)
    except DecodeError:
        return None
    return record if signer is not None and record.peer_id == signer else None


class PeerRecordValidator(RecordValidatorBase):  # type: ignore[misc]
    """Let nothing into this node's part of the DHT but records that their own peer signed."""

    def validate(self, record: DHTRecord) -> bool:
        """Return whether the record's value is signed by the peer that its subkey names."""
        if len(record.value) > MAX_RECORD_BYTES + 16 or len(record.subkey) > MAX_ADDRESS_CHARS:
            return False
        try:
            value, subkey = MSGPackSerializer.loads(record.value), MSGPackSerializer.loads(record.subkey)
        except Exception:  # noqa: BLE001  (msgpack raises a dozen unrelated types on hostile bytes)
            return False
        opened = _open(value)
        return opened is not None and opened.peer_id == subkey
