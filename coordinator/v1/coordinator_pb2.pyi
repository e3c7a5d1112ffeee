from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RunState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RUN_STATE_UNSPECIFIED: _ClassVar[RunState]
    RUN_STATE_WAITING: _ClassVar[RunState]
    RUN_STATE_WARMUP: _ClassVar[RunState]
    RUN_STATE_TRAINING: _ClassVar[RunState]
    RUN_STATE_ROUND_OPEN: _ClassVar[RunState]
    RUN_STATE_PAUSED: _ClassVar[RunState]
    RUN_STATE_FINISHED: _ClassVar[RunState]
RUN_STATE_UNSPECIFIED: RunState
RUN_STATE_WAITING: RunState
RUN_STATE_WARMUP: RunState
RUN_STATE_TRAINING: RunState
RUN_STATE_ROUND_OPEN: RunState
RUN_STATE_PAUSED: RunState
RUN_STATE_FINISHED: RunState

class SignedCall(_message.Message):
    __slots__ = ("body", "public_key", "signature")
    BODY_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    body: bytes
    public_key: bytes
    signature: bytes
    def __init__(self, body: _Optional[bytes] = ..., public_key: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Stamp(_message.Message):
    __slots__ = ("at_s", "nonce", "protocol")
    AT_S_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    at_s: float
    nonce: bytes
    protocol: int
    def __init__(self, at_s: _Optional[float] = ..., nonce: _Optional[bytes] = ..., protocol: _Optional[int] = ...) -> None: ...

class JoinRequest(_message.Message):
    __slots__ = ("stamp", "fingerprint", "run", "capacity_stages", "addresses")
    STAMP_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_STAGES_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    stamp: Stamp
    fingerprint: str
    run: Run
    capacity_stages: int
    addresses: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, stamp: _Optional[_Union[Stamp, _Mapping]] = ..., fingerprint: _Optional[str] = ..., run: _Optional[_Union[Run, _Mapping]] = ..., capacity_stages: _Optional[int] = ..., addresses: _Optional[_Iterable[str]] = ...) -> None: ...

class JoinResponse(_message.Message):
    __slots__ = ("run", "addresses", "first_stage", "stop_stage", "heartbeat_every_s", "clock_s")
    RUN_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    FIRST_STAGE_FIELD_NUMBER: _ClassVar[int]
    STOP_STAGE_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_EVERY_S_FIELD_NUMBER: _ClassVar[int]
    CLOCK_S_FIELD_NUMBER: _ClassVar[int]
    run: Run
    addresses: _containers.RepeatedScalarFieldContainer[str]
    first_stage: int
    stop_stage: int
    heartbeat_every_s: float
    clock_s: float
    def __init__(self, run: _Optional[_Union[Run, _Mapping]] = ..., addresses: _Optional[_Iterable[str]] = ..., first_stage: _Optional[int] = ..., stop_stage: _Optional[int] = ..., heartbeat_every_s: _Optional[float] = ..., clock_s: _Optional[float] = ...) -> None: ...

class Run(_message.Message):
    __slots__ = ("fingerprint", "sealed", "name", "base_model", "num_stages", "num_layers", "max_steps", "target_batch_tokens")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    SEALED_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    NUM_STAGES_FIELD_NUMBER: _ClassVar[int]
    NUM_LAYERS_FIELD_NUMBER: _ClassVar[int]
    MAX_STEPS_FIELD_NUMBER: _ClassVar[int]
    TARGET_BATCH_TOKENS_FIELD_NUMBER: _ClassVar[int]
    fingerprint: str
    sealed: bytes
    name: str
    base_model: str
    num_stages: int
    num_layers: int
    max_steps: int
    target_batch_tokens: int
    def __init__(self, fingerprint: _Optional[str] = ..., sealed: _Optional[bytes] = ..., name: _Optional[str] = ..., base_model: _Optional[str] = ..., num_stages: _Optional[int] = ..., num_layers: _Optional[int] = ..., max_steps: _Optional[int] = ..., target_batch_tokens: _Optional[int] = ...) -> None: ...

class HeartbeatRequest(_message.Message):
    __slots__ = ("stamp", "fingerprint", "record", "facts")
    STAMP_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    FACTS_FIELD_NUMBER: _ClassVar[int]
    stamp: Stamp
    fingerprint: str
    record: bytes
    facts: Facts
    def __init__(self, stamp: _Optional[_Union[Stamp, _Mapping]] = ..., fingerprint: _Optional[str] = ..., record: _Optional[bytes] = ..., facts: _Optional[_Union[Facts, _Mapping]] = ...) -> None: ...

