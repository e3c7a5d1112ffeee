from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WeightKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WEIGHT_KIND_UNSPECIFIED: _ClassVar[WeightKind]
    WEIGHT_KIND_MANIFEST: _ClassVar[WeightKind]
    WEIGHT_KIND_HELD: _ClassVar[WeightKind]
    WEIGHT_KIND_FILE: _ClassVar[WeightKind]
    WEIGHT_KIND_TENSOR: _ClassVar[WeightKind]

class WeightStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WEIGHT_STATUS_UNSPECIFIED: _ClassVar[WeightStatus]
    WEIGHT_STATUS_OK: _ClassVar[WeightStatus]
    WEIGHT_STATUS_BUSY: _ClassVar[WeightStatus]
    WEIGHT_STATUS_ABSENT: _ClassVar[WeightStatus]
WEIGHT_KIND_UNSPECIFIED: WeightKind
WEIGHT_KIND_MANIFEST: WeightKind
WEIGHT_KIND_HELD: WeightKind
WEIGHT_KIND_FILE: WeightKind
WEIGHT_KIND_TENSOR: WeightKind
WEIGHT_STATUS_UNSPECIFIED: WeightStatus
WEIGHT_STATUS_OK: WeightStatus
WEIGHT_STATUS_BUSY: WeightStatus
WEIGHT_STATUS_ABSENT: WeightStatus

class WeightRequest(_message.Message):
    __slots__ = ("fingerprint", "kind", "name", "offset")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    fingerprint: str
    kind: WeightKind
    name: str
    offset: int
    def __init__(self, fingerprint: _Optional[str] = ..., kind: _Optional[_Union[WeightKind, str]] = ..., name: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class WeightReply(_message.Message):
    __slots__ = ("status", "num_bytes")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    status: WeightStatus
    num_bytes: int
    def __init__(self, status: _Optional[_Union[WeightStatus, str]] = ..., num_bytes: _Optional[int] = ...) -> None: ...

class WeightEnd(_message.Message):
    __slots__ = ("num_bytes",)
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    num_bytes: int
    def __init__(self, num_bytes: _Optional[int] = ...) -> None: ...
