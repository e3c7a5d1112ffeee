"""What each guard is there for: an attack that does harm without it, and how the guard is switched off."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import io
import json
import math
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from google.protobuf.message import Message
from hivemind.dht.validation import DHTRecord
from hivemind.proto import dht_pb2
from rich.console import Console

from hostile import files, seeds
from hostile.cost import Peak
from hostile.mutate import varint
from hostile.streams import PEERS
from node.config import yaml_tree
from node.core.errors import NodeError
from node.core.events import Fault
from node.core.types import PeerId
from node.core.versions import PROTOCOL
from node.data import formats
from node.model import weights
from node.network import dht_bounds, frames, messages, quotas, records, rounds
from node.network.dht import RECORD_LIFETIME_S
from node.network.malformed import Malformed
from node.observe import log, progress, status
from node.pipeline import hops, replies
from node.trust import identity
from node.v1 import control_pb2, round_pb2

ESCAPES = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp.exe\r\n"


@dataclasses.dataclass(frozen=True)
class Guard:
    """`attack` raises if harm was done; `off` is (module, name, what stands there without the guard)."""

    attack: Callable[[Path], None]
    off: tuple[object, str, object]


def nested_msgpack(folder: Path) -> None:
    """Read 1.2 kB of nested tuples in a process of its own: on the C stack each takes some 20 kB."""
    source = "hivemind.utils.MSGPackSerializer" if SWITCH["msgpack"] else "node.network.dht_bounds.RecordSerializer"
    module, name = source.rsplit(".", 1)
    program = (
        f"from {module} import {name} as Serializer\nimport struct\ndata = b'\\x90'\n"
        "for _ in range(1500):\n    data = b'\\x91\\xc9' + struct.pack('>I', len(data)) + b'\\x40' + data\n"
        "try:\n    Serializer.loads(data)\nexcept ValueError:\n    pass\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, cwd=files.__file__.rsplit("/tests/")[0]
    )
    assert ended.returncode == 0, f"the process ended with {ended.returncode}"


SWITCH = {"msgpack": False, "bytes": 1024}


def million_of_messages(folder: Path) -> None:
    """Send as many empty results as fit into what the daemon lets through."""
    results = b"\x0a\x00" * 1_990_000  # made by hand, or the memory would be there already
    data = b"\x4a" + varint(len(results)) + results
    kind = quotas.Bounded(round_pb2.RoundMessage, rounds.MAX_MESSAGE_BYTES)
    peak, message = Peak(), None
    peak.reset()
    with contextlib.suppress(Malformed):
        message = kind.FromString(data)
    assert message is None or peak.growth_bytes() < 64 << 20, f"{peak.growth_bytes() >> 20} MB"


def _stored(world, **changes) -> bool:
    value, expires = world.record()
    fields = {"key": dht_bounds.dht_key(seeds.KEY), "subkey": world.identity.peer_id, "value": value}
    fields |= {"expiration_time": expires} | changes
    pack = dht_bounds.RecordSerializer.dumps
    record = DHTRecord(fields["key"], pack(fields["subkey"]), pack(fields["value"]), fields["expiration_time"])
    return records.PeerRecordValidator(seeds.KEY, lifetime_s=RECORD_LIFETIME_S).validate(record)


def replayed_record(folder: Path) -> None:
    """Let a peer live on after its death, or die early, with its own record."""
    world = seeds.World(folder)
    assert _stored(world)
    for later_s in (10.0, -15.0):
        assert not _stored(world, expiration_time=time.time() + RECORD_LIFETIME_S + later_s)


def record_of_next_year(folder: Path) -> None:
    """Store a record that stays: of a clock that is a year ahead."""
    world = seeds.World(folder)
    real = time.time
    try:
        time.time = lambda: real() + 3e7
        value, expires = world.record()
    finally:
        time.time = real
    assert not _stored(world, value=value, expiration_time=expires)


def other_key(folder: Path) -> None:
    """Use the swarm's memory for something else."""
    assert not _stored(seeds.World(folder), key=dht_bounds.dht_key("films"))


class _Named:
    def __init__(self, number: int) -> None:
        self.peer_id, self.at_s, self.protocol = f"Qm{number}", time.time(), PROTOCOL


def too_many_records(folder: Path) -> None:
    """Be ten thousand peers (each signature is taken for good, to spare the keys)."""
    validator = records.PeerRecordValidator(seeds.KEY, lifetime_s=RECORD_LIFETIME_S)
    real, accepted, pack = records._open, 0, dht_bounds.RecordSerializer.dumps
    try:
        for number in range(10_000):
            record = _Named(number)
            records._open = lambda _, record=record: record
            accepted += validator.validate(
                DHTRecord(
                    dht_bounds.dht_key(seeds.KEY), pack(record.peer_id), pack(b"x"), record.at_s + RECORD_LIFETIME_S
                )
            )
    finally:
        records._open = real
    assert accepted <= 256, f"{accepted} records were let in"


