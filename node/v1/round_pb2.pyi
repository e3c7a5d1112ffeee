from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Standing(_message.Message):
    __slots__ = ("version", "base_hash", "committed_tokens", "hashes")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BASE_HASH_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    HASHES_FIELD_NUMBER: _ClassVar[int]
    version: int
    base_hash: str
    committed_tokens: int
    hashes: _containers.RepeatedCompositeFieldContainer[StageHash]
    def __init__(self, version: _Optional[int] = ..., base_hash: _Optional[str] = ..., committed_tokens: _Optional[int] = ..., hashes: _Optional[_Iterable[_Union[StageHash, _Mapping]]] = ...) -> None: ...

class StageHash(_message.Message):
    __slots__ = ("stage", "hash")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    stage: int
    hash: str
    def __init__(self, stage: _Optional[int] = ..., hash: _Optional[str] = ...) -> None: ...

class RoundMessage(_message.Message):
    __slots__ = ("fingerprint", "round", "call", "answer", "refusal", "open", "fail", "vote", "verdict", "ask", "tell", "ping")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
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
    def __init__(self, fingerprint: _Optional[str] = ..., round: _Optional[str] = ..., call: _Optional[_Union[RoundCall, _Mapping]] = ..., answer: _Optional[_Union[RoundAnswer, _Mapping]] = ..., refusal: _Optional[_Union[RoundRefusal, _Mapping]] = ..., open: _Optional[_Union[RoundOpen, _Mapping]] = ..., fail: _Optional[_Union[RoundFail, _Mapping]] = ..., vote: _Optional[_Union[RoundVote, _Mapping]] = ..., verdict: _Optional[_Union[RoundVerdict, _Mapping]] = ..., ask: _Optional[_Union[RoundAsk, _Mapping]] = ..., tell: _Optional[_Union[RoundTell, _Mapping]] = ..., ping: _Optional[_Union[RoundPing, _Mapping]] = ...) -> None: ...

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
    __slots__ = ("weight", "tokens", "shard", "session", "stages", "alive", "doubts")
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    ALIVE_FIELD_NUMBER: _ClassVar[int]
    DOUBTS_FIELD_NUMBER: _ClassVar[int]
    weight: int
    tokens: int
    shard: RoundShard
    session: str
    stages: _containers.RepeatedCompositeFieldContainer[RoundStage]
    alive: _containers.RepeatedCompositeFieldContainer[RoundSeen]
    doubts: _containers.RepeatedCompositeFieldContainer[RoundDoubt]
    def __init__(self, weight: _Optional[int] = ..., tokens: _Optional[int] = ..., shard: _Optional[_Union[RoundShard, _Mapping]] = ..., session: _Optional[str] = ..., stages: _Optional[_Iterable[_Union[RoundStage, _Mapping]]] = ..., alive: _Optional[_Iterable[_Union[RoundSeen, _Mapping]]] = ..., doubts: _Optional[_Iterable[_Union[RoundDoubt, _Mapping]]] = ...) -> None: ...

class RoundShard(_message.Message):
    __slots__ = ("first_stage", "stop_stage")
    FIRST_STAGE_FIELD_NUMBER: _ClassVar[int]
    STOP_STAGE_FIELD_NUMBER: _ClassVar[int]
    first_stage: int
    stop_stage: int
    def __init__(self, first_stage: _Optional[int] = ..., stop_stage: _Optional[int] = ...) -> None: ...

class RoundStage(_message.Message):
    __slots__ = ("stage", "num_values", "hash")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    NUM_VALUES_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    stage: int
    num_values: int
    hash: str
    def __init__(self, stage: _Optional[int] = ..., num_values: _Optional[int] = ..., hash: _Optional[str] = ...) -> None: ...

class RoundSeen(_message.Message):
    __slots__ = ("peer_id", "shard")
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    peer_id: str
    shard: RoundShard
    def __init__(self, peer_id: _Optional[str] = ..., shard: _Optional[_Union[RoundShard, _Mapping]] = ...) -> None: ...

