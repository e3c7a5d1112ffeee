"""Everything that Potluck raises on purpose.

    NodeError(message, *, hint)              exit code
     ├─ ConfigError                          2   file, field, value, what is allowed
     ├─ NotRunning                           3   no daemon under this home
     ├─ SwarmError (transient)               4   NoPeerReachable · NoReplica(stages) · StaleVersion · NeedsInput
     │   └─ PeerError(peer_id)                   PeerTimeout · PeerBusy(retry_after_s)
     │       └─ ProtocolViolation                not transient
     ├─ DataError                            5   file, line, what was expected
     ├─ ResourceError                        6   OutOfDeviceMemory · OutOfDisk
     ├─ RunMismatch                          7   peer and we disagree: which fields
     ├─ ModelError                           8   UnsupportedModel · WeightsMissing · BackendUnavailable
     └─ CheckpointError                      9
         └─ NewerFormat                          written by a newer Potluck; not damaged

`transient` decides whether a retry makes sense, `hint` says what the person can do, and each exit code
has a row in `docs/operations.md`. Anything else that is raised is a bug: traceback, exit code 70.
"""

from __future__ import annotations

from typing import ClassVar


class NodeError(Exception):
    """An error with a message for people: what happened, why (with the values), and a hint of what to do."""

    exit_code: ClassVar[int] = 1
    transient: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class ConfigError(NodeError):
    """A recipe, a setting or a flag is wrong."""

    exit_code = 2


class NotRunning(NodeError):
    """There is no running node under this home."""

    exit_code = 3


class SwarmError(NodeError):
    """Something between the peers failed; trying again may help."""

    exit_code = 4
    transient = True


class NoPeerReachable(SwarmError):
    """None of the given addresses answered."""


class NoReplica(SwarmError):
    """Nobody who is alive holds some stages."""

    def __init__(self, message: str, *, stages: tuple[int, ...], hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.stages = stages


class StaleVersion(SwarmError):
    """An adapter is at another version than the caller counts on; the microbatch has to start again."""

    def __init__(self, message: str, *, version: int) -> None:
        super().__init__(message)
        self.version = version


class NeedsInput(SwarmError):
    """A stage does not keep a microbatch's input any more; the caller has to send it again."""


class PeerError(SwarmError):
    """One peer failed."""

    def __init__(self, message: str, *, peer_id: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.peer_id = peer_id


class PeerTimeout(PeerError):
    """A peer did not answer by its deadline."""


class PeerBusy(PeerError):
    """A peer asked to be called again later."""

    def __init__(self, message: str, *, peer_id: str, retry_after_s: float, hint: str = "") -> None:
        super().__init__(message, peer_id=peer_id, hint=hint)
        self.retry_after_s = retry_after_s


class ProtocolViolation(PeerError):
    """A peer sent what no honest peer of this version sends."""

    transient = False


class DataError(NodeError):
    """A row or a file of training data is unusable."""

    exit_code = 5


class ResourceError(NodeError):
    """This machine has too little of something."""

    exit_code = 6


class OutOfDeviceMemory(ResourceError):
    """The model or a step does not fit into the device's memory."""


class OutOfDisk(ResourceError):
    """A file could not be written because the disk is full or read-only."""


class RunMismatch(NodeError):
    """This node and the swarm disagree about what is trained."""

    exit_code = 7


class ModelError(NodeError):
    """The base model cannot be used."""

    exit_code = 8


class UnsupportedModel(ModelError):
    """The model's family, or something in its configuration, is not supported."""


class WeightsMissing(ModelError):
    """The weights are not where the recipe says."""


class BackendUnavailable(ModelError):
    """A library or a kernel that the recipe needs does not work here."""


class CheckpointError(NodeError):
    """A checkpoint is torn, corrupt, or of another run."""

    exit_code = 9


class NewerFormat(CheckpointError):
    """A file was written by a newer Potluck: it is whole, and nothing older may take its place."""
