"""Three replicas a < b < c, the leader first, and how far a round has come with them."""

from dataclasses import replace

from node.core.round_messages import (
    Answer,
    Call,
    Open,
    Share,
    Span,
    SpanResult,
    Verdict,
    Vote,
)
from node.core.round_state import (
    GRACE_S,
    Lead,
    PartIn,
    PrepareDone,
    Received,
    Reduced,
    RoundPlan,
    RoundState,
    SealDone,
    Send,
    SpanIn,
    Tick,
)
from node.core.round_step import step
from node.core.types import Shard, Standing

ABC = frozenset("abc")
WHOLE = Shard(0, 1)
BASE = Standing(4, "0b", 400, ((0, "b0"),))
NEXT = Standing(5, "0c", 460, ((0, "c0"),))
BUDGET_S, ANSWER_S = 10.0, 4.0
CALL = Call("r", BASE, "q", BUDGET_S, "none/mean/1")


def share(who, weight, tokens, start, stop):
    return Share(who, weight, tokens, WHOLE, f"5{who}", (Span(0, start, stop),))


SHARES = (share("a", 10, 11, 0, 33), share("b", 20, 21, 33, 67), share("c", 30, 31, 67, 100))
RESULTS = tuple(SpanResult(0, who, f"d{who}") for who in "abc")


def seen(*peers):
    return {peer: WHOLE for group in peers for peer in group}


def replica(me, standing=BASE, alive=ABC):
    return RoundState(me, standing, "none/mean/1", 1, WHOLE, ((0, 100),), base_round="q", alive=seen(alive))


def prepared(who, weight, tokens, round="r"):
    return PrepareDone(round, weight, tokens, f"5{who}")


def reduced(who):
    return Reduced("r", (SpanResult(0, who, f"d{who}"),))


def span_in(who):
    return SpanIn("r", who, (SpanResult(0, who, f"d{who}"),))


def vote(digest="db"):
    return Vote("r", (RESULTS[0], replace(RESULTS[1], digest=digest), RESULTS[2]))


def run(state, *events, now_s=0.0):
    """Feed all events and return the state with all effects."""
    effects = ()
    for event in events:
        state, more = step(state, event, now_s)
        effects += more
    return state, effects


def of(effects, kind):
    return [effect for effect in effects if isinstance(effect, kind)]


def sent(effects):
    return [(effect.to, effect.message) for effect in of(effects, Send)]


def lead(members=ABC, alive=ABC):
    return Lead("r", RoundPlan(members, seen(alive), BUDGET_S, ANSWER_S))


def answer(who, alive=ABC, **changes):
    weight, tokens = next((s.weight, s.tokens) for s in SHARES if s.peer_id == who)
    word = Answer("r", weight, tokens, WHOLE, f"5{who}", BASE.hashes, ((0, 100),), seen(alive))
    return replace(word, **changes)


def answers(who, **changes):
    return Received(who, answer(who, **changes))


def calling():
    return run(replica("a"), lead(), prepared("a", 10, 11))[0]


def leader_exchanging():
    return run(calling(), answers("b"), answers("c"), SealDone("r"))[0]


def leader_voted():
    events = (PartIn("r", "b"), PartIn("r", "c"), reduced("a"), span_in("b"), span_in("c"))
    return run(leader_exchanging(), *events)[0]


def member_exchanging(me="b"):
    weight, tokens = next((s.weight, s.tokens) for s in SHARES if s.peer_id == me)
    opened = Received("a", Open("r", SHARES))
    return run(replica(me), Received("a", CALL), prepared(me, weight, tokens), opened, SealDone("r"))[0]


def member_voted():
    events = (PartIn("r", "a"), PartIn("r", "c"), reduced("b"), span_in("a"), span_in("c"))
    return run(member_exchanging(), *events)[0]


def member_doubting(now_s=BUDGET_S + GRACE_S):
    return run(member_voted(), Tick(), now_s=now_s)[0]


def commit(results=RESULTS):
    return Received("a", Verdict("r", committed=True, reason="", results=results))


OTHER = (replace(RESULTS[0], digest="xx"), *RESULTS[1:])
