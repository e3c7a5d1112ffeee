from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Standing(_message.Message):
    __slots__ = ("version", "base_hash", "committed_tokens")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BASE_HASH_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    version: int
    base_hash: str
    committed_tokens: int
    def __init__(self, version: _Optional[int] = ..., base_hash: _Optional[str] = ..., committed_tokens: _Optional[int] = ...) -> None: ...

class RoundMessage(_message.Message):
    __slots__ = ("fingerprint", "stage", "round", "call", "answer", "refusal", "open", "fail", "vote", "verdict", "ask", "tell", "ping")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    CALL_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    FAIL_FIELD_NUMBER: _ClassVar[int]
    VOTE_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    ASK_FIELD_NUMBER: _ClassVar[int]
    TELL_FIELD_NUMBER: _ClassVar[int]
    PING_FIELD_NUMBER: _ClassVar[int]
    fingerprint: str
    stage: int
    round: str
    call: RoundCall
    answer: RoundAnswer
    refusal: RoundRefusal
    open: RoundOpen
    fail: RoundFail
    vote: RoundVote
    verdict: RoundVerdict
    ask: RoundAsk
    tell: RoundTell
    ping: RoundPing
    def __init__(self, fingerprint: _Optional[str] = ..., stage: _Optional[int] = ..., round: _Optional[str] = ..., call: _Optional[_Union[RoundCall, _Mapping]] = ..., answer: _Optional[_Union[RoundAnswer, _Mapping]] = ..., refusal: _Optional[_Union[RoundRefusal, _Mapping]] = ..., open: _Optional[_Union[RoundOpen, _Mapping]] = ..., fail: _Optional[_Union[RoundFail, _Mapping]] = ..., vote: _Optional[_Union[RoundVote, _Mapping]] = ..., verdict: _Optional[_Union[RoundVerdict, _Mapping]] = ..., ask: _Optional[_Union[RoundAsk, _Mapping]] = ..., tell: _Optional[_Union[RoundTell, _Mapping]] = ..., ping: _Optional[_Union[RoundPing, _Mapping]] = ...) -> None: ...

class RoundCall(_message.Message):
    __slots__ = ("standing", "base_round", "budget_s", "settings")
    STANDING_FIELD_NUMBER: _ClassVar[int]
    BASE_ROUND_FIELD_NUMBER: _ClassVar[int]
    BUDGET_S_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    standing: Standing
    base_round: str
    budget_s: float
    settings: str
    def __init__(self, standing: _Optional[_Union[Standing, _Mapping]] = ..., base_round: _Optional[str] = ..., budget_s: _Optional[float] = ..., settings: _Optional[str] = ...) -> None: ...

class RoundAnswer(_message.Message):
    __slots__ = ("weight", "tokens", "alive")
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    ALIVE_FIELD_NUMBER: _ClassVar[int]
    weight: int
    tokens: int
    alive: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, weight: _Optional[int] = ..., tokens: _Optional[int] = ..., alive: _Optional[_Iterable[str]] = ...) -> None: ...

class RoundRefusal(_message.Message):
    __slots__ = ("reason", "standing")
    REASON_FIELD_NUMBER: _ClassVar[int]
    STANDING_FIELD_NUMBER: _ClassVar[int]
    reason: int
    standing: Standing
    def __init__(self, reason: _Optional[int] = ..., standing: _Optional[_Union[Standing, _Mapping]] = ...) -> None: ...

class RoundOpen(_message.Message):
    __slots__ = ("shares",)
    SHARES_FIELD_NUMBER: _ClassVar[int]
    shares: _containers.RepeatedCompositeFieldContainer[RoundShare]
    def __init__(self, shares: _Optional[_Iterable[_Union[RoundShare, _Mapping]]] = ...) -> None: ...

class RoundShare(_message.Message):
    __slots__ = ("peer_id", "weight", "tokens", "start", "stop")
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    peer_id: str
    weight: int
    tokens: int
    start: int
    stop: int
    def __init__(self, peer_id: _Optional[str] = ..., weight: _Optional[int] = ..., tokens: _Optional[int] = ..., start: _Optional[int] = ..., stop: _Optional[int] = ...) -> None: ...

class RoundFail(_message.Message):
    __slots__ = ("suspect", "reason")
    SUSPECT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    suspect: str
    reason: str
    def __init__(self, suspect: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class RoundVote(_message.Message):
    __slots__ = ("digest",)
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    digest: str
    def __init__(self, digest: _Optional[str] = ...) -> None: ...

class RoundVerdict(_message.Message):
    __slots__ = ("committed", "digest", "reason")
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    committed: bool
    digest: str
    reason: str
    def __init__(self, committed: _Optional[bool] = ..., digest: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class RoundAsk(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RoundTell(_message.Message):
    __slots__ = ("knowledge", "digest")
    KNOWLEDGE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    knowledge: int
    digest: str
    def __init__(self, knowledge: _Optional[int] = ..., digest: _Optional[str] = ...) -> None: ...

class RoundPing(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RoundReceipt(_message.Message):
    __slots__ = ("is_known",)
    IS_KNOWN_FIELD_NUMBER: _ClassVar[int]
    is_known: bool
    def __init__(self, is_known: _Optional[bool] = ...) -> None: ...

class RoundPartHeader(_message.Message):
    __slots__ = ("fingerprint", "stage", "round")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    fingerprint: str
    stage: int
    round: str
    def __init__(self, fingerprint: _Optional[str] = ..., stage: _Optional[int] = ..., round: _Optional[str] = ...) -> None: ...

class RoundPartEnd(_message.Message):
    __slots__ = ("num_bytes", "digest", "norm_sq")
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    NORM_SQ_FIELD_NUMBER: _ClassVar[int]
    num_bytes: int
    digest: bytes
    norm_sq: float
    def __init__(self, num_bytes: _Optional[int] = ..., digest: _Optional[bytes] = ..., norm_sq: _Optional[float] = ...) -> None: ...
