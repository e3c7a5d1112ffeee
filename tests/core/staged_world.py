"""The simulated swarm over several stages: drivers with books, holders with sessions, replicas of some stages only.

A microbatch's way through the stages is one moment here, but it may lose an answer at each of them, so that the driver
turns to another holder and does not know who has counted. Everything else is the world of one stage.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

from round_world import ANSWER_S, BUDGET_S, VIEW_S, Replica, World

from node.core.book import Book
from node.core.round_ledger import Ledger
from node.core.round_messages import SpanResult
from node.core.round_shares import next_base_hash, round_digest, spans_for
from node.core.round_state import (
    Applied,
    Broken,
    Discard,
    Ended,
    Lead,
    PartIn,
    Phase,
    Prepare,
    PrepareDone,
    Reduced,
    RoundPlan,
    RoundState,
    Saw,
    SealDone,
    SpanIn,
    Synced,
    SyncFailed,
    SyncStarted,
)
from node.core.types import NO_SHARD, RoundStatus, Shard, Standing

SIZE = 100
LOST_ANSWERS = 0.1


def bits_at(standing, shard):
    """What every holder of a stage holds at that place of the lineage."""
    made = {stage: hashlib.sha256(f"{standing.base_hash}/{stage}".encode()).hexdigest()[:16] for stage in shard.stages}
    return replace(standing, hashes=tuple(made.items()))


@dataclass
class Node(Replica):
    """A peer with a shard, which may be empty, and a driver's book."""

    shard: Shard = NO_SHARD
    num_sessions: int = 0
    counted: dict = field(default_factory=dict)  # stage -> keys in the accumulator
    seen: set = field(default_factory=set)  # (stage, key) of this session
    book: Book = field(default_factory=Book)
    todo: list = field(default_factory=list)  # microbatches that are begun and not finished, with who counted them
    next_id: int = 0
    is_held: bool = False
    prepared: set = field(default_factory=set)
    settled: dict = field(default_factory=dict)  # id -> the round that settled it

    @property
    def session(self):
        return f"{self.life:03}.{self.num_sessions:05}"

    def discard(self):
        """Lose the sums."""
        self.num_sessions += 1
        self.counted, self.seen = {}, set()
        self.ledger = Ledger(lineage=self.ledger.lineage)


