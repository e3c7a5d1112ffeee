"""Three real processes on loopback, one killed at each step of the protocol: the others stay equal and lose nothing."""

import multiprocessing
import os
import signal
import time
from contextlib import contextmanager, suppress

import pytest
import round_member

pytestmark = pytest.mark.swarm
BUDGET_S = 3.0
_context = multiprocessing.get_context("forkserver")


class Member:
    """The parent's end of one process."""

    def __init__(self, home, codec):
        home.mkdir()
        self.pipe, child = _context.Pipe()
        self.process = _context.Process(target=round_member.main, args=(child, str(home), codec), daemon=True)
        self.process.start()
        child.close()

    def greet(self):
        assert self.pipe.poll(60), "the process did not start"
        self.id, self.address, self.p2pd = self.pipe.recv()

    def ask(self, *command, timeout_s=20):
        self.pipe.send(command)
        assert self.pipe.poll(timeout_s), f"no answer to {command[0]}"
        return self.pipe.recv()


@contextmanager
def swarm(folder, size=3, codec="none"):
    os.environ["OMP_NUM_THREADS"] = "1"
    _context.set_forkserver_preload(["round_member"])
    members = [Member(folder / f"m{index}", codec) for index in range(size)]
    try:
        for member in members:
            member.greet()
        members.sort(key=lambda m: m.id)
        for member in members:
            member.ask("connect", *(m.address for m in members if m is not member))
        for index, member in enumerate(members):
            member.batches = range(1000 * index, 1000 * index + 5 + 7 * index)
            member.ask("train", member.batches)
            member.ask("saw", frozenset(m.id for m in members))
        yield members
    finally:
        for member in members:
            for pid in (member.process.pid, getattr(member, "p2pd", None)):
                with suppress(ProcessLookupError, TypeError):
                    os.kill(pid, signal.SIGKILL)
            member.process.join(5)


def call_round(leader, members, count, extra_s=2.0):
    """Let `leader` call all of `members`, and return how it ended on each of those that `count` says."""
    ids = frozenset(m.id for m in members)
    started = time.time()
    leader.ask("lead", ids, ids, BUDGET_S)
    until = started + BUDGET_S + extra_s
    return started, {m.id: m.ask("ended", n, until) for m, n in count.items()}


def test_three_members_commit_the_same_bytes_and_count_everything_once(tmp_path):
    with swarm(tmp_path) as members:
        for round in (1, 2, 3):
            if round > 1:
                members[1].ask("train", [9000 + round])
            _, ended = call_round(members[0], members, dict.fromkeys(members, round))
            assert {rounds[-1][1].status.value for rounds in ended.values()} == {"committed"}, ended

        seen = [
            m.ask("look", [*members[0].batches, *members[1].batches, *members[2].batches, 9002, 9003]) for m in members
        ]
        assert len({standing for standing, *_ in seen}) == 1
        assert seen[0][0].version == 3
        for _, counted, pending, _ in seen:
            assert set(counted) == {1}
            assert pending == 0


def test_bf16_members_hold_the_same_bits(tmp_path):
    with swarm(tmp_path, size=2, codec="bf16") as members:
        _, ended = call_round(members[0], members, dict.fromkeys(members, 1))

        assert {rounds[-1][1].status.value for rounds in ended.values()} == {"committed"}, ended
        assert len({m.ask("look", [])[0] for m in members}) == 1
        # Half the bytes of fp32: a part of half the vector there, and half the vector as a result.
        assert ended[members[0].id][-1][1].bytes_sent == 2 * round_member.NUM_VALUES


STEPS_OF_A_MEMBER = ["before Answer", "while sending", "while reducing", "while gathering", "before Vote"]
STEPS_OF_THE_LEADER = [
    "before Call",
    "before Open",
    "while sending",
    "while reducing",
    "while gathering",
    "before Verdict",
]


@pytest.mark.parametrize(
    ("role", "point", "delay_s"),
    [("member", point, 0.0) for point in STEPS_OF_A_MEMBER]
    + [("leader", point, 0.0) for point in STEPS_OF_THE_LEADER]
    + [("leader", "before Verdict", 0.3), ("member", "stopped while sending", 0.0)],
)
def test_survivors_stay_equal_and_lose_nothing(tmp_path, role, point, delay_s):
    with swarm(tmp_path) as members:
        victim = members[0] if role == "leader" else members[2]
        survivors = [m for m in members if m is not victim]
        is_stopped = point.startswith("stopped ")
        # With a delay, the second verdict is held back, so that one member knows and the other has to ask it.
        nth = 2 if delay_s and role == "leader" else 1
        how = signal.SIGSTOP if is_stopped else signal.SIGKILL
        victim.ask("trap", point.removeprefix("stopped "), nth, delay_s, how)

        ids = frozenset(m.id for m in members)
        started = time.time()
        members[0].ask("lead", ids, ids, BUDGET_S)
        until = started + BUDGET_S + 2.0
        if is_stopped or point != "before Call":
            ended = {m.id: m.ask("ended", 1, until) for m in survivors}
            assert all(ended.values()), f"a round did not end in time: {ended}"
            took = max(rounds[0][0] for rounds in ended.values()) - started
            assert took < (BUDGET_S + 2.0 if is_stopped else BUDGET_S), took
            ends = {rounds[-1][1].status.value for rounds in ended.values()}
            assert len(ends) == 1, ends
        else:
            victim.process.join(5)
        if not is_stopped:
            victim.process.join(5)
            assert victim.process.exitcode == -signal.SIGKILL

        # The next one is called with the dead one still named: it refuses, and the others go on at once.
        before = {m: len(m.ask("ended", 0, 0.0)) for m in survivors}
        for m in survivors:
            m.ask("train", [5000 + members.index(m)])
        alive = survivors if is_stopped else members
        started, ended = call_round(survivors[0], alive, {m: before[m] + 1 for m in survivors})
        ends = [rounds[-1] for rounds in ended.values()]
        assert {result.status.value for _, result in ends} == {"committed"}, ended
        assert max(at for at, _ in ends) - started < 1.0, "a dead peer was waited for"

        seen = [m.ask("look", [b for s in survivors for b in (*s.batches, 5000 + members.index(s))]) for m in survivors]
        assert len({standing for standing, *_ in seen}) == 1
        for _, counted, pending, _ in seen:
            assert set(counted) == {1}, "a microbatch was lost or counted twice"
            assert pending == 0
