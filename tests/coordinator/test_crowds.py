"""Many nodes at one coordinator: each calls less often, and is not taken for gone; watchers are told of news alone."""

import asyncio
import contextlib
import time

import pytest
from light_nodes import make_facts, make_run

from coordinator.bounds import MemberFacts, RunFacts
from coordinator.hub import Hub
from coordinator.run_state import HEARTBEAT_S, Gone
from coordinator.store import Store

FACTS = MemberFacts.read(make_facts())


@pytest.fixture
def hub(tmp_path):
    return Hub(Store(tmp_path), lambda _: None)


def found(hub, index):
    facts = RunFacts.read(make_run(f"{index:064x}", target_batch_tokens=1 << 40))
    return hub.enter(facts.fingerprint, facts)


def test_with_many_members_of_all_runs_together_each_is_to_call_less_often(hub):
    runs = [found(hub, index) for index in range(4)]
    for index in range(200):
        run = runs[index % 4]
        hub.changed(run, run.heartbeat(f"p{index}", b"r", FACTS, 0.0))
        assert run.heartbeat_s == (HEARTBEAT_S if index < 100 else (index + 1) / 20)

    assert runs[0].tick(29.0) == [], "two heartbeats may be lost"
    assert set(runs[0].tick(30.5)) == {Gone(f"p{index}") for index in range(0, 200, 4)}


def test_one_that_calls_seldom_is_not_gone_when_the_crowd_leaves(hub):
    run = found(hub, 0)
    for index in range(300):
        hub.changed(run, run.heartbeat(f"p{index}", b"r", FACTS, 0.0))
    longest_s = run.heartbeat_s
    for index in range(1, 300):
        hub.changed(run, run.leave(f"p{index}"))

    assert run.heartbeat_s == HEARTBEAT_S < longest_s
    assert run.tick(longest_s + 1.0) == []


async def test_a_watcher_is_told_at_once_of_news_and_seldom_of_what_is_none(hub):
    run = found(hub, 0)
    for index in range(100):
        hub.changed(run, run.heartbeat(f"p{index}", b"r", FACTS, time.time()))
    told = []

    async def watch(watcher):
        async for change in watcher.changes():
            told.append(change)  # noqa: PERF401 - it is to be seen while the stream goes on

    with hub.watching(run) as watcher:
        task = asyncio.create_task(watch(watcher))
        await asyncio.sleep(0.5)
        assert len(told) == 101, "all members and the status"

        for index in range(100):
            hub.changed(run, run.heartbeat(f"p{index}", b"r2", FACTS, time.time()))
        news = MemberFacts.read(make_facts(version=4))
        hub.changed(run, run.heartbeat("p7", b"r3", news, time.time()))
        await asyncio.sleep(0.5)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    assert [change.member.peer_id for change in told[101:]] == ["p7"]


async def test_what_is_due_in_one_run_is_done_while_nothing_happens_in_the_others(hub):
    runs = [found(hub, index) for index in range(8)]
    seen = []
    hub.listeners.append(lambda fingerprint, change: seen.append((fingerprint, change)))
    hub.start()
    for run in runs:
        hub.changed(run, run.heartbeat("p", b"r", FACTS, time.time()))
    await asyncio.sleep(0.1)
    long_ago = time.time() - runs[3].expires_s + 0.3
    hub.changed(runs[3], runs[3].heartbeat("q", b"r", FACTS, long_ago))
    seen.clear()

    await asyncio.sleep(0.8)

    assert seen == [(runs[3].facts.fingerprint, Gone("q"))]
    await hub.close()