class RoundDoubt(_message.Message):
    __slots__ = ("peer_id", "session")
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    peer_id: str
    session: str
    def __init__(self, peer_id: _Optional[str] = ..., session: _Optional[str] = ...) -> None: ...

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
    __slots__ = ("peer_id", "weight", "tokens", "shard", "session", "spans")
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SPANS_FIELD_NUMBER: _ClassVar[int]
    peer_id: str
    weight: int
    tokens: int
    shard: RoundShard
    session: str
    spans: _containers.RepeatedCompositeFieldContainer[RoundSpan]
    def __init__(self, peer_id: _Optional[str] = ..., weight: _Optional[int] = ..., tokens: _Optional[int] = ..., shard: _Optional[_Union[RoundShard, _Mapping]] = ..., session: _Optional[str] = ..., spans: _Optional[_Iterable[_Union[RoundSpan, _Mapping]]] = ...) -> None: ...

class RoundSpan(_message.Message):
    __slots__ = ("stage", "start", "stop")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    stage: int
    start: int
    stop: int
    def __init__(self, stage: _Optional[int] = ..., start: _Optional[int] = ..., stop: _Optional[int] = ...) -> None: ...

class RoundFail(_message.Message):
    __slots__ = ("suspect", "reason")
    SUSPECT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    suspect: str
    reason: str
    def __init__(self, suspect: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class RoundVote(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[RoundResult]
    def __init__(self, results: _Optional[_Iterable[_Union[RoundResult, _Mapping]]] = ...) -> None: ...

class RoundResult(_message.Message):
    __slots__ = ("stage", "owner", "digest")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    stage: int
    owner: str
    digest: str
    def __init__(self, stage: _Optional[int] = ..., owner: _Optional[str] = ..., digest: _Optional[str] = ...) -> None: ...

class RoundVerdict(_message.Message):
    __slots__ = ("committed", "reason", "results", "must_discard")
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    MUST_DISCARD_FIELD_NUMBER: _ClassVar[int]
    committed: bool
    reason: str
    results: _containers.RepeatedCompositeFieldContainer[RoundResult]
    must_discard: bool
    def __init__(self, committed: _Optional[bool] = ..., reason: _Optional[str] = ..., results: _Optional[_Iterable[_Union[RoundResult, _Mapping]]] = ..., must_discard: _Optional[bool] = ...) -> None: ...

class RoundAsk(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RoundTell(_message.Message):
    __slots__ = ("knowledge", "results")
    KNOWLEDGE_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    knowledge: int
    results: _containers.RepeatedCompositeFieldContainer[RoundResult]
    def __init__(self, knowledge: _Optional[int] = ..., results: _Optional[_Iterable[_Union[RoundResult, _Mapping]]] = ...) -> None: ...

class RoundPing(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RoundReceipt(_message.Message):
    __slots__ = ("is_known",)
    IS_KNOWN_FIELD_NUMBER: _ClassVar[int]
    is_known: bool
    def __init__(self, is_known: _Optional[bool] = ...) -> None: ...

class RoundPartHeader(_message.Message):
    __slots__ = ("fingerprint", "round", "weights")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    fingerprint: str
    round: str
    weights: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, fingerprint: _Optional[str] = ..., round: _Optional[str] = ..., weights: _Optional[_Iterable[int]] = ...) -> None: ...

class RoundPartEnd(_message.Message):
    __slots__ = ("num_bytes", "digests", "norms_sq")
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    NORMS_SQ_FIELD_NUMBER: _ClassVar[int]
    num_bytes: int
    digests: _containers.RepeatedScalarFieldContainer[bytes]
    norms_sq: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, num_bytes: _Optional[int] = ..., digests: _Optional[_Iterable[bytes]] = ..., norms_sq: _Optional[_Iterable[float]] = ...) -> None: ...
