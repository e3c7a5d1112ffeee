from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StageKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STAGE_KIND_UNSPECIFIED: _ClassVar[StageKind]
    STAGE_KIND_FORWARD: _ClassVar[StageKind]
    STAGE_KIND_BACKWARD: _ClassVar[StageKind]
    STAGE_KIND_EVALUATE: _ClassVar[StageKind]
    STAGE_KIND_GENERATE: _ClassVar[StageKind]
    STAGE_KIND_DELIVER: _ClassVar[StageKind]
    STAGE_KIND_RESET: _ClassVar[StageKind]
    STAGE_KIND_PING: _ClassVar[StageKind]

class StageStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STAGE_STATUS_UNSPECIFIED: _ClassVar[StageStatus]
    STAGE_STATUS_DONE: _ClassVar[StageStatus]
    STAGE_STATUS_TRY_LATER: _ClassVar[StageStatus]
    STAGE_STATUS_STALE: _ClassVar[StageStatus]
    STAGE_STATUS_NEEDS_INPUT: _ClassVar[StageStatus]
    STAGE_STATUS_REFUSED: _ClassVar[StageStatus]
    STAGE_STATUS_NEXT_FAILED: _ClassVar[StageStatus]
STAGE_KIND_UNSPECIFIED: StageKind
STAGE_KIND_FORWARD: StageKind
STAGE_KIND_BACKWARD: StageKind
STAGE_KIND_EVALUATE: StageKind
STAGE_KIND_GENERATE: StageKind
STAGE_KIND_DELIVER: StageKind
STAGE_KIND_RESET: StageKind
STAGE_KIND_PING: StageKind
STAGE_STATUS_UNSPECIFIED: StageStatus
STAGE_STATUS_DONE: StageStatus
STAGE_STATUS_TRY_LATER: StageStatus
STAGE_STATUS_STALE: StageStatus
STAGE_STATUS_NEEDS_INPUT: StageStatus
STAGE_STATUS_REFUSED: StageStatus
STAGE_STATUS_NEXT_FAILED: StageStatus

class StageRequest(_message.Message):
    __slots__ = ("fingerprint", "kind", "version", "base", "driver", "microbatch", "first_stage", "stop_stage", "lengths", "dropout_seed", "weight", "session", "dtype", "has_tensor", "has_input", "wants_tensor", "without_adapter", "text", "start", "rest", "is_chained", "is_backward")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    DRIVER_FIELD_NUMBER: _ClassVar[int]
    MICROBATCH_FIELD_NUMBER: _ClassVar[int]
    FIRST_STAGE_FIELD_NUMBER: _ClassVar[int]
    STOP_STAGE_FIELD_NUMBER: _ClassVar[int]
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    DROPOUT_SEED_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    HAS_TENSOR_FIELD_NUMBER: _ClassVar[int]
    HAS_INPUT_FIELD_NUMBER: _ClassVar[int]
    WANTS_TENSOR_FIELD_NUMBER: _ClassVar[int]
    WITHOUT_ADAPTER_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    REST_FIELD_NUMBER: _ClassVar[int]
    IS_CHAINED_FIELD_NUMBER: _ClassVar[int]
    IS_BACKWARD_FIELD_NUMBER: _ClassVar[int]
    fingerprint: str
    kind: StageKind
    version: int
    base: str
    driver: str
    microbatch: int
    first_stage: int
    stop_stage: int
    lengths: _containers.RepeatedScalarFieldContainer[int]
    dropout_seed: int
    weight: int
    session: str
    dtype: str
    has_tensor: bool
    has_input: bool
    wants_tensor: bool
    without_adapter: bool
    text: str
    start: int
    rest: _containers.RepeatedCompositeFieldContainer[NextHop]
    is_chained: bool
    is_backward: bool
    def __init__(self, fingerprint: _Optional[str] = ..., kind: _Optional[_Union[StageKind, str]] = ..., version: _Optional[int] = ..., base: _Optional[str] = ..., driver: _Optional[str] = ..., microbatch: _Optional[int] = ..., first_stage: _Optional[int] = ..., stop_stage: _Optional[int] = ..., lengths: _Optional[_Iterable[int]] = ..., dropout_seed: _Optional[int] = ..., weight: _Optional[int] = ..., session: _Optional[str] = ..., dtype: _Optional[str] = ..., has_tensor: _Optional[bool] = ..., has_input: _Optional[bool] = ..., wants_tensor: _Optional[bool] = ..., without_adapter: _Optional[bool] = ..., text: _Optional[str] = ..., start: _Optional[int] = ..., rest: _Optional[_Iterable[_Union[NextHop, _Mapping]]] = ..., is_chained: _Optional[bool] = ..., is_backward: _Optional[bool] = ...) -> None: ...

class NextHop(_message.Message):
    __slots__ = ("peer_id", "first_stage", "stop_stage", "session")
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    FIRST_STAGE_FIELD_NUMBER: _ClassVar[int]
    STOP_STAGE_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    peer_id: str
    first_stage: int
    stop_stage: int
    session: str
    def __init__(self, peer_id: _Optional[str] = ..., first_stage: _Optional[int] = ..., stop_stage: _Optional[int] = ..., session: _Optional[str] = ...) -> None: ...

class StageReply(_message.Message):
    __slots__ = ("status", "reason", "retry_after_s", "version", "has_tensor", "tickets", "failed_peer")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_S_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    HAS_TENSOR_FIELD_NUMBER: _ClassVar[int]
    TICKETS_FIELD_NUMBER: _ClassVar[int]
    FAILED_PEER_FIELD_NUMBER: _ClassVar[int]
    status: StageStatus
    reason: str
    retry_after_s: float
    version: int
    has_tensor: bool
    tickets: _containers.RepeatedCompositeFieldContainer[StageTicket]
    failed_peer: str
    def __init__(self, status: _Optional[_Union[StageStatus, str]] = ..., reason: _Optional[str] = ..., retry_after_s: _Optional[float] = ..., version: _Optional[int] = ..., has_tensor: _Optional[bool] = ..., tickets: _Optional[_Iterable[_Union[StageTicket, _Mapping]]] = ..., failed_peer: _Optional[str] = ...) -> None: ...

class StageTicket(_message.Message):
    __slots__ = ("peer_id", "session", "work_s", "queue_s")
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    WORK_S_FIELD_NUMBER: _ClassVar[int]
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    peer_id: str
    session: str
    work_s: float
    queue_s: float
    def __init__(self, peer_id: _Optional[str] = ..., session: _Optional[str] = ..., work_s: _Optional[float] = ..., queue_s: _Optional[float] = ...) -> None: ...

class StageEnd(_message.Message):
    __slots__ = ("num_bytes", "crc32")
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    CRC32_FIELD_NUMBER: _ClassVar[int]
    num_bytes: int
    crc32: int
    def __init__(self, num_bytes: _Optional[int] = ..., crc32: _Optional[int] = ...) -> None: ...
