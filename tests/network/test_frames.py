"""Frames and bulk over a real pair of sockets: what is sent comes, and what is too long or too slow is given up."""

import asyncio
import socket

import pytest

from node.network import frames
from node.network.frames import CHUNK_BYTES, read_bulk, read_frame, until_closed, write_bulk, write_frame
from node.network.round_words import Malformed
from node.v1 import round_pb2

MESSAGE = round_pb2.RoundMessage(fingerprint="ab" * 150, round="r.1")


@pytest.fixture
async def ends():
    """The reader of one end and the writer of the other."""
    left, right = socket.socketpair()
    reader, other = await asyncio.open_connection(sock=left)
    _, writer = await asyncio.open_connection(sock=right)
    yield reader, writer
    other.close()
    writer.close()


async def test_frames_come_one_after_the_other_as_they_went(ends):
    reader, writer = ends
    sent = [MESSAGE, round_pb2.RoundMessage(), round_pb2.RoundMessage(round="r.2")]

    for message in sent:
        write_frame(writer, message)

    for message in sent:
        received = round_pb2.RoundMessage()
        await read_frame(reader, received, max_bytes=10_000)
        assert received == message


async def test_a_frame_is_four_bytes_of_length_and_the_message(ends):
    reader, writer = ends

    write_frame(writer, MESSAGE)

    body = MESSAGE.SerializeToString()
    assert len(body) > 255
    assert await reader.readexactly(4 + len(body)) == len(body).to_bytes(4, "big") + body


async def test_a_frame_may_be_as_long_as_its_bound_and_no_longer(ends):
    reader, writer = ends
    size = MESSAGE.ByteSize()
    write_frame(writer, MESSAGE)
    await read_frame(reader, round_pb2.RoundMessage(), max_bytes=size)

    writer.write((size + 1).to_bytes(4, "big"))  # and not a byte of what was announced

    with pytest.raises(Malformed, match=f"a frame of {size + 1} bytes"):
        await asyncio.wait_for(read_frame(reader, round_pb2.RoundMessage(), max_bytes=size), 5)


async def test_a_frame_of_something_else_is_malformed(ends):
    reader, writer = ends
    writer.write(b"\x00\x00\x00\x02\xff\xff")

    with pytest.raises(Malformed, match="not the expected frame"):
        await read_frame(reader, round_pb2.RoundMessage(), max_bytes=100)


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES - 5])
async def test_bulk_goes_chunk_by_chunk_and_both_sides_see_each(ends, size):
    reader, writer = ends
    data = bytes(range(251)) * (size // 251 + 1)
    sent, received, moves = [], [], []

    _, result = await asyncio.gather(
        write_bulk(
            writer, memoryview(data)[:size], lambda chunk: sent.append(bytes(chunk)), lambda: moves.append("out")
        ),
        read_bulk(reader, size, lambda chunk: received.append(bytes(chunk)), lambda: moves.append("in")),
    )

    assert result == data[:size]
    assert b"".join(sent) == b"".join(received) == data[:size]
    lengths = [CHUNK_BYTES] * (size // CHUNK_BYTES) + ([size % CHUNK_BYTES] if size % CHUNK_BYTES else [])
    assert [len(chunk) for chunk in sent] == [len(chunk) for chunk in received] == lengths
    assert sorted(moves) == ["in"] * len(lengths) + ["out"] * len(lengths)


async def test_bulk_needs_nobody_who_looks_on(ends):
    reader, writer = ends

    _, result = await asyncio.gather(write_bulk(writer, memoryview(b"abc")), read_bulk(reader, 3))

    assert result == b"abc"


async def test_bulk_that_ends_too_early_is_an_error_and_not_a_shorter_one(ends):
    reader, writer = ends
    writer.write(b"ab")
    writer.close()

    with pytest.raises(asyncio.IncompleteReadError):
        await read_bulk(reader, 3)


async def test_who_sends_nothing_or_takes_nothing_is_given_up(ends, monkeypatch):
    reader, writer = ends
    monkeypatch.setattr(frames, "CHUNK_S", 0.02)

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(read_bulk(reader, 3), 30)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(write_bulk(writer, memoryview(bytes(50 * CHUNK_BYTES))), 30)


@pytest.mark.parametrize("turns", range(3, 12))
async def test_who_sends_without_a_pause_can_be_stopped_at_any_moment(ends, turns):
    reader, writer = ends
    taking = asyncio.create_task(read_bulk(reader, 201 * CHUNK_BYTES))
    sending = asyncio.create_task(write_bulk(writer, memoryview(bytes(CHUNK_BYTES))))
    await sending
    sending = asyncio.create_task(write_bulk(writer, memoryview(bytes(200 * CHUNK_BYTES))))
    for _ in range(turns):
        await asyncio.sleep(0)

    sending.cancel()

    with pytest.raises(asyncio.CancelledError):
        await sending
    taking.cancel()


async def test_without_a_limit_for_a_chunk_who_sends_nothing_would_be_waited_for(ends, monkeypatch):
    reader, _ = ends
    monkeypatch.setattr(frames, "CHUNK_S", None)

    reading = asyncio.create_task(read_bulk(reader, 3))
    await asyncio.sleep(0.1)

    assert not reading.done()
    reading.cancel()


async def test_the_other_side_is_waited_for_until_it_closes(ends):
    reader, writer = ends
    waiting = asyncio.create_task(until_closed(reader))
    await asyncio.sleep(0.05)
    assert not waiting.done()

    writer.close()

    await asyncio.wait_for(waiting, 5)


async def test_a_side_that_never_closes_or_that_breaks_off_is_left_quietly(ends, monkeypatch):
    reader, _ = ends
    monkeypatch.setattr(frames, "_LINGER_S", 0.02)
    await asyncio.wait_for(until_closed(reader), 30)

    reader.set_exception(ConnectionResetError())

    await until_closed(reader)
