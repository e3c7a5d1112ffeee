"""The injector itself: it strikes where it is told, on the passing that it is told, and nowhere else."""

import asyncio
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from faults.fault import Fault, read_faults, write_faults
from faults.injector import Injector, injected
from faults.protocol import WORDS, protocol_steps
from node.averaging.exchange import Exchange
from node.core.round_messages import Share, SpanResult, Vote
from node.core.types import Shard
from node.network.rounds import RoundTransport

STEP = "a step"


def stepping(*faults):
    injector = Injector(faults)
    return injector, injector.wrap(STEP, lambda this, data: data)


def test_a_fault_strikes_on_the_passings_that_it_names_alone():
    injector, step = stepping(Fault(STEP, "fail", nth=2, times=2, code="ENOSPC"), Fault("another", "fail"))
    failed = []

    for passing in range(1, 6):
        try:
            step(None, b"x")
        except OSError as error:
            failed.append((passing, error.errno))

    assert failed == [(2, errno.ENOSPC), (3, errno.ENOSPC)]
    assert injector.passed[STEP] == 5
    assert injector.struck == [(STEP, "fail")] * 2


def test_a_fault_strikes_one_object_alone_and_counts_its_passings_alone():
    mine, other = object(), object()
    _, step = stepping(Fault(STEP, "corrupt", nth=2, where=lambda this: this is mine))

    results = [step(this, b"\x00") for this in (mine, other, other, mine, mine)]

    assert results == [b"\x00", b"\x00", b"\x00", b"\x10", b"\x00"]


def test_data_is_damaged_in_depth_and_the_original_is_left_alone():
    vote = Vote("round-1", (SpanResult(0, "p1", "abcd"),))
    tensors = {3: (torch.ones(4), 7)}

    for action, when in (("corrupt", "before"), ("corrupt", "after")):
        _, step = stepping(Fault(STEP, action, when=when))
        assert step(None, vote) == Vote("round-1", (SpanResult(0, "p1", "1bcd"),))
        _, step = stepping(Fault(STEP, action, when=when))
        assert not torch.equal(step(None, tensors)[3][0], torch.ones(4))
    _, step = stepping(Fault(STEP, "nan"))
    assert int(step(None, tensors)[3][0].isnan().sum()) == 1
    _, step = stepping(Fault(STEP, "truncate"))
    assert step(None, (b"12345678", b"9")) == (b"1234", b"9")
    assert torch.equal(tensors[3][0], torch.ones(4))


def test_a_step_without_data_cannot_be_damaged_unseen():
    _, step = stepping(Fault(STEP, "corrupt"))

    with pytest.raises(AssertionError, match="nothing to corrupt"):
        step(None, 5)


async def test_a_coroutine_is_delayed_repeated_and_cancelled_while_it_is_stalled():
    done = []

    async def work(this):
        done.append(this)

    repeated = Injector([Fault(STEP, "repeat")]).wrap(STEP, work)
    stalled = Injector([Fault(STEP, "delay", seconds=1e9)]).wrap(STEP, work)

    await repeated("me")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(stalled("never"), 0.05)

    assert done == ["me", "me"]


@pytest.mark.parametrize(("action", "code"), [("kill", -signal.SIGKILL), ("exit", 77)])
def test_a_process_ends_where_it_is_told(action, code):
    program = f"""
from faults.fault import Fault
from faults.injector import Injector
step = Injector([Fault("p", "{action}", nth=2)]).wrap("p", lambda: print("passed", flush=True))
try: step(); step(); print("went on", flush=True)
finally: print("handled", flush=True)
"""
    path = str(Path(__file__).parent.parent)

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )

    assert (done.returncode, done.stdout) == (code, "passed\n")


def test_faults_travel_in_a_file_and_a_function_does_not(tmp_path):
    faults = (Fault("a:*", "kill", nth=3), Fault("b", "fail", times=0, code="EROFS"), Fault("c", "delay", seconds=2.5))

    write_faults(tmp_path / "faults.json", faults)

    assert read_faults(tmp_path / "faults.json") == faults
    with pytest.raises(AssertionError):
        write_faults(tmp_path / "faults.json", [Fault("a", "fail", where=bool)])


def test_the_steps_of_a_round_are_points_and_are_restored():
    before = Exchange.reduce
    share = Share("me", 1, 1, Shard(0, 1), "s", ())
    exchange = Exchange("me", "none", 0.0, shares=(share,))

    with injected(Fault("Exchange.result_sizes", "fail"), protocol_steps()) as injector:
        assert Exchange.reduce is not before
        with pytest.raises(OSError, match="error"):
            exchange.result_sizes(share)

    assert Exchange.reduce is before
    assert injector.struck == [("Exchange.result_sizes", "fail")]


async def test_every_word_has_a_point_where_it_is_sent_and_one_where_it_comes_in():
    names = protocol_steps().names

    assert {f"RoundTransport.send:{word}" for word in WORDS} <= set(names)
    assert {f"Averager.received:{word}" for word in WORDS} <= set(names)
    with (
        injected(Fault("RoundTransport.send:Vote", "fail"), protocol_steps()) as injector,
        pytest.raises(OSError, match="error"),
    ):
        await RoundTransport(None, fingerprint="f").send("p1", Vote("r", ()))
    assert injector.passed == {"RoundTransport.send:Vote": 1}
