"""What peers announce in the DHT: signed, schema-checked, bounded, expiring.

A record is checked at two doors: by every node that is asked to store or that fetches one (`PeerRecordValidator`,
so that garbage does not spread), and again, with the run's own bounds, where it becomes a `Peer`.
"""

from __future__ import annotations

import math
from typing import Annotated, Self

from google.protobuf.message import DecodeError
from hivemind.dht.validation import DHTRecord, RecordValidatorBase
from hivemind.utils import get_dht_time
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from node.core import versions
from node.core.text import printable
from node.core.types import HASH_CHARS, Peer, PeerId, PeerState, Progress, Shard
from node.core.versions import Speaker
from node.network.addresses import MAX_ADDRESS_CHARS
from node.network.dht_bounds import MAX_RECORDS, RecordSerializer, dht_key
from node.network.malformed import Malformed
from node.trust.identity import Identity, SignedBytes, verify
from node.v1 import swarm_pb2

MAX_RECORD_BYTES = 6_000
"""Below the size at which hivemind's own pipes and the DHT's messages get into trouble."""
MAX_STAGES = 64
"""Of a run: as many hashes fit into a record."""
_MAX_U63 = 2**63 - 1
_CONTEXT = "peer-record"
_CLOCK_S = 60.0
"""How far a peer's clock may be ahead; a newcomer whose clock is further off is turned away."""
_MAX_FINGERPRINT = 64
_WRITING_S = 1.0
"""Between the time in a record and its being stored."""