class StagedWorld(World):
    def __init__(self, rng, shards, num_stages, faults=(), *, drivers=None, lost_answers=LOST_ANSWERS, **network):
        self.shards = {f"n{index}": shard for index, shard in enumerate(shards)}
        self.num_stages, self.lost_answers = num_stages, lost_answers
        self.drivers = set(self.shards) if drivers is None else {f"n{index}" for index in drivers}
        self.members = {}  # round -> {(peer, life)}
        super().__init__(rng, len(shards), faults, **network)
        self.nodes = {id: Node(id, self.fresh_state(id), shard=shard) for id, shard in self.shards.items()}

    def fresh_state(self, id, standing=None, base_round=""):
        shard = self.shards[id]
        standing = bits_at(standing or Standing(0, "00", 0), shard)
        sizes = tuple((stage, SIZE) for stage in shard.stages)
        return RoundState(id, standing, "mean", self.num_stages, shard, sizes, base_round=base_round)

    # --- the rounds' effects ---------------------------------------------------------------------------------
    def perform(self, node, effect):
        match effect:
            case Prepare(round):
                node.prepared.add(round)
                node.is_held = True
                self.run_on(node, self.rng.choice((0.0, 0.01, 0.3)), self.prepare, node, round)
            case Discard():
                node.discard()
            case Ended():
                super().perform(node, effect)
                was_prepared = effect.round in node.prepared
                node.prepared.discard(effect.round)
                is_committed = effect.status is not RoundStatus.DROPPED
                if was_prepared or is_committed:
                    self.settle(node, effect, is_committed)
            case _:
                super().perform(node, effect)

    def prepare(self, node, round):
        node.book.bring()
        tokens = node.book.tokens
        if not node.prepared:
            node.is_held = False
        self.feed(node, PrepareDone(round, tokens, tokens, node.session, node.book.doubts))

    def settle(self, node, ended, is_committed):
        node.is_held = False
        if is_committed:
            for entry in node.book.settle({share.peer_id: share.session for share in ended.shares}):
                node.settled[entry.batch.id] = ended.round

    def scatter(self, node, round, shares):
        self.run_on(node, self.rng.choice((0.0, 0.02)), self.seal_and_scatter, node, round, shares, node.num_sessions)

    def seal_and_scatter(self, node, round, shares, session):
        if session != node.num_sessions:
            return
        if any(node.counted.values()):
            node.ledger = node.ledger.sealed({s: frozenset(keys) for s, keys in node.counted.items()}, 0)
        node.counted = {}
        if node.state.round is None or node.state.round.id != round:
            return
        node.ledger = node.ledger.carried(round)
        content = {
            stage: sorted(key for entry in node.ledger.pending for key in entry.sum.get(stage, ()))
            for stage in node.shard.stages
        }
        self.carried.setdefault(round, {})[node.id] = content
        node.parts[round, node.id] = content
        self.feed(node, SealDone(round))
        for share in shares:
            if share.peer_id == node.id or not share.shard.overlaps(node.shard):
                continue

            def deliver(owner, content=content):
                owner.parts[round, node.id] = content
                self.feed(owner, PartIn(round, node.id))

            self.send(node, share.peer_id, deliver, broken=Broken(round, share.peer_id, "stream reset"))

    def reduce(self, node, round):
        current = node.state.round
        if current is None or current.id != round:
            return
        results = []
        for stage in node.shard.stages:
            holders = [share.peer_id for share in current.shares if share.shard.holds(stage)]
            parts = [(peer, node.parts[round, peer][stage]) for peer in holders]
            digest = hashlib.sha256(repr((node.id, stage, parts)).encode()).hexdigest()[:16]
            results.append(SpanResult(stage, node.id, digest))
        self.feed(node, Reduced(round, tuple(results)))

    def publish(self, node, round):
        current = node.state.round
        if current is None or current.id != round:
            return
        mine = next(share for share in current.shares if share.peer_id == node.id)
        for share in current.shares:
            spans = spans_for(mine, share.shard)
            if share.peer_id == node.id or not spans:
                continue
            is_lie = self.liars.get(node.id, 0) > self.now and self.rng.random() < 0.5
            digests = [current.spans[span.stage, node.id] for span in spans]
            told = tuple(
                SpanResult(span.stage, node.id, "lie" + digest if is_lie else digest)
                for span, digest in zip(spans, digests, strict=True)
            )
            self.send(node, share.peer_id, lambda other, told=told: self.feed(other, SpanIn(round, node.id, told)))

    def apply(self, node, round, shares, digest):
        old = node.state.standing
        self.members[round] = {(share.peer_id, int(share.session.split(".")[0])) for share in shares}
        results = node.state.round.results
        stages = {result.stage for result in results}
        assert stages == set(range(self.num_stages)), "all stages step in one round"
        lineage = (*self.lineage_of[old.base_hash], round)
        base = next_base_hash(old.base_hash, round_digest(round, shares, results))
        assert self.lineage_of.setdefault(base, lineage) == lineage
        tokens = old.committed_tokens + sum(share.tokens for share in shares)
        standing = bits_at(Standing(old.version + 1, base, tokens), node.shard)
        node.ledger = node.ledger.committed(round, shared=len(shares) > 1)
        node.saved = (replace(standing, hashes=()), round, node.ledger.lineage)
        node.partners = frozenset(share.peer_id for share in shares)
        self.feed(node, Applied(round, standing))

    # --- the microbatches ------------------------------------------------------------------------------------
    def train(self, id, life):
        node = self.nodes[id]
        if not node.is_up or node.life != life:
            return
        self.after(self.rng.uniform(0.1, 0.5), self.train, id, life)
        is_busy = node.is_held or node.state.must_sync or node.syncing or self.now < node.stalled_until
        if id not in self.drivers or is_busy:
            return
        alive = {p: session for p, (at, _, _, session) in node.heard.items() if self.now - at < VIEW_S}
        for entry in node.book.lost({**alive, id: node.session}):
            node.todo.append((entry.batch, dict(entry.counted_by)))
        if not node.todo and self.training:
            node.todo.append((SimpleNamespace(id=node.next_id, num_tokens=1, num_labels=1), {}))
            node.made.append(node.next_id)
            node.next_id += 1
        for _ in range(len(node.todo) if not self.training else min(1, len(node.todo))):
            self.drive_one(node, *node.todo.pop(0))

    def drive_one(self, node, batch, counted_by):
        """Send one microbatch back through the stages; one that is not finished is begun again later."""
        for stage in reversed(range(self.num_stages)):
            if not self.pass_stage(node, (node.id, node.life, batch.id), stage, counted_by):
                node.todo.append((batch, counted_by))
                return
        node.book.done(batch, dict(counted_by))

    def pass_stage(self, node, key, stage, counted_by):
        holders = [h for h in self.nodes.values() if h.shard.holds(stage) and self.serves(h, node)]
        if stage in counted_by:
            peer, session = counted_by[stage]
            if any(h.id == peer and h.session == session for h in holders):
                return True
            holder = self.nodes[peer]
            if holder.is_up and holder.session == session:
                return False  # it still has it and is out of reach: no other replica may count it too
            del counted_by[stage]
        self.rng.shuffle(holders)
        for holder in holders:
            if (stage, key) not in holder.seen:
                holder.seen.add((stage, key))
                holder.counted.setdefault(stage, set()).add(key)
            if self.rng.random() >= self.lost_answers or holder is node:
                counted_by[stage] = (holder.id, holder.session)
                return True
            node.book.doubt(holder.id, holder.session)  # it may have counted
        return False

    def serves(self, holder, node):
        mine, theirs = node.state.standing, holder.state.standing
        is_there = holder.is_up and self.now >= holder.stalled_until and not self.cut_off(holder.id, node.id)
        is_free = holder.state.phase in (Phase.IDLE, Phase.CALLING, Phase.ANSWERED) and not holder.state.must_sync
        return is_there and is_free and (mine.version, mine.base_hash) == (theirs.version, theirs.base_hash)

    # --- what the daemon does --------------------------------------------------------------------------------
    def announce(self, id, life):
        node = self.nodes[id]
        if node.is_up and node.life == life:
            if self.now >= node.stalled_until:
                told = (node.state.standing, node.state.must_sync, node.session)
                for other in self.nodes.values():
                    if other is not node and other.is_up:
                        self.send(node, other.id, lambda peer: peer.heard.__setitem__(id, (self.now, *told)))
            self.after(0.3, self.announce, id, life)

    def drive(self, id, life):
        node = self.nodes[id]
        if not node.is_up or node.life != life:
            return
        self.after(self.rng.uniform(0.05, 0.3), self.drive, id, life)
        if self.now < node.stalled_until:
            return
        live = {p: s for p, (at, s, syncing, _) in node.heard.items() if self.now - at < VIEW_S and not syncing}
        alive = {peer: self.shards[peer] for peer in live}
        self.feed(node, Saw(alive))
        if node.state.phase is not Phase.IDLE or node.state.must_sync or node.syncing:
            return
        mine = node.state.standing
        ahead = [p for p, s in sorted(live.items()) if not s.shares_bits_with(mine) and s.is_heavier_than(mine)]
        if ahead:
            self.feed(node, SyncStarted())
            self.sync(node, max(ahead, key=lambda p: (live[p].committed_tokens, p)))
            return
        same = {
            p
            for p, s in live.items()
            if (s.shares_bits_with(mine) or (p in node.partners and s.version < mine.version))
            and node.shunned.get(p, 0.0) <= self.now
        } | {id}
        held = {stage for peer in same for stage in self.shards[peer].stages}
        is_due = any(self.nodes[peer].book.tokens for peer in same)
        if is_due and id == min(same) and held == set(range(self.num_stages)):
            called = {p for p in live if node.shunned.get(p, 0.0) <= self.now} | {id}
            plan = RoundPlan(frozenset(called), {**alive, id: node.shard}, BUDGET_S, ANSWER_S)
            self.feed(node, Lead(f"{id}.{life}.r{next(self.ids)}", plan))

    def sync(self, node, peer_id):
        node.syncing = True

        def fail():
            if node.syncing:
                node.syncing = False
                node.heard.pop(peer_id, None)
                self.feed(node, SyncFailed())

        def take(snapshot):
            if not node.syncing:
                return
            if node.state.phase is not Phase.IDLE:
                self.run_on(node, 0.1, take, snapshot)
                return
            standing, base_round, lineage = snapshot
            node.syncing = False
            if not standing.is_heavier_than(node.state.standing):
                self.feed(node, SyncFailed())
                return
            node.ledger = Ledger(lineage=lineage)
            node.discard()
            node.moves += 1
            node.saved, node.partners = snapshot, frozenset()
            self.feed(node, Synced(bits_at(standing, node.shard), base_round))

        def ask(peer):
            snapshot = (replace(peer.state.standing, hashes=()), peer.state.base_round, peer.ledger.lineage)
            self.send(peer, node.id, lambda _: take(snapshot))

        self.send(node, peer_id, ask)
        self.run_on(node, 1.0, fail)

    def revive(self, node):
        super().revive(node)
        node.discard()
        node.book, node.todo, node.is_held, node.prepared, node.settled = Book(), [], False, set(), {}
        node.next_id = 0

    # --- what must hold at every moment ----------------------------------------------------------------------
    def check_books(self):
        """No stage has a microbatch twice in a lineage, and what a driver settled is there at every stage."""
        for digests in self.committed.values():
            assert len(digests) == 1
        places = {}
        for node in self.nodes.values():
            if not node.is_up:
                continue
            standing = node.state.standing
            place = (standing.version, standing.base_hash, standing.committed_tokens)
            lineage = self.lineage_of[standing.base_hash]
            assert places.setdefault(lineage, place) == place, "one lineage, two states"
            assert standing.version == len(lineage)
            assert standing == bits_at(standing, node.shard)
            counts = self.counts(lineage)
            for (stage, key), count in counts.items():
                assert count == 1 or self.may_be_twice(lineage, key), f"stage {stage} has {key} {count} times"
            self.check_driver(node, lineage, counts)

    def may_be_twice(self, lineage, key):
        """Whether a round took in the microbatch without its driver, or some of its stages only.

        What a driver has in doubt is not known to a round without it: it has died, or the leader does not see it. And
        if a holder drops its sums after its driver has answered, a round has the other stages of what it had counted;
        another session of one of those, before the driver is through again, makes it count there once more.
        """
        driver, life, _ = key
        for round in lineage:
            contents = self.carried[round].values()
            has = {stage for content in contents for stage, keys in content.items() if key in keys}
            if has and ((driver, life) not in self.members[round] or len(has) < self.num_stages):
                return True
        return False

    def counts(self, lineage):
        return Counter(
            (stage, key)
            for round in lineage
            for content in self.carried[round].values()
            for stage, keys in content.items()
            for key in keys
        )

    def check_driver(self, node, lineage, counts):
        if node.state.phase is Phase.APPLYING:
            return
        entries = node.book._entries.keys()
        begun = {batch.id for batch, _ in node.todo}
        for id in node.made:
            places = (id in entries) + (id in begun) + (id in node.settled)
            assert places == 1, f"{node.id}: microbatch {id} is in {places} places"
        for id, round in node.settled.items():
            if round in lineage:
                missing = [s for s in range(self.num_stages) if not counts[s, (node.id, node.life, id)]]
                assert not missing, f"{node.id}: microbatch {id} was settled, and stages {missing} do not have it"

    def quiet(self):
        self.lost_answers = 0.0
        return super().quiet()

    def is_settled(self):
        """Whether everything that is up has come together, with nothing left to bring."""
        up = [node for node in self.nodes.values() if node.is_up]
        # a stage that was redone after its tokens had been told of goes with the next round that has any
        is_done = all(not n.todo and not n.book.tokens for n in up)
        return is_done and len(self.places()) <= 1

    def places(self):
        up = [node.state.standing for node in self.nodes.values() if node.is_up]
        return {(standing.version, standing.base_hash) for standing in up}
