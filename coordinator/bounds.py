"""What comes in through the door, checked: every field has a range, every text a length and no control characters."""

from __future__ import annotations

from typing import Annotated, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator

from coordinator.v1 import coordinator_pb2 as pb

MAX_STAGES = 64
MAX_RECORD_BYTES = 8_000
MAX_SEALED_BYTES = 200_000
MAX_BODY_BYTES = 64_000
"""Of any call but Join."""
_MAX_U63 = 2**63 - 1
Fingerprint = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Address = Annotated[str, Field(max_length=500, pattern=r"^/[\x21-\x7e]+$")]
_Count = Annotated[int, Field(ge=0, le=_MAX_U63)]
_Rate = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
_Loss = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Model = TypeVar("Model", bound=BaseModel)
_FINGERPRINT: TypeAdapter[str] = TypeAdapter(Fingerprint)


class Malformed(Exception):
    """A request is not in order; the text says what is wrong."""


def _printable(text: str) -> str:
    return "".join(c for c in text if c.isprintable())


class RunFacts(BaseModel):
    """What all members of a run share."""

    model_config = ConfigDict(frozen=True)

    fingerprint: Fingerprint
    sealed: bytes = Field(min_length=1, max_length=MAX_SEALED_BYTES)
    name: str = Field(max_length=200)
    base_model: str = Field(max_length=300)
    num_stages: int = Field(ge=1, le=MAX_STAGES)
    num_layers: int = Field(ge=1, le=4096)
    max_steps: int = Field(ge=1, le=_MAX_U63)
    target_batch_tokens: int = Field(ge=1, le=_MAX_U63)

    _clean = field_validator("name", "base_model")(_printable)

    @classmethod
    def read(cls, wire: pb.Run) -> Self:
        """Check a run. Raises Malformed."""
        return _checked(
            cls,
            fingerprint=wire.fingerprint,
            sealed=wire.sealed,
            name=wire.name,
            base_model=wire.base_model,
            num_stages=wire.num_stages,
            num_layers=wire.num_layers,
            max_steps=wire.max_steps,
            target_batch_tokens=wire.target_batch_tokens,
        )

    def wire(self) -> pb.Run:
        """Return it as a message."""
        return pb.Run(**self.model_dump())


class MemberFacts(BaseModel):
    """What a member says of itself."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(max_length=64)
    state: Literal["joining", "loading", "syncing", "training", "paused", "draining"]
    first_stage: int = Field(ge=0, le=MAX_STAGES)
    stop_stage: int = Field(ge=0, le=MAX_STAGES)
    capacity_stages: int = Field(ge=0, le=1024)
    drives: bool
    version: _Count
    base_hash: str = Field(pattern=r"^[0-9a-f]{0,64}$")
    committed_tokens: _Count
    tokens: _Count
    tokens_per_s: _Rate
    loss: _Loss | None
    held_out_loss: _Loss | None
    tokens_given: _Count
    bytes_sent: _Count
    addresses: tuple[_Address, ...] = Field(max_length=16)

    _clean = field_validator("name")(_printable)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.stop_stage < self.first_stage:
            raise ValueError("the stages are not in order")
        return self

    @classmethod
    def read(cls, wire: pb.Facts) -> Self:
        """Check a member's facts. Raises Malformed."""
        return _checked(
            cls,
            name=wire.name,
            state=wire.state,
            first_stage=wire.first_stage,
            stop_stage=wire.stop_stage,
            capacity_stages=wire.capacity_stages,
            drives=wire.drives,
            version=wire.version,
            base_hash=wire.base_hash,
            committed_tokens=wire.committed_tokens,
            tokens=wire.tokens,
            tokens_per_s=wire.tokens_per_s,
            loss=wire.loss if wire.HasField("loss") else None,
            held_out_loss=wire.held_out_loss if wire.HasField("held_out_loss") else None,
            tokens_given=wire.tokens_given,
            bytes_sent=wire.bytes_sent,
            addresses=tuple(wire.addresses),
        )

    @property
    def standing(self) -> tuple[int, str]:
        """Version and lineage."""
        return self.version, self.base_hash

    def holds(self, stage: int) -> bool:
        """Whether `stage` is among its own."""
        return self.first_stage <= stage < self.stop_stage

    @property
    def marks(self) -> tuple[object, ...]:
        """What others wait for: when it changes, they are told at once."""
        return (
            self.name, self.state, self.first_stage, self.stop_stage, self.capacity_stages, self.drives,
            self.standing, self.addresses,
        )  # fmt: skip


class RoundReport(BaseModel):
    """What came of a round."""

    model_config = ConfigDict(frozen=True)

    version: _Count
    outcome: Literal["committed", "alone", "dropped"]
    num_members: int = Field(ge=1, le=4096)
    tokens: _Count
    seconds: float = Field(ge=0, le=1e6, allow_inf_nan=False)
    bytes_sent: _Count
    reason: str = Field(max_length=200)
    plan_id: str = Field(max_length=64)

    _clean = field_validator("reason")(_printable)

    @classmethod
    def read(cls, wire: pb.ReportRoundRequest) -> Self:
        """Check a report. Raises Malformed."""
        return _checked(
            cls,
            version=wire.version,
            outcome=wire.outcome,
            num_members=wire.num_members,
            tokens=wire.tokens,
            seconds=wire.seconds,
            bytes_sent=wire.bytes_sent,
            reason=wire.reason,
            plan_id=wire.plan_id,
        )


def fingerprint_of(text: str) -> str:
    """Return a run's fingerprint. Raises Malformed."""
    try:
        return _FINGERPRINT.validate_python(text)
    except ValidationError:
        raise Malformed("fingerprint: 64 hexadecimal digits are expected") from None


def _checked(model: type[Model], **fields: object) -> Model:
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise Malformed(f"{'.'.join(map(str, first['loc'])) or 'request'}: {first['msg']}") from None
