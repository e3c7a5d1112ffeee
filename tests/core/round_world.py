"""A simulated swarm in virtual time: replicas, their engines, and a network that loses, repeats and reorders.

Written before the machine, as the specification of what the machine has to bear. Everything random comes from one
`random.Random`, so that a schedule is a seed and a list of faults.
"""

import hashlib
import heapq
import itertools
from dataclasses import dataclass, field

from node.core.round_ledger import Ledger
from node.core.round_messages import SpanResult
from node.core.round_shares import round_digest
from node.core.round_state import (
    DOUBT_S,
    GRACE_S,
    Applied,
    Apply,
    Broken,
    Ended,
    FellBehind,
    Lead,
    Lost,
    PartIn,
    Phase,
    Prepare,
    PrepareDone,
    Publish,
    Received,
    Reduce,
    Reduced,
    RoundPlan,
    RoundState,
    Saw,
    Scatter,
    SealDone,
    Send,
    SpanIn,
    Synced,
    SyncFailed,
    SyncStarted,
    Tick,
)
from node.core.round_step import step, wake_at_s
from node.core.types import RoundStatus, Shard, Standing

BUDGET_S, ANSWER_S = 2.0, 0.7
VIEW_S = 3.0
GENESIS = Standing(0, "00", 0, ((0, "00"),))
ALL = Shard(0, 1)
"""Everybody holds the only stage; what several stages add is in `test_round_stages.py`."""


@dataclass(frozen=True)
class Fault:
    at_s: float
    kind: str  # kill, restart, stall, partition, lie, flood
    node: int
    seconds: float


@dataclass
class Replica:
    id: str
    state: RoundState
    ledger: Ledger = field(default_factory=Ledger)
    life: int = 0
    is_up: bool = True
    stalled_until: float = 0.0
    fresh: list = field(default_factory=list)
    sealing: int = 0
    made: list = field(default_factory=list)  # microbatches of this life
    lost: int = 0
    moves: int = 0
    heard: dict = field(default_factory=dict)  # peer -> (time, standing)
    contents: dict = field(default_factory=dict)  # round -> {owner: digest}: what the spans here were made of
    parts: dict = field(default_factory=dict)  # (round, sender) -> content
    started: tuple | None = None
    wakes_at: float | None = None
    saved: tuple = (GENESIS, "", ())
    shunned: dict = field(default_factory=dict)  # peer -> until: lost, or it held a round up
    partners: frozenset = frozenset()  # members of the round that made the bits here: they are as far, announced or not
    syncing: bool = False
    rounds: list = field(default_factory=list)