class Facts(_message.Message):
    __slots__ = ("name", "state", "first_stage", "stop_stage", "capacity_stages", "drives", "version", "base_hash", "committed_tokens", "tokens", "tokens_per_s", "loss", "held_out_loss", "tokens_given", "bytes_sent", "addresses")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    FIRST_STAGE_FIELD_NUMBER: _ClassVar[int]
    STOP_STAGE_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_STAGES_FIELD_NUMBER: _ClassVar[int]
    DRIVES_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BASE_HASH_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    HELD_OUT_LOSS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_GIVEN_FIELD_NUMBER: _ClassVar[int]
    BYTES_SENT_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: str
    first_stage: int
    stop_stage: int
    capacity_stages: int
    drives: bool
    version: int
    base_hash: str
    committed_tokens: int
    tokens: int
    tokens_per_s: float
    loss: float
    held_out_loss: float
    tokens_given: int
    bytes_sent: int
    addresses: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., state: _Optional[str] = ..., first_stage: _Optional[int] = ..., stop_stage: _Optional[int] = ..., capacity_stages: _Optional[int] = ..., drives: _Optional[bool] = ..., version: _Optional[int] = ..., base_hash: _Optional[str] = ..., committed_tokens: _Optional[int] = ..., tokens: _Optional[int] = ..., tokens_per_s: _Optional[float] = ..., loss: _Optional[float] = ..., held_out_loss: _Optional[float] = ..., tokens_given: _Optional[int] = ..., bytes_sent: _Optional[int] = ..., addresses: _Optional[_Iterable[str]] = ...) -> None: ...

class HeartbeatResponse(_message.Message):
    __slots__ = ("next_in_s", "is_known")
    NEXT_IN_S_FIELD_NUMBER: _ClassVar[int]
    IS_KNOWN_FIELD_NUMBER: _ClassVar[int]
    next_in_s: float
    is_known: bool
    def __init__(self, next_in_s: _Optional[float] = ..., is_known: _Optional[bool] = ...) -> None: ...

class LeaveRequest(_message.Message):
    __slots__ = ("stamp", "fingerprint")
    STAMP_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    stamp: Stamp
    fingerprint: str
    def __init__(self, stamp: _Optional[_Union[Stamp, _Mapping]] = ..., fingerprint: _Optional[str] = ...) -> None: ...

class LeaveResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchRunRequest(_message.Message):
    __slots__ = ("stamp", "fingerprint")
    STAMP_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    stamp: Stamp
    fingerprint: str
    def __init__(self, stamp: _Optional[_Union[Stamp, _Mapping]] = ..., fingerprint: _Optional[str] = ...) -> None: ...

class WatchRunResponse(_message.Message):
    __slots__ = ("member", "gone", "plan", "status")
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    GONE_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    member: Member
    gone: Gone
    plan: RoundPlan
    status: RunStatus
    def __init__(self, member: _Optional[_Union[Member, _Mapping]] = ..., gone: _Optional[_Union[Gone, _Mapping]] = ..., plan: _Optional[_Union[RoundPlan, _Mapping]] = ..., status: _Optional[_Union[RunStatus, _Mapping]] = ...) -> None: ...

class Member(_message.Message):
    __slots__ = ("peer_id", "record", "heard_s_ago")
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    HEARD_S_AGO_FIELD_NUMBER: _ClassVar[int]
    peer_id: str
    record: bytes
    heard_s_ago: float
    def __init__(self, peer_id: _Optional[str] = ..., record: _Optional[bytes] = ..., heard_s_ago: _Optional[float] = ...) -> None: ...

class Gone(_message.Message):
    __slots__ = ("peer_id", "is_evicted")
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    IS_EVICTED_FIELD_NUMBER: _ClassVar[int]
    peer_id: str
    is_evicted: bool
    def __init__(self, peer_id: _Optional[str] = ..., is_evicted: _Optional[bool] = ...) -> None: ...

