"""Peers that a round waits for are asked whether they are there; only who refuses the connection is gone."""

import asyncio

import pytest

from node.averaging import watch as watch_module
from node.averaging.watch import Watch
from node.network.rounds import PeerLost


class Line:
    """Carries pings: to the dead, to the silent, and to all others."""

    def __init__(self):
        self.pinged = []

    async def ping(self, peer):
        self.pinged.append(peer)
        if peer in ("dead", "silent"):
            raise PeerLost("no", is_refused=peer == "dead")


@pytest.fixture
def watched(monkeypatch):
    """Run a watch over some peers, asked for as often as given, and return the line, who was heard and who is gone."""
    monkeypatch.setattr(watch_module, "_PING_EVERY_S", 0.001)

    async def run(*peers, times=1):
        line, heard, gone, tasks = Line(), [], [], set()
        rounds = iter([peers] * times)

        def spawn(into, work):
            assert into is tasks
            into.add(asyncio.ensure_future(work))

        watch = Watch(line, spawn=spawn, heard=heard.append, gone=gone.append)
        await asyncio.wait_for(watch.run(lambda: next(rounds, None), tasks), 10)
        await asyncio.gather(*tasks)
        return line, heard, gone

    return run


async def test_who_answers_is_heard_who_refuses_is_gone_and_who_is_silent_is_neither(watched):
    line, heard, gone = await watched("alive", "dead", "silent")

    assert sorted(line.pinged) == ["alive", "dead", "silent"]
    assert (heard, gone) == (["alive"], ["dead"])


async def test_they_are_asked_again_and_again_until_nobody_is_waited_for(watched):
    line, heard, _ = await watched("alive", times=4)

    assert line.pinged == heard == ["alive"] * 4


async def test_a_round_that_waits_for_nobody_yet_goes_on_being_watched(watched):
    line, *_ = await watched(times=3)

    assert line.pinged == []