class _ProgressRecord(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = Field(ge=0, le=_MAX_U63)
    base_hash: str = Field(pattern=r"^[0-9a-f]{1,64}$")
    committed_tokens: int = Field(ge=0, le=_MAX_U63)
    tokens: int = Field(ge=0, le=_MAX_U63)
    tokens_per_s: float = Field(ge=0, le=1e9, allow_inf_nan=False)
    hashes: tuple[Annotated[str, Field(pattern=rf"^[0-9a-f]{{1,{HASH_CHARS}}}$")], ...] = Field(max_length=MAX_STAGES)


class _PeerRecord(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(max_length=64)
    addresses: tuple[str, ...] = Field(max_length=16)
    first_stage: int = Field(ge=0, le=MAX_STAGES)
    stop_stage: int = Field(ge=0, le=MAX_STAGES)
    state: PeerState
    loss: float | None = Field(ge=0, le=1e6, allow_inf_nan=False)
    tokens_given: int = Field(ge=0, le=_MAX_U63)
    progress: _ProgressRecord | None
    at_s: float = Field(ge=0, le=1e11, allow_inf_nan=False)
    session: str = Field(pattern=r"^[0-9a-f]{0,32}$")
    drives: bool
    stage_tokens_per_s: float = Field(ge=0, le=1e9, allow_inf_nan=False)
    capacity_stages: int = Field(ge=0, le=1024)

    @field_validator("addresses")
    @classmethod
    def _short(cls, addresses: tuple[str, ...]) -> tuple[str, ...]:
        if any(len(address) > MAX_ADDRESS_CHARS for address in addresses):
            raise ValueError("an address is too long")
        return addresses

    @field_validator("name")
    @classmethod
    def _printable(cls, name: str) -> str:
        return printable(name)

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        num_stages = self.stop_stage - self.first_stage
        if num_stages < 0 or (self.progress is not None and len(self.progress.hashes) != num_stages):
            raise ValueError("the stages, or their hashes, are not in order")
        return self


def records_key(fingerprint: str) -> str:
    """Return the DHT's key of a run's records."""
    return f"potluck/{fingerprint}/peers"


def run_of(data: object) -> str | None:
    """Return the fingerprint of the run that a record is of, if it is signed by the peer that it names."""
    record = _open(data)
    return record.fingerprint if record is not None and len(record.fingerprint) <= _MAX_FINGERPRINT else None


def encode_peer(peer: Peer, *, fingerprint: str, at_s: float, identity: Identity) -> bytes:
    """Return the signed record of this node's own `peer` for the run with that fingerprint."""
    record = swarm_pb2.PeerRecord(
        fingerprint=fingerprint,
        protocol=versions.PROTOCOL,
        software=versions.software(),
        peer_id=peer.peer_id,
        name=peer.name,
        addresses=peer.addresses,
        first_stage=peer.shard.first_stage,
        stop_stage=peer.shard.stop_stage,
        state=peer.state.value,
        tokens_given=peer.tokens_given,
        at_s=at_s,
        session=peer.session,
        drives=peer.drives,
        stage_tokens_per_s=peer.stage_tokens_per_s,
        capacity_stages=peer.capacity_stages,
    )
    if peer.loss is not None and math.isfinite(peer.loss):
        record.loss = peer.loss
    if peer.progress is not None:
        record.progress.version = peer.progress.version
        record.progress.base_hash = peer.progress.base_hash
        record.progress.committed_tokens = peer.progress.committed_tokens
        record.progress.tokens = peer.progress.tokens
        record.progress.tokens_per_s = peer.progress.tokens_per_s
        record.progress.hashes.extend(bits for _, bits in peer.progress.hashes)
    signed = identity.sign(_CONTEXT, record.SerializeToString())
    envelope = swarm_pb2.Signed(body=signed.body, public_key=signed.public_key, signature=signed.signature)
    return envelope.SerializeToString()


def decode_peer(data: object, *, fingerprint: str, expires_at_s: float) -> Peer | None:
    """Return the peer in a record of the run with that fingerprint, or None if anything is wrong with it."""
    record = _open(data)
    if record is None or record.fingerprint != fingerprint or not versions.understands(record.protocol):
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
            progress=_read_progress(record.progress) if record.HasField("progress") else None,
            at_s=record.at_s,
            session=record.session,
            drives=record.drives,
            stage_tokens_per_s=record.stage_tokens_per_s,
            capacity_stages=record.capacity_stages,
        )
    except (ValidationError, ValueError):
        return None
    shard = Shard(checked.first_stage, checked.stop_stage)
    return Peer(
        peer_id=PeerId(record.peer_id),
        name=checked.name,
        addresses=checked.addresses,
        shard=shard,
        state=checked.state,
        loss=checked.loss,
        tokens_given=checked.tokens_given,
        progress=_progress(checked.progress, shard, checked.at_s) if checked.progress else None,
        expires_at_s=expires_at_s,
        session=checked.session,
        drives=checked.drives,
        stage_tokens_per_s=checked.stage_tokens_per_s,
        capacity_stages=checked.capacity_stages,
    )


def other_version(data: object, *, fingerprint: str) -> Speaker | None:
    """Return what a record says of its peer's version, if it is of the run and of another protocol, else None."""
    parsed = _parse(data)  # whether it is of our own protocol is cheaper to see than whose signature it has
    if parsed is None or parsed[1].fingerprint != fingerprint or versions.understands(parsed[1].protocol):
        return None
    record = _open(data)
    return Speaker.heard(record.protocol, record.software) if record is not None else None


def _read_progress(wire: swarm_pb2.RunProgress) -> _ProgressRecord:
    return _ProgressRecord(
        version=wire.version,
        base_hash=wire.base_hash,
        committed_tokens=wire.committed_tokens,
        tokens=wire.tokens,
        tokens_per_s=wire.tokens_per_s,
        hashes=tuple(wire.hashes),
    )


def _progress(checked: _ProgressRecord, shard: Shard, at_s: float) -> Progress:
    return Progress(
        version=checked.version,
        base_hash=checked.base_hash,
        committed_tokens=checked.committed_tokens,
        tokens=checked.tokens,
        tokens_per_s=checked.tokens_per_s,
        at_s=at_s,
        hashes=tuple(zip(shard.stages, checked.hashes, strict=True)),
    )


def _open(data: object) -> swarm_pb2.PeerRecord | None:
    """Return the record inside a signed envelope if its own peer signed it, else None."""
    parsed = _parse(data)
    if parsed is None:
        return None
    envelope, record = parsed
    signer = verify(_CONTEXT, SignedBytes(envelope.body, envelope.public_key, envelope.signature))
    return record if signer is not None and record.peer_id == signer else None


def _parse(data: object) -> tuple[swarm_pb2.Signed, swarm_pb2.PeerRecord] | None:
    """Return envelope and record, unchecked, or None if they are none."""
    if not isinstance(data, bytes) or len(data) > MAX_RECORD_BYTES:
        return None
    try:
        envelope = swarm_pb2.Signed.FromString(data)
        return envelope, swarm_pb2.PeerRecord.FromString(envelope.body)
    except DecodeError:
        return None


class PeerRecordValidator(RecordValidatorBase):  # type: ignore[misc]
    """Let nothing into this node's part of the DHT but records of one run that their own peer signed a moment ago."""

    def __init__(self, key: str, *, lifetime_s: float) -> None:
        """Set up.

        Args:
            key: Under which the run's records are.
            lifetime_s: Of a record, from the time that its peer wrote into it.
        """
        self._key = dht_key(key)
        self._lifetime_s = lifetime_s
        self._until: dict[PeerId, float] = {}
        """By peer: when its record that was let in expires."""

    def validate(self, record: DHTRecord) -> bool:
        """Return whether the record's value is signed by the peer that its subkey names, and new, and not one too many.

        Its time is the DHT's word and not signed: anybody could let another's record live on, or die early, with it.
        """
        now = get_dht_time()
        if record.key != self._key or not record.expiration_time <= now + self._lifetime_s + _CLOCK_S:
            return False
        if len(record.value) > MAX_RECORD_BYTES + 16 or len(record.subkey) > MAX_ADDRESS_CHARS:
            return False
        try:
            value, subkey = RecordSerializer.loads(record.value), RecordSerializer.loads(record.subkey)
        except Malformed:
            return False
        opened = _open(value)
        if opened is None or opened.peer_id != subkey:
            return False
        is_ours = versions.understands(opened.protocol)  # another one's records may live longer
        if is_ours and not abs(record.expiration_time - opened.at_s - self._lifetime_s) <= _WRITING_S:
            return False
        return self._has_room(PeerId(opened.peer_id), record.expiration_time, now)

    @property
    def num_alive(self) -> int:
        """Peers whose records have not expired."""
        now = get_dht_time()
        return sum(until > now for until in self._until.values())

    def _has_room(self, peer: PeerId, expires: float, now: float) -> bool:
        if peer not in self._until and len(self._until) >= MAX_RECORDS:
            self._until = {other: until for other, until in self._until.items() if until > now}
            if len(self._until) >= MAX_RECORDS:
                return False
        self._until[peer] = max(expires, self._until.get(peer, 0.0))
        return True