class RunStatus(_message.Message):
    __slots__ = ("state", "by_operator")
    STATE_FIELD_NUMBER: _ClassVar[int]
    BY_OPERATOR_FIELD_NUMBER: _ClassVar[int]
    state: RunState
    by_operator: bool
    def __init__(self, state: _Optional[_Union[RunState, str]] = ..., by_operator: _Optional[bool] = ...) -> None: ...

class RoundPlan(_message.Message):
    __slots__ = ("id", "version", "base_hash", "members", "leader", "begin_at_s", "deadline_s")
    ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BASE_HASH_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    LEADER_FIELD_NUMBER: _ClassVar[int]
    BEGIN_AT_S_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_S_FIELD_NUMBER: _ClassVar[int]
    id: str
    version: int
    base_hash: str
    members: _containers.RepeatedCompositeFieldContainer[Planned]
    leader: str
    begin_at_s: float
    deadline_s: float
    def __init__(self, id: _Optional[str] = ..., version: _Optional[int] = ..., base_hash: _Optional[str] = ..., members: _Optional[_Iterable[_Union[Planned, _Mapping]]] = ..., leader: _Optional[str] = ..., begin_at_s: _Optional[float] = ..., deadline_s: _Optional[float] = ...) -> None: ...

class Planned(_message.Message):
    __slots__ = ("peer_id", "first_stage", "stop_stage")
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    FIRST_STAGE_FIELD_NUMBER: _ClassVar[int]
    STOP_STAGE_FIELD_NUMBER: _ClassVar[int]
    peer_id: str
    first_stage: int
    stop_stage: int
    def __init__(self, peer_id: _Optional[str] = ..., first_stage: _Optional[int] = ..., stop_stage: _Optional[int] = ...) -> None: ...

class ReportRoundRequest(_message.Message):
    __slots__ = ("stamp", "fingerprint", "plan_id", "version", "outcome", "num_members", "tokens", "seconds", "bytes_sent", "reason")
    STAMP_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    PLAN_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    NUM_MEMBERS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    BYTES_SENT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    stamp: Stamp
    fingerprint: str
    plan_id: str
    version: int
    outcome: str
    num_members: int
    tokens: int
    seconds: float
    bytes_sent: int
    reason: str
    def __init__(self, stamp: _Optional[_Union[Stamp, _Mapping]] = ..., fingerprint: _Optional[str] = ..., plan_id: _Optional[str] = ..., version: _Optional[int] = ..., outcome: _Optional[str] = ..., num_members: _Optional[int] = ..., tokens: _Optional[int] = ..., seconds: _Optional[float] = ..., bytes_sent: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class ReportRoundResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListRunsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListRunsResponse(_message.Message):
    __slots__ = ("runs",)
    RUNS_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedCompositeFieldContainer[RunSummary]
    def __init__(self, runs: _Optional[_Iterable[_Union[RunSummary, _Mapping]]] = ...) -> None: ...

class RunSummary(_message.Message):
    __slots__ = ("fingerprint", "name", "base_model", "state", "num_peers", "version", "max_steps")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    NUM_PEERS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MAX_STEPS_FIELD_NUMBER: _ClassVar[int]
    fingerprint: str
    name: str
    base_model: str
    state: RunState
    num_peers: int
    version: int
    max_steps: int
    def __init__(self, fingerprint: _Optional[str] = ..., name: _Optional[str] = ..., base_model: _Optional[str] = ..., state: _Optional[_Union[RunState, str]] = ..., num_peers: _Optional[int] = ..., version: _Optional[int] = ..., max_steps: _Optional[int] = ...) -> None: ...

class PauseRequest(_message.Message):
    __slots__ = ("fingerprint",)
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    fingerprint: str
    def __init__(self, fingerprint: _Optional[str] = ...) -> None: ...

class PauseResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ResumeRequest(_message.Message):
    __slots__ = ("fingerprint",)
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    fingerprint: str
    def __init__(self, fingerprint: _Optional[str] = ...) -> None: ...

class ResumeResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class EvictRequest(_message.Message):
    __slots__ = ("fingerprint", "peer_id")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    fingerprint: str
    peer_id: str
    def __init__(self, fingerprint: _Optional[str] = ..., peer_id: _Optional[str] = ...) -> None: ...

class EvictResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FinishRequest(_message.Message):
    __slots__ = ("fingerprint",)
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    fingerprint: str
    def __init__(self, fingerprint: _Optional[str] = ...) -> None: ...

class FinishResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