class World:
    def __init__(self, rng, num_nodes, faults=(), *, fifo=False, duplicates=0.0, loss=0.0, delay_s=0.02):
        self.rng, self.fifo, self.duplicates, self.loss, self.delay_s = rng, fifo, duplicates, loss, delay_s
        self.now, self.queue, self.seq = 0.0, [], itertools.count()
        self.last_arrival, self.groups, self.liars = {}, None, {}
        self.training, self.ids = True, itertools.count()
        self.committed = {}  # round -> set of digests committed anywhere
        self.carried = {}  # round -> {member: microbatches}
        self.lineage_of = {GENESIS.base_hash: ()}
        self.nodes = {}
        for index in range(num_nodes):
            id = f"n{index}"
            self.nodes[id] = Replica(id, self.fresh_state(id))
            self.after(self.rng.uniform(0, 0.2), self.drive, id, 0)
            self.after(self.rng.uniform(0, 0.2), self.train, id, 0)
            self.after(self.rng.uniform(0, 0.2), self.announce, id, 0)
        for fault in faults:
            self.after(fault.at_s, self.strike, fault)

    def fresh_state(self, id, standing=GENESIS, base_round=""):
        return RoundState(
            me=id,
            standing=standing,
            settings="mean",
            num_stages=1,
            shard=ALL,
            sizes=((0, 100),),
            base_round=base_round,
        )

    # --- time ------------------------------------------------------------------------------------------------
    def after(self, seconds, function, *args):
        heapq.heappush(self.queue, (self.now + seconds, next(self.seq), function, args))

    def run(self, until_s):
        while self.queue and self.queue[0][0] <= until_s:
            self.now, _, function, args = heapq.heappop(self.queue)
            function(*args)
        self.now = until_s

    def run_on(self, node, seconds, function, *args):
        """Something in the node's own process: not while it is stalled, never in a later life."""

        def when_running(life):
            if not node.is_up or node.life != life:
                return
            if self.now < node.stalled_until:
                self.after(node.stalled_until - self.now, when_running, life)
                return
            function(*args)

        self.after(seconds, when_running, node.life)

    # --- the machine -----------------------------------------------------------------------------------------
    def feed(self, node, event):
        before = node.state
        if isinstance(event, Lost):
            node.shunned[event.peer] = self.now + VIEW_S
        node.state, effects = step(node.state, event, self.now)
        if before.round is None and node.state.round is not None:
            node.started = (node.state.round.id, self.now)
        for effect in effects:
            self.perform(node, effect)
        if isinstance(event, Tick):
            node.wakes_at = None
        wake = wake_at_s(node.state)
        if wake is not None and wake != node.wakes_at:
            node.wakes_at = wake
            self.run_on(node, max(0.0, wake - self.now), self.feed, node, Tick())
        self.check(node)

    def perform(self, node, effect):
        match effect:
            case Send(to, message):
                self.send(node, to, lambda peer: self.feed(peer, Received(node.id, message)))
            case Prepare(round):
                node.sealing += 1
                self.run_on(node, self.rng.choice((0.0, 0.01, 0.3)), self.seal, node, round)
            case Scatter(round, shares):
                self.scatter(node, round, shares)
            case Reduce(round):
                self.run_on(node, self.rng.uniform(0, 0.05), self.reduce, node, round)
            case Publish(round):
                self.publish(node, round)
            case Apply(round, shares, results):
                digest = round_digest(round, shares, results)[:16]
                self.committed.setdefault(round, set()).add(digest)
                self.run_on(node, self.rng.choice((0.0, 0.05, 0.2)), self.apply, node, round, shares, digest)
            case Ended():
                node.rounds.append((self.now, effect))
                node.shunned.update(
                    dict.fromkeys(effect.culprits | effect.late | effect.unsure | effect.stalled, self.now + VIEW_S)
                )
                for peer in effect.dead:
                    node.heard.pop(peer, None)
            case FellBehind(peer, _):
                self.sync(node, peer)

    def seal(self, node, round):
        node.sealing -= 1
        if node.fresh:
            node.ledger = node.ledger.sealed(frozenset(node.fresh), len(node.fresh))
            node.fresh = []
        tokens = sum(entry.tokens for entry in node.ledger.pending)
        self.feed(node, PrepareDone(round, tokens, tokens))

    def scatter(self, node, round, shares):
        node.ledger = node.ledger.carried(round)
        content = frozenset().union(*(entry.sum for entry in node.ledger.pending))
        self.carried.setdefault(round, {})[node.id] = content
        node.parts[round, node.id] = content
        self.run_on(node, 0.0, self.feed, node, SealDone(round))
        for share in shares:
            if share.peer_id == node.id:
                continue

            def deliver(owner):
                owner.parts[round, node.id] = content
                self.feed(owner, PartIn(round, node.id))

            self.send(node, share.peer_id, deliver, broken=Broken(round, share.peer_id, "stream reset"))

    def reduce(self, node, round):
        if node.state.round is None or node.state.round.id != round:
            return
        parts = [(peer, sorted(node.parts[round, peer])) for peer in sorted(node.state.round.members)]
        digest = hashlib.sha256(repr((node.id, parts)).encode()).hexdigest()[:16]
        self.feed(node, Reduced(round, (SpanResult(0, node.id, digest),)))

    def publish(self, node, round):
        digest = node.state.round.spans[0, node.id] if node.state.round else None
        members = node.state.round.members if node.state.round else ()
        for peer in sorted(members):
            told = digest
            if self.liars.get(node.id, 0) > self.now and self.rng.random() < 0.5:
                told = "lie" + digest
            if peer != node.id:
                span = SpanIn(round, node.id, (SpanResult(0, node.id, told),))
                self.send(node, peer, lambda other, span=span: self.feed(other, span))

    def apply(self, node, round, shares, digest):
        lineage = (*self.lineage_of[node.state.standing.base_hash], round)
        base = hashlib.sha256(f"{node.state.standing.base_hash}{digest}".encode()).hexdigest()[:16]
        assert self.lineage_of.setdefault(base, lineage) == lineage
        tokens = node.state.standing.committed_tokens + sum(share.tokens for share in shares)
        standing = Standing(node.state.standing.version + 1, base, tokens, ((0, base),))
        node.ledger = node.ledger.committed(round, shared=len(shares) > 1)
        node.saved = (standing, round, node.ledger.lineage)
        node.partners = frozenset(share.peer_id for share in shares)
        self.feed(node, Applied(round, standing))

    # --- the network -----------------------------------------------------------------------------------------
    def cut_off(self, a, b):
        return self.groups is not None and self.groups[a] != self.groups[b]

    def send(self, node, to, deliver, broken=None):
        peer = self.nodes[to]
        if not peer.is_up:
            self.run_on(node, self.delay_s, self.feed, node, broken or Lost(to, refused=True))
            return
        copies = 1 + (self.rng.random() < self.duplicates)
        for _ in range(copies):
            if self.cut_off(node.id, to) or self.rng.random() < self.loss:
                continue
            at = self.now + self.rng.expovariate(1 / self.delay_s)
            if self.fifo:
                at = max(at, self.last_arrival.get((node.id, to), 0.0) + 1e-6)
                self.last_arrival[node.id, to] = at
            life = peer.life

            def arrive(peer=peer, life=life):
                if peer.is_up and peer.life == life and not self.cut_off(node.id, to):
                    self.run_on(peer, 0.0, deliver, peer)

            self.after(at - self.now, arrive)

    # --- what the daemon does --------------------------------------------------------------------------------
    def train(self, id, life):
        node = self.nodes[id]
        if node.is_up and node.life == life:
            if self.training and self.now >= node.stalled_until:
                batch = f"{id}.{life}.{next(self.ids)}"
                node.fresh.append(batch)
                node.made.append(batch)
            self.after(self.rng.uniform(0.1, 0.5), self.train, id, life)

    def announce(self, id, life):
        node = self.nodes[id]
        if node.is_up and node.life == life:
            if self.now >= node.stalled_until:
                told = (node.state.standing, node.state.must_sync)
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
        live = {p: s for p, (at, s, syncing) in node.heard.items() if self.now - at < VIEW_S and not syncing}
        self.feed(node, Saw(dict.fromkeys(live, ALL)))
        if node.state.phase is not Phase.IDLE or node.state.must_sync or node.syncing:
            return
        mine = node.state.standing
        ahead = [p for p, s in sorted(live.items()) if s != mine and s.is_heavier_than(mine)]
        if ahead:
            self.feed(node, SyncStarted())
            self.sync(node, max(ahead, key=lambda p: (live[p].committed_tokens, p)))
            return
        mine = node.state.standing
        same = {
            p
            for p, s in live.items()
            if (s.shares_bits_with(mine) or (p in node.partners and s.version < mine.version))
            and node.shunned.get(p, 0.0) <= self.now
        }
        has_work = node.fresh or node.ledger.pending
        can_commit = 2 * len(same | {id}) > len(live.keys() | {id})
        if (has_work or (not self.training and same)) and can_commit and id == min(same | {id}):
            # Whoever seems to be behind is called too: it may have caught up, and else it learns that it has not.
            called = {p for p in live if node.shunned.get(p, 0.0) <= self.now} | {id}
            plan = RoundPlan(frozenset(called), dict.fromkeys([*live, id], ALL), BUDGET_S, ANSWER_S)
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
            standing, base_round, lineage = snapshot
            if node.state.phase is not Phase.IDLE:
                self.run_on(node, 0.1, take, snapshot)
                return
            node.syncing = False
            if not standing.is_heavier_than(node.state.standing):
                self.feed(node, SyncFailed())
                return
            node.ledger, lost = node.ledger.moved(lineage)
            node.lost += lost
            node.moves += 1
            node.saved, node.partners = snapshot, frozenset()
            self.feed(node, Synced(standing, base_round))

        def ask(peer):
            snapshot = (peer.state.standing, peer.state.base_round, peer.ledger.lineage)
            self.send(peer, node.id, lambda _: take(snapshot))

        self.send(node, peer_id, ask)
        self.run_on(node, 1.0, fail)

    # --- faults ----------------------------------------------------------------------------------------------
    def strike(self, fault):
        node = self.nodes[f"n{fault.node % len(self.nodes)}"]
        match fault.kind:
            case "kill" | "restart":
                if not node.is_up:
                    return
                node.is_up = False
                for other in self.nodes.values():
                    if other is not node and not self.cut_off(node.id, other.id):
                        self.run_on(other, self.delay_s, self.feed, other, Lost(node.id))
                if fault.kind == "restart":
                    self.after(fault.seconds, self.revive, node)
            case "stall":
                node.stalled_until = max(node.stalled_until, self.now + fault.seconds)
            case "lie":
                self.liars[node.id] = self.now + fault.seconds
            case "partition":
                self.groups = {id: (int(id[1:]) + fault.node) % 3 == 0 for id in self.nodes}
                self.after(fault.seconds, self.heal)
            case "cut":  # the links break, and say so, though nobody died
                for other in self.nodes.values():
                    if other is not node and other.is_up and node.is_up:
                        self.run_on(other, self.delay_s, self.feed, other, Lost(node.id))
                        self.run_on(node, self.delay_s, self.feed, node, Lost(other.id))

    def heal(self):
        self.groups = None

    def revive(self, node):
        standing, base_round, lineage = node.saved
        node.life += 1
        node.is_up, node.syncing, node.sealing, node.started, node.wakes_at = True, False, 0, None, None
        node.state = self.fresh_state(node.id, standing, base_round)
        node.ledger = Ledger(lineage=lineage)
        node.partners, node.shunned = frozenset(), {}
        node.fresh, node.made, node.lost, node.moves, node.heard, node.parts = [], [], 0, 0, {}, {}
        for start in (self.drive, self.train, self.announce):
            self.after(0.1, start, node.id, node.life)

    def quiet(self):
        """No more faults and no more work: what is there has to come together from the returned time on."""
        self.heal()
        self.training, self.duplicates, self.loss, self.liars = False, 0.0, 0.0, {}
        return max([self.now, *(node.stalled_until for node in self.nodes.values())])

    # --- what must hold at every moment ----------------------------------------------------------------------
    def check(self, node):
        state = node.state
        if state.round is not None:
            assert len(self.committed.get(state.round.id, ())) <= 1, f"two results for round {state.round.id}"
            if state.phase not in (Phase.IDLE, Phase.APPLYING):
                round, since = node.started
                bound = BUDGET_S + GRACE_S + DOUBT_S + 0.1
                late = self.now - since - bound
                assert round != state.round.id or late <= max(0.0, node.stalled_until - since), "a round does not end"

    def check_books(self):
        """Every microbatch of every living node is in one round of its lineage, or pending, or said to be lost."""
        for digests in self.committed.values():
            assert len(digests) == 1
        by_lineage = {}
        for node in self.nodes.values():
            if not node.is_up:
                continue
            standing = node.state.standing
            lineage = self.lineage_of[standing.base_hash]
            assert by_lineage.setdefault(lineage, standing) == standing, "one lineage, two states"
            assert standing.version == len(lineage)
            assert node.ledger.lineage == lineage[-64:]
            counts = dict.fromkeys(node.made, 0)
            for batch in node.fresh:
                counts[batch] += 1
            for entry in node.ledger.pending:
                for batch in entry.sum:
                    counts[batch] += 1
            if node.state.phase is Phase.APPLYING:
                continue  # committed, and not yet in the books
            for round in lineage:
                for batch in self.carried[round].get(node.id, ()):
                    if batch in counts:
                        counts[batch] += 1
            twice = [batch for batch, count in counts.items() if count > 1]
            missing = [batch for batch, count in counts.items() if count == 0]
            assert not twice, f"{node.id}: counted twice: {twice}"
            # A second move may lead back to rounds that the first one gave up for lost.
            is_told = len(missing) == node.lost or (node.moves > 1 and len(missing) <= node.lost)
            assert is_told, f"{node.id}: {len(missing)} are missing, {node.lost} said to be lost"

    def is_settled(self):
        """Whether everything that is up has come together, with nothing left to bring."""
        up = [node for node in self.nodes.values() if node.is_up]
        is_done = all(not n.fresh and not n.ledger.pending for n in up)
        return is_done and len({n.state.standing for n in up}) <= 1

    def standings(self):
        return {node.id: node.state.standing for node in self.nodes.values() if node.is_up}

    def num_committed(self):
        return sum(1 for n in self.nodes.values() for _, e in n.rounds if e.status is RoundStatus.COMMITTED)
