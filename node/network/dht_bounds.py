"""What hivemind's DHT does not bound by itself: depth and size of what comes in, and how much one call asks for.

Three things were found in it. Its reader of msgpack calls itself for each level of nesting, on the C stack: 1.2 kB from
anybody end the process. A call may ask for the same key any number of times, and each time the whole dictionary goes
into the answer. And an id that is none makes a task fail that nobody waits for.
"""

from __future__ import annotations

import math
from typing import Any

import msgpack
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.p2p import P2P, P2PContext
from hivemind.proto import dht_pb2
from hivemind.utils import MSGPackSerializer
from hivemind.utils.auth import AuthorizerBase

from node.core.types import PeerId
from node.network.malformed import Malformed
from node.network.quotas import Bounded, Gate, Quota

MAX_RECORDS = 256
"""Peers of one run that are kept here."""
MAX_VALUE_BYTES = 2 << 20
"""A dictionary of as many records, each as long as may be."""
_MAX_KEYS = 2
"""That a call may ask for: nodes ask for one, and two such dictionaries fit into a message."""
_ID_BYTES = 20
_RESULT_TYPES = (dht_pb2.NOT_FOUND, dht_pb2.FOUND_REGULAR, dht_pb2.FOUND_DICTIONARY)
_DICTIONARY = 0x50
"""hivemind's code for a dictionary of subkeys."""


class RecordSerializer:
    """hivemind's msgpack with its dictionaries, and nothing nested; a stand-in for `MSGPackSerializer`."""

    @staticmethod
    def dumps(value: object) -> bytes:
        """Return the bytes of a value."""
        packed: bytes = MSGPackSerializer.dumps(value)
        return packed

    @staticmethod
    def loads(data: bytes) -> object:
        """Return a text, bytes, None, or a dictionary of subkeys.

        Raises:
            Malformed: it is something else, too long, or damaged.
        """
        if len(data) > MAX_VALUE_BYTES:
            raise Malformed(f"a value of {len(data)} bytes")
        value = _unpack(data)
        if isinstance(value, msgpack.ExtType) and value.code == _DICTIONARY:
            return _dictionary(value.data)
        if value is not None and not isinstance(value, (str, bytes)):
            raise Malformed(f"a value of type {type(value).__name__}")
        return value


def _unpack(data: bytes) -> Any:
    try:
        return msgpack.unpackb(data, raw=False)  # without hivemind's hook for extensions nothing calls itself
    except (ValueError, msgpack.UnpackException, RecursionError, OverflowError) as error:
        raise Malformed(f"no msgpack: {type(error).__name__}") from None


def _dictionary(data: bytes) -> DictionaryDHTValue:
    found = _unpack(data)
    if not isinstance(found, list) or len(found) != 3 or not isinstance(found[2], list) or len(found[2]) > MAX_RECORDS:
        raise Malformed("no dictionary of subkeys, or too many of them")
    made = DictionaryDHTValue()
    with made.freeze():
        for item in found[2]:
            if not isinstance(item, list) or len(item) != 3:
                raise Malformed("no subkey with a value and a time")
            subkey, value, expires = item
            if not (isinstance(subkey, str) and isinstance(value, bytes) and isinstance(expires, (int, float))):
                raise Malformed("no subkey with a value and a time")
            if not math.isfinite(expires):
                raise Malformed(f"a record that expires at {expires}")
            made.store(subkey, value, float(expires))
    return made


_MAX_CALL_BYTES = MAX_VALUE_BYTES + 4096
DHT_QUOTA = Quota(requests_per_s=50, burst=300)
"""Calls of one peer; an honest one makes a few a second."""


class RequestBounds(AuthorizerBase):  # type: ignore[misc]
    """Refuses calls of the DHT that ask for too much; hivemind asks its authorizer before it does anything."""

    async def validate_request(self, request: Any) -> bool:
        """Return True if the call is in order.

        Raises:
            Malformed: it is not; the caller is told so.
        """
        keys = () if isinstance(request, dht_pb2.PingRequest) else request.keys
        if len(keys) > _MAX_KEYS or any(len(key) > _ID_BYTES for key in (*keys, request.peer.node_id)):
            raise Malformed("a call with too many keys, or with one that is none")
        if isinstance(request, dht_pb2.StoreRequest):
            others = (request.subkeys, request.values, request.expiration_time, request.in_cache)
            if any(len(other) != len(keys) for other in others):
                raise Malformed("keys, values and times differ in number")
        return True

    async def sign_request(self, request: Any, service_public_key: Any) -> None:
        """Leave a call as it is."""

    async def sign_response(self, response: Any, request: Any) -> None:
        """Leave an answer as it is."""

    async def validate_response(self, response: Any, request: Any) -> bool:  # noqa: ARG002
        """Return True if an answer has the form of one; the values in it are checked where they are read.

        Raises:
            Malformed: it has not; the search goes on without it.
        """
        results = response.results if isinstance(response, dht_pb2.FindResponse) else ()
        ids = [response.peer.node_id, *(id for result in results for id in result.nearest_node_ids)]
        if any(len(id) > _ID_BYTES for id in ids) or any(result.type not in _RESULT_TYPES for result in results):
            raise Malformed("an answer with an id or a kind of value that is none")
        return True


def dht_key(name: str) -> bytes:
    """Return the key under which the DHT keeps `name`."""
    key: bytes = DHTID.generate(source=name).to_bytes()
    return key


class GatedP2P(P2P):  # type: ignore[misc]
    """hivemind's handle on the daemon, which counts each peer's calls of the DHT and parses none that is too long."""

    gate: Gate | None = None

    async def add_protobuf_handler(self, name: str, handler: Any, input_protobuf_type: Any, **options: Any) -> None:
        """Register a handler; one of the DHT's gets the quota."""
        if name.startswith("DHTProtocol."):
            input_protobuf_type, called = Bounded(input_protobuf_type, _MAX_CALL_BYTES), handler

            async def handler(request: Any, context: P2PContext) -> Any:
                if self.gate is not None:
                    self.gate.request(PeerId(context.remote_id.to_base58()))
                return await called(request, context)

        await super().add_protobuf_handler(name, handler, input_protobuf_type, **options)