def same_key_a_thousand_times(folder: Path) -> None:
    """Ask for one key as often as fits into a call, and get the dictionary as often."""
    request = dht_pb2.FindRequest(keys=[dht_bounds.dht_key(seeds.KEY)] * 10_000)
    try:
        asyncio.run(dht_bounds.RequestBounds().validate_request(request))
    except Malformed:
        return
    raise AssertionError("ten thousand copies of the dictionary would be put together")


def thousand_streams(folder: Path) -> None:
    """Open more streams than one peer may."""
    told: list[str] = []
    gate = quotas.Gate("stages", quotas.Quota(streams=256, streams_of_peer=64), told=told.append)
    with contextlib.ExitStack() as stack:
        opened = 0
        for _ in range(1000):
            with contextlib.suppress(quotas.OverQuota):
                stack.enter_context(gate.stream(PeerId(PEERS[0])))
                opened += 1
        stack.enter_context(gate.stream(PeerId(PEERS[1])))  # another one has room
    assert opened == 64, opened
    assert len(told) == 1, "said once"
    assert "quota streams_of_peer" in told[0], told


def hundred_thousand_words(folder: Path) -> None:
    """Send words faster than any round does."""
    gate = quotas.Gate("rounds", rounds._QUOTA, told=lambda _: None)
    taken = 0
    for _ in range(5000):
        try:
            gate.request(PeerId(PEERS[0]))
        except quotas.OverQuota:
            continue
        taken += 1
    assert taken < 2500, taken
    gate.request(PeerId(PEERS[1]))


def escapes_on_the_screen(folder: Path) -> None:
    """Be called what controls a terminal, in news, status, errors and logs."""
    shown = [progress.headline(Fault(f"The peer {ESCAPES} left.")) or ""]
    answer = control_pb2.GetStatusResponse(run_name=ESCAPES, state=ESCAPES, addresses=[ESCAPES], base_model=ESCAPES)
    answer.peers.add(peer_id=PEERS[0], name=ESCAPES * 1000, state=ESCAPES, adapter_hash=ESCAPES)
    out = io.StringIO()
    Console(file=out, force_terminal=False, width=200).print(status.render_status(answer))
    shown.append(out.getvalue())
    shown.append(log.json_line(Fault(ESCAPES)))
    for line in shown:
        assert not set(line) & set(ESCAPES.replace("\n", "")) - set(PRINTABLE), repr(line)[:200]
    assert len(shown[1]) < 20_000
    assert json.loads(shown[2])["what"] == ESCAPES


PRINTABLE = [chr(code) for code in range(32, 127)]


def not_a_time(folder: Path) -> None:
    """Say that a piece of work took no number of seconds, and less than none."""
    reply = replies.pb.StageReply(status=replies.pb.STAGE_STATUS_DONE)
    for work_s in (math.nan, -1e9, math.inf):
        reply.tickets.add(peer_id=PEERS[0], work_s=work_s, queue_s=work_s)
    visit = seeds.visit()
    hops.RemoteHop._note(visit, reply, 2.0)
    assert 0 <= visit.work_s[PEERS[0]] <= 6.0, visit.work_s


def half_a_character(folder: Path) -> None:
    """Have a row whose text was cut in the middle of an emoji."""
    path = folder / "rows.jsonl"
    path.write_text('{"text": "so nice \\ud83d"}\n')
    with contextlib.suppress(NodeError):
        files.Files(folder, files_tokenizer()).targets()[2].run(path.read_bytes())


def files_tokenizer():
    from hostile.tokenizer import byte_tokenizer

    return byte_tokenizer()


def key_of_an_unknown_kind(folder: Path) -> None:
    """Sign with a key of an algorithm that nobody knows."""
    key = bytearray(seeds.World(folder).identity.public_key)
    key[key.index(b"\x2a\x86\x48\x86\xf7")] ^= 2
    assert identity.verify("run", identity.SignedBytes(b"x", bytes(key), b"s")) is None


