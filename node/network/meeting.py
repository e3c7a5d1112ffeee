"""A public meeting point: a peer without a run that keeps the records of any, and may relay for those behind a router.

Nodes that know it find each other again when nobody else that they knew is there. It keeps what their own peers signed
a moment ago, of few runs and few peers each, and can read of it what is in the records: names, addresses, speeds.
"""

from __future__ import annotations

from hivemind.dht.node import DHTNode
from hivemind.dht.validation import DHTRecord, RecordValidatorBase

from node.network.dht import DHT_REPLY_S, RECORD_LIFETIME_S
from node.network.dht_bounds import RecordSerializer, RequestBounds
from node.network.malformed import Malformed
from node.network.processes import RunningP2P
from node.network.records import MAX_RECORD_BYTES, PeerRecordValidator, records_key, run_of

MAX_RUNS = 64


class AnyRunValidator(RecordValidatorBase):  # type: ignore[misc]
    """Lets in the records of any run that `PeerRecordValidator` would let in for its own, of `MAX_RUNS` at a time."""

    def __init__(self) -> None:
        self._runs: dict[str, PeerRecordValidator] = {}

    def validate(self, record: DHTRecord) -> bool:
        """Return whether the record is one of a run's, under that run's key, and not of a run too many."""
        if len(record.value) > MAX_RECORD_BYTES + 16:
            return False
        try:
            fingerprint = run_of(RecordSerializer.loads(record.value))
        except Malformed:
            return False
        if fingerprint is None:
            return False
        run = self._runs.get(fingerprint)
        if run is not None:
            return run.validate(record)
        self._runs = {name: one for name, one in self._runs.items() if one.num_alive}
        if len(self._runs) >= MAX_RUNS:
            return False
        run = PeerRecordValidator(records_key(fingerprint), lifetime_s=RECORD_LIFETIME_S)
        if not run.validate(record):
            return False
        self._runs[fingerprint] = run
        return True

    def count(self) -> tuple[int, int]:
        """Return how many runs have records that are alive, and how many those are."""
        alive = [run.num_alive for run in self._runs.values() if run.num_alive]
        return len(alive), sum(alive)


async def open_meeting_point(running: RunningP2P, validator: AnyRunValidator) -> DHTNode:
    """Begin to keep records; shut down what is returned at the end."""
    node = await DHTNode.create(
        p2p=running.p2p,
        record_validator=validator,
        authorizer=RequestBounds(),
        wait_timeout=DHT_REPLY_S,
        cache_refresh_before_expiry=0,
    )
    node.protocol.serializer = RecordSerializer
    return node
