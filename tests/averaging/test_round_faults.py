"""The matrix of round faults on real p2p streams: every round ends in time, on all or on none, and the next commits.

By default the cells that cover every pair of fault, point and role and every step; with `--soak` all of them.
"""

import itertools
import secrets
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest
import pytest_asyncio
from faults.fault import Fault
from faults.protocol import WORDS, protocol_steps
from faults.rounds import FAULTS, IMPOSSIBLE, POINTS, ROLES, SIZES, cells, covering
from faults.rounds_wire import mischief_on_the_wire, stall
from faults.rounds_world import daemons, run_cell

from node.averaging import exchange as exchange_module
from node.averaging.round import Averager
from node.core import round_exchange, round_step
from node.core.round_ends import commit, drop
from node.core.round_state import Phase
from node.network import round_words

pytestmark = [pytest.mark.swarm, pytest.mark.asyncio(loop_scope="module")]
CELLS = cells()
SHORT = covering(CELLS)
ELSEWHERE = {
    **{
        f"RoundTransport.send:{word}": "said in answer to a fault: lost, late and repeated in test_round_properties.py"
        for word in ("Refusal", "Fail", "Ask", "Tell")
    },
    **{f"Averager.received:{word}": "what is wrong with a word is struck where it is sent" for word in WORDS},
    "Exchange.part_sizes": "part of Streams.expect_parts",
    "Exchange.result_sizes": "part of RoundTransport.exchange",
    "Exchange.take_parts": "part of Streams.take_parts",
    "Exchange.mean": "after the commit: a step that fails is ApplyFailed in test_round_ends.py",
    "Streams.open": "no way to fail: it notes who the members are",
    "Streams.scatter": "no way to fail: it starts RoundTransport.exchange",
    "Streams.moved": "no way to fail: it notes a time",
    "RoundTransport.ping": "a peer that answers no ping is stopped in test_slow_and_dead_peers.py",
}
"""Steps that no cell strikes, and why."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory):
    async with AsyncExitStack() as stack:
        yield await daemons(tmp_path_factory.mktemp("daemons"), stack, max(SIZES))


async def strike(cell, running, monkeypatch):
    with mischief_on_the_wire(monkeypatch):
        return await run_cell(cell, running, secrets.token_hex(32))


def find(*key):
    """Return the first cell at a place of the matrix."""
    return next(cell for cell in CELLS if cell.key == key)


def pytest_generate_tests(metafunc):
    if "cell" in metafunc.fixturenames:
        every = tuple(itertools.product(CELLS, SIZES))
        chosen = every if metafunc.config.getoption("--soak") else SHORT
        metafunc.parametrize(("cell", "size"), chosen, ids=[f"{cell.id}, {size} peers" for cell, size in chosen])


async def test_a_round_ends_in_time_on_all_or_on_none_and_the_next_commits(
    cell, size, running, monkeypatch, record_property
):
    world = await strike(cell, running[:size], monkeypatch)
    record_property("outcome", world.outcome)


async def test_every_cell_of_the_matrix_is_struck_or_cannot_be():
    struck = {cell.key for cell in CELLS}

    assert struck | IMPOSSIBLE.keys() == set(itertools.product(FAULTS, POINTS, ROLES))
    assert not struck & IMPOSSIBLE.keys()


async def test_the_short_form_covers_every_pair_and_every_step():
    short = [cell for cell, _ in SHORT]

    for pair in ((0, 1), (0, 2), (1, 2)):
        assert {tuple(c.key[i] for i in pair) for c in short} == {tuple(c.key[i] for i in pair) for c in CELLS}
    assert {cell.step for cell in short} == {cell.step for cell in CELLS}
    assert {size for _, size in SHORT} == set(SIZES)


async def test_every_step_of_a_round_is_struck_or_said_to_be_tested_elsewhere():
    names, struck = set(protocol_steps().names), {cell.step for cell in CELLS if cell.step}

    assert struck <= names
    assert names - struck == ELSEWHERE.keys(), "a new step of the protocol needs a cell, or a reason"


# --- the guards, switched off: each of these must be seen ----------------------------------------------------------


async def test_without_the_vote_different_results_would_be_committed(running, monkeypatch):
    def count_heads(state):
        round = state.round
        if state.phase is not Phase.VOTED or not round.members.issubset(round.votes):
            return state, ()
        return commit(state)

    monkeypatch.setattr(round_exchange, "count_votes", count_heads)
    monkeypatch.setattr(round_step, "with_results", lambda round, results: round)

    with pytest.raises(AssertionError, match="different bits"):
        await strike(find("wrong hash", "while gathering", "reducer"), running[:3], monkeypatch)


async def test_without_the_deadline_a_peer_that_stalls_would_hold_the_round_for_ever(running, monkeypatch):
    monkeypatch.setattr(round_step, "_tick", lambda state, now_s: (state, ()))

    with pytest.raises(AssertionError, match="hangs"):
        await strike(find("stall", "while voting", "member"), running[:3], monkeypatch)


async def test_without_the_checks_for_finite_numbers_nan_would_come_in(running, monkeypatch):
    def believe(text):
        digest, _, norm_sq = text.partition(":")
        return digest, float(norm_sq)

    monkeypatch.setattr(exchange_module, "refuse", lambda values, num_values: "")
    monkeypatch.setattr(exchange_module, "refuse_norm", lambda norm_sq: "")
    for module in (exchange_module, round_words):
        monkeypatch.setattr(module, "parse_result", believe)

    with pytest.raises(AssertionError, match="NaN came into the adapter"):
        await strike(find("NaN", "while sending", "member"), running[:3], monkeypatch)


async def test_without_a_look_at_its_own_sums_a_node_that_diverged_would_block_every_round(running, monkeypatch):
    async def keep(self, sealed):
        self._ledger = self._ledger.sealed(sealed, sealed.tokens)
        return ""

    monkeypatch.setattr(Averager, "_keep", keep)

    with pytest.raises(AssertionError, match="the round after did not commit"):
        await strike(find("NaN", "before", "member"), running[:3], monkeypatch)


async def test_without_asking_the_others_a_member_would_miss_a_verdict_that_was_lost(running, monkeypatch):
    monkeypatch.setattr(round_step, "_doubt", lambda state, now_s, lost=(): drop(state, "no doubt"))

    with pytest.raises(AssertionError, match="committed on some and not on others"):
        await strike(find("stall", "while voting", "leader"), running[:3], monkeypatch)


async def test_without_a_count_of_the_votes_a_leader_would_commit_alone(running, monkeypatch):
    def be_hasty(state):
        return commit(state) if state.phase is Phase.VOTED else (state, ())

    def stall_for_one(sender):
        return stall(sender) if sender == running[1].peer_id else sender

    monkeypatch.setattr(round_exchange, "count_votes", be_hasty)
    cell = find("stall", "while gathering", "reducer")
    gives_one_nothing = Fault(cell.step, "change", argument=2, change=stall_for_one, times=0)

    with pytest.raises(AssertionError, match="committed on some and not on others"):
        await strike(replace(cell, strike=gives_one_nothing), running[:3], monkeypatch)


async def test_a_bug_in_one_node_ends_the_round_at_once_and_not_at_its_deadline(running, monkeypatch):
    cell = find("fail", "while reducing", "reducer")

    world = await strike(replace(cell, strike=replace(cell.strike, error=None)), running[:3], monkeypatch)

    reasons = {node.results[0][1].reason for node in world.honest}
    assert not any("in time" in reason for reason in reasons), reasons
    assert any("bug" in told.what for told in world.faulty.told)