def message_of_many_lines(folder: Path) -> None:
    """Have a file whose complaint is a page of somebody else's."""
    path = folder / "model.safetensors"
    header = json.dumps({"a" * 3000: {"dtype": "F32", "shape": [1], "data_offsets": [0, 400]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    try:
        weights.read_header(path)
    except NodeError as error:
        files.refused_well(error)


def byte_by_byte(folder: Path) -> None:
    """Begin a frame, and never go on; of a twentieth of the time that it may take."""
    _slowly(lambda reader: frames.read_frame(reader, round_pb2.RoundPartHeader(), max_bytes=99), ("_FRAME_S",))


def byte_by_byte_in_a_tensor(folder: Path) -> None:
    """Begin with the bytes that were announced, and never go on; of a twentieth of the time."""
    _slowly(lambda reader: frames.read_bulk(reader, 100_000), ("_TRICKLE_S",))


def _slowly(read: Callable[[asyncio.StreamReader], Awaitable[object]], deadlines: tuple[str, ...]) -> None:
    async def wait() -> None:
        reader = asyncio.StreamReader()
        reader.feed_data(b"\x00")
        began = asyncio.get_running_loop().time()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(read(reader), 1.0)
        assert asyncio.get_running_loop().time() - began < 0.9, "the stream was not cut"

    was = {name: getattr(frames, name) for name in deadlines}
    try:
        for name, seconds in was.items():
            setattr(frames, name, seconds / 20)
        asyncio.run(wait())
    finally:
        for name, seconds in was.items():
            setattr(frames, name, seconds)


def four_gibibytes(folder: Path) -> None:
    """Declare a message of 4 GiB in hivemind's form, and send a MiB of it."""

    async def wait() -> None:
        reader = asyncio.StreamReader()
        reader.feed_data(b"\x00" + (1 << 32).to_bytes(8, "big") + bytes(1 << 20))
        with contextlib.suppress(Malformed):
            await asyncio.wait_for(messages.read_message(reader, round_pb2.RoundPing(), max_bytes=SWITCH["bytes"]), 0.2)

    try:
        asyncio.run(wait())
    except TimeoutError:
        raise AssertionError("the node waits for the rest") from None


def brackets_without_end(folder: Path) -> None:
    """Nest a recipe as deep as Python goes."""
    source = "a: " + "[" * 900 + "]" * 900
    began = time.process_time()
    try:
        yaml_tree.parse_yaml(source, "recipe.yaml")
    except NodeError as error:
        took = time.process_time() - began
        assert "nested" in error.message, error  # noqa: PT017
        assert "YAML()" not in error.message  # noqa: PT017
        assert took < 0.05, f"{took:.2f} s"


def _identity(value: str, *_: object) -> str:
    return value


class _Trusting(quotas.Bounded):
    def FromString(self, data: bytes) -> Message:
        return self._kind.FromString(data)


_UNBOUNDED = quotas.Quota(streams=10**9, streams_of_peer=10**9, requests_per_s=1e9, burst=10**9)
GUARDS = {
    "nesting in the DHT": Guard(nested_msgpack, (SWITCH, "msgpack", True)),
    "length before parsing": Guard(million_of_messages, (quotas, "Bounded", _Trusting)),
    "time of a record": Guard(replayed_record, (records, "_WRITING_S", math.inf)),
    "clock of a record": Guard(record_of_next_year, (records, "_CLOCK_S", math.inf)),
    "key of a record": Guard(other_key, (records, "dht_key", lambda _: dht_bounds.dht_key("films"))),
    "number of records": Guard(too_many_records, (records, "MAX_RECORDS", 10**9)),
    "keys of a call": Guard(same_key_a_thousand_times, (dht_bounds, "_MAX_KEYS", 10**9)),
    "streams of a peer": Guard(thousand_streams, (quotas, "Quota", lambda **_: _UNBOUNDED)),
    "words of a peer": Guard(hundred_thousand_words, (rounds, "_QUOTA", _UNBOUNDED)),
    "names in news": Guard(escapes_on_the_screen, (progress, "printable", _identity)),
    "names in status": Guard(escapes_on_the_screen, (status, "printable", _identity)),
    "names in the log": Guard(escapes_on_the_screen, (log, "escaped", _identity)),
    "times of a peer": Guard(not_a_time, (hops, "_within", lambda seconds, _: seconds)),
    "whole characters": Guard(half_a_character, (formats, "_HALF", __import__("re").compile("(?!)"))),
    "keys of a known kind": Guard(key_of_an_unknown_kind, (identity, "UnsupportedAlgorithm", KeyboardInterrupt)),
    "errors in a line": Guard(message_of_many_lines, (weights, "brief", _identity)),
    "time of a frame": Guard(byte_by_byte, (frames, "_FRAME_S", math.inf)),
    "a tensor in trickles": Guard(byte_by_byte_in_a_tensor, (frames, "_TRICKLE_S", math.inf)),
    "length of a message": Guard(four_gibibytes, (SWITCH, "bytes", 1 << 40)),
    "depth of a recipe": Guard(brackets_without_end, (yaml_tree, "_MAX_BRACKETS", 10**6)),
}
