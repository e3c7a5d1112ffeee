from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("peer_id", "name", "state", "addresses", "base_model", "fingerprint", "home", "version", "max_steps", "adapter_hash", "tokens_towards_next", "target_batch_tokens", "tokens_per_s", "loss", "held_out_loss", "held_out_loss_before", "seconds_left", "given", "peers", "rounds", "uptime_s", "run_name", "num_stages", "num_layers", "coordinator", "has_coordinator", "is_paused")
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    HOME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MAX_STEPS_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_HASH_FIELD_NUMBER: _ClassVar[int]
    TOKENS_TOWARDS_NEXT_FIELD_NUMBER: _ClassVar[int]
    TARGET_BATCH_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    HELD_OUT_LOSS_FIELD_NUMBER: _ClassVar[int]
    HELD_OUT_LOSS_BEFORE_FIELD_NUMBER: _ClassVar[int]
    SECONDS_LEFT_FIELD_NUMBER: _ClassVar[int]
    GIVEN_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    UPTIME_S_FIELD_NUMBER: _ClassVar[int]
    RUN_NAME_FIELD_NUMBER: _ClassVar[int]
    NUM_STAGES_FIELD_NUMBER: _ClassVar[int]
    NUM_LAYERS_FIELD_NUMBER: _ClassVar[int]
    COORDINATOR_FIELD_NUMBER: _ClassVar[int]
    HAS_COORDINATOR_FIELD_NUMBER: _ClassVar[int]
    IS_PAUSED_FIELD_NUMBER: _ClassVar[int]
    peer_id: str
    name: str
    state: str
    addresses: _containers.RepeatedScalarFieldContainer[str]
    base_model: str
    fingerprint: str
    home: str
    version: int
    max_steps: int
    adapter_hash: str
    tokens_towards_next: int
    target_batch_tokens: int
    tokens_per_s: float
    loss: float
    held_out_loss: float
    held_out_loss_before: float
    seconds_left: float
    given: Given
    peers: _containers.RepeatedCompositeFieldContainer[PeerStatus]
    rounds: _containers.RepeatedCompositeFieldContainer[Round]
    uptime_s: float
    run_name: str
    num_stages: int
    num_layers: int
    coordinator: str
    has_coordinator: bool
    is_paused: bool
    def __init__(self, peer_id: _Optional[str] = ..., name: _Optional[str] = ..., state: _Optional[str] = ..., addresses: _Optional[_Iterable[str]] = ..., base_model: _Optional[str] = ..., fingerprint: _Optional[str] = ..., home: _Optional[str] = ..., version: _Optional[int] = ..., max_steps: _Optional[int] = ..., adapter_hash: _Optional[str] = ..., tokens_towards_next: _Optional[int] = ..., target_batch_tokens: _Optional[int] = ..., tokens_per_s: _Optional[float] = ..., loss: _Optional[float] = ..., held_out_loss: _Optional[float] = ..., held_out_loss_before: _Optional[float] = ..., seconds_left: _Optional[float] = ..., given: _Optional[_Union[Given, _Mapping]] = ..., peers: _Optional[_Iterable[_Union[PeerStatus, _Mapping]]] = ..., rounds: _Optional[_Iterable[_Union[Round, _Mapping]]] = ..., uptime_s: _Optional[float] = ..., run_name: _Optional[str] = ..., num_stages: _Optional[int] = ..., num_layers: _Optional[int] = ..., coordinator: _Optional[str] = ..., has_coordinator: _Optional[bool] = ..., is_paused: _Optional[bool] = ...) -> None: ...

class Given(_message.Message):
    __slots__ = ("tokens_seen", "tokens_committed", "rounds_committed", "rounds_dropped", "bytes_sent", "hidden_bytes_sent", "hidden_bytes_received")
    TOKENS_SEEN_FIELD_NUMBER: _ClassVar[int]
    TOKENS_COMMITTED_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_COMMITTED_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_DROPPED_FIELD_NUMBER: _ClassVar[int]
    BYTES_SENT_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_BYTES_SENT_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_BYTES_RECEIVED_FIELD_NUMBER: _ClassVar[int]
    tokens_seen: int
    tokens_committed: int
    rounds_committed: int
    rounds_dropped: int
    bytes_sent: int
    hidden_bytes_sent: int
    hidden_bytes_received: int
    def __init__(self, tokens_seen: _Optional[int] = ..., tokens_committed: _Optional[int] = ..., rounds_committed: _Optional[int] = ..., rounds_dropped: _Optional[int] = ..., bytes_sent: _Optional[int] = ..., hidden_bytes_sent: _Optional[int] = ..., hidden_bytes_received: _Optional[int] = ...) -> None: ...

