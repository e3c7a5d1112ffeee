from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Signed(_message.Message):
    __slots__ = ("body", "public_key", "signature")
    BODY_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    body: bytes
    public_key: bytes
    signature: bytes
    def __init__(self, body: _Optional[bytes] = ..., public_key: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class PeerRecord(_message.Message):
    __slots__ = ("fingerprint", "peer_id", "name", "addresses", "first_stage", "stop_stage", "state", "loss", "tokens_given", "progress", "at_s", "session", "drives", "stage_tokens_per_s", "capacity_stages", "protocol", "software")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    FIRST_STAGE_FIELD_NUMBER: _ClassVar[int]
    STOP_STAGE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_GIVEN_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    AT_S_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    DRIVES_FIELD_NUMBER: _ClassVar[int]
    STAGE_TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_STAGES_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    fingerprint: str
    peer_id: str
    name: str
    addresses: _containers.RepeatedScalarFieldContainer[str]
    first_stage: int
    stop_stage: int
    state: str
    loss: float
    tokens_given: int
    progress: RunProgress
    at_s: float
    session: str
    drives: bool
    stage_tokens_per_s: float
    capacity_stages: int
    protocol: int
    software: str
    def __init__(self, fingerprint: _Optional[str] = ..., peer_id: _Optional[str] = ..., name: _Optional[str] = ..., addresses: _Optional[_Iterable[str]] = ..., first_stage: _Optional[int] = ..., stop_stage: _Optional[int] = ..., state: _Optional[str] = ..., loss: _Optional[float] = ..., tokens_given: _Optional[int] = ..., progress: _Optional[_Union[RunProgress, _Mapping]] = ..., at_s: _Optional[float] = ..., session: _Optional[str] = ..., drives: _Optional[bool] = ..., stage_tokens_per_s: _Optional[float] = ..., capacity_stages: _Optional[int] = ..., protocol: _Optional[int] = ..., software: _Optional[str] = ...) -> None: ...

class RunProgress(_message.Message):
    __slots__ = ("version", "base_hash", "committed_tokens", "tokens", "tokens_per_s", "hashes")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BASE_HASH_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    HASHES_FIELD_NUMBER: _ClassVar[int]
    version: int
    base_hash: str
    committed_tokens: int
    tokens: int
    tokens_per_s: float
    hashes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, version: _Optional[int] = ..., base_hash: _Optional[str] = ..., committed_tokens: _Optional[int] = ..., tokens: _Optional[int] = ..., tokens_per_s: _Optional[float] = ..., hashes: _Optional[_Iterable[str]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol", "fingerprint", "clock_s", "software", "knock_port")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    CLOCK_S_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    KNOCK_PORT_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    fingerprint: str
    clock_s: float
    software: str
    knock_port: int
    def __init__(self, protocol: _Optional[int] = ..., fingerprint: _Optional[str] = ..., clock_s: _Optional[float] = ..., software: _Optional[str] = ..., knock_port: _Optional[int] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("protocol", "recipe", "clock_s", "state", "software", "port_is_open", "seen_at")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    CLOCK_S_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    PORT_IS_OPEN_FIELD_NUMBER: _ClassVar[int]
    SEEN_AT_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    recipe: Signed
    clock_s: float
    state: str
    software: str
    port_is_open: bool
    seen_at: str
    def __init__(self, protocol: _Optional[int] = ..., recipe: _Optional[_Union[Signed, _Mapping]] = ..., clock_s: _Optional[float] = ..., state: _Optional[str] = ..., software: _Optional[str] = ..., port_is_open: _Optional[bool] = ..., seen_at: _Optional[str] = ...) -> None: ...

class StateRequest(_message.Message):
    __slots__ = ("fingerprint", "stage", "protocol")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    fingerprint: str
    stage: int
    protocol: int
    def __init__(self, fingerprint: _Optional[str] = ..., stage: _Optional[int] = ..., protocol: _Optional[int] = ...) -> None: ...

class StateChunk(_message.Message):
    __slots__ = ("part", "end", "try_later", "header")
    PART_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    TRY_LATER_FIELD_NUMBER: _ClassVar[int]
    HEADER_FIELD_NUMBER: _ClassVar[int]
    part: bytes
    end: StateEnd
    try_later: str
    header: StateHeader
    def __init__(self, part: _Optional[bytes] = ..., end: _Optional[_Union[StateEnd, _Mapping]] = ..., try_later: _Optional[str] = ..., header: _Optional[_Union[StateHeader, _Mapping]] = ...) -> None: ...

class StateHeader(_message.Message):
    __slots__ = ("lineage", "version", "base_hash")
    LINEAGE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BASE_HASH_FIELD_NUMBER: _ClassVar[int]
    lineage: _containers.RepeatedScalarFieldContainer[str]
    version: int
    base_hash: str
    def __init__(self, lineage: _Optional[_Iterable[str]] = ..., version: _Optional[int] = ..., base_hash: _Optional[str] = ...) -> None: ...

class StateEnd(_message.Message):
    __slots__ = ("num_bytes", "sha256")
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    num_bytes: int
    sha256: bytes
    def __init__(self, num_bytes: _Optional[int] = ..., sha256: _Optional[bytes] = ...) -> None: ...