class PeerStatus(_message.Message):
    __slots__ = ("peer_id", "name", "state", "is_me", "version", "adapter_hash", "tokens_per_s", "loss", "tokens_given", "addresses", "first_stage", "stop_stage", "first_layer", "stop_layer", "drives", "stage_tokens_per_s", "capacity_stages", "heard_s_ago")
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    IS_ME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_HASH_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_GIVEN_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    FIRST_STAGE_FIELD_NUMBER: _ClassVar[int]
    STOP_STAGE_FIELD_NUMBER: _ClassVar[int]
    FIRST_LAYER_FIELD_NUMBER: _ClassVar[int]
    STOP_LAYER_FIELD_NUMBER: _ClassVar[int]
    DRIVES_FIELD_NUMBER: _ClassVar[int]
    STAGE_TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_STAGES_FIELD_NUMBER: _ClassVar[int]
    HEARD_S_AGO_FIELD_NUMBER: _ClassVar[int]
    peer_id: str
    name: str
    state: str
    is_me: bool
    version: int
    adapter_hash: str
    tokens_per_s: float
    loss: float
    tokens_given: int
    addresses: _containers.RepeatedScalarFieldContainer[str]
    first_stage: int
    stop_stage: int
    first_layer: int
    stop_layer: int
    drives: bool
    stage_tokens_per_s: float
    capacity_stages: int
    heard_s_ago: float
    def __init__(self, peer_id: _Optional[str] = ..., name: _Optional[str] = ..., state: _Optional[str] = ..., is_me: _Optional[bool] = ..., version: _Optional[int] = ..., adapter_hash: _Optional[str] = ..., tokens_per_s: _Optional[float] = ..., loss: _Optional[float] = ..., tokens_given: _Optional[int] = ..., addresses: _Optional[_Iterable[str]] = ..., first_stage: _Optional[int] = ..., stop_stage: _Optional[int] = ..., first_layer: _Optional[int] = ..., stop_layer: _Optional[int] = ..., drives: _Optional[bool] = ..., stage_tokens_per_s: _Optional[float] = ..., capacity_stages: _Optional[int] = ..., heard_s_ago: _Optional[float] = ...) -> None: ...

class Round(_message.Message):
    __slots__ = ("version", "status", "members", "tokens", "seconds", "bytes_sent", "reason")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    BYTES_SENT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    version: int
    status: str
    members: int
    tokens: int
    seconds: float
    bytes_sent: int
    reason: str
    def __init__(self, version: _Optional[int] = ..., status: _Optional[str] = ..., members: _Optional[int] = ..., tokens: _Optional[int] = ..., seconds: _Optional[float] = ..., bytes_sent: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class SaveCheckpointRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SaveCheckpointResponse(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: int
    def __init__(self, version: _Optional[int] = ...) -> None: ...

class StopRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StopResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GatherAdapterRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GatherAdapterResponse(_message.Message):
    __slots__ = ("header", "part")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    header: GatheredHeader
    part: GatheredPart
    def __init__(self, header: _Optional[_Union[GatheredHeader, _Mapping]] = ..., part: _Optional[_Union[GatheredPart, _Mapping]] = ...) -> None: ...

class GatheredHeader(_message.Message):
    __slots__ = ("version", "committed_tokens", "num_stages")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_STAGES_FIELD_NUMBER: _ClassVar[int]
    version: int
    committed_tokens: int
    num_stages: int
    def __init__(self, version: _Optional[int] = ..., committed_tokens: _Optional[int] = ..., num_stages: _Optional[int] = ...) -> None: ...

class GatheredPart(_message.Message):
    __slots__ = ("stage", "data")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    stage: int
    data: bytes
    def __init__(self, stage: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class RunStagesRequest(_message.Message):
    __slots__ = ("hidden", "dtype", "lengths", "without_adapter", "text", "start")
    HIDDEN_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    WITHOUT_ADAPTER_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    hidden: bytes
    dtype: str
    lengths: _containers.RepeatedScalarFieldContainer[int]
    without_adapter: bool
    text: str
    start: int
    def __init__(self, hidden: _Optional[bytes] = ..., dtype: _Optional[str] = ..., lengths: _Optional[_Iterable[int]] = ..., without_adapter: _Optional[bool] = ..., text: _Optional[str] = ..., start: _Optional[int] = ...) -> None: ...

class RunStagesResponse(_message.Message):
    __slots__ = ("hidden", "needs_all")
    HIDDEN_FIELD_NUMBER: _ClassVar[int]
    NEEDS_ALL_FIELD_NUMBER: _ClassVar[int]
    hidden: bytes
    needs_all: bool
    def __init__(self, hidden: _Optional[bytes] = ..., needs_all: _Optional[bool] = ...) -> None: ...
