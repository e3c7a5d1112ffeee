"""A swarm of nodes that come and go at random over simulated hours, each deciding by `node.core.placement` alone."""

import random
from dataclasses import dataclass, field

from node.core.placement import Candidate, choose, is_lopsided, should_move

TICK_S = 10.0
LOADING_S = 60.0
"""From a move until the stages are served."""


@dataclass
class Member:
    """A node as it is."""

    candidate: Candidate
    settled_at_s: float


@dataclass
class World:
    """All nodes, the clock, and what has been counted."""

    num_stages: int
    seed: int
    most_members: int = 50
    largest: int | None = None
    """Stages that fit into the largest machine; None: a tenth of them holds everything, the others up to half."""
    spare: float = 2.0
    """Room over the number of stages from which on all stages count as holdable."""
    members: dict[str, Member] = field(default_factory=dict)
    now_s: float = 0.0
    node_hours: float = 0.0
    moves: int = 0
    state: tuple = ((), False)
    state_since_s: float = 0.0
    born: int = 0
    unheld_since_s: float | None = None
    longest_unheld_s: float = 0.0
    """While there was room for all stages with something to spare."""
    shares: list[float] = field(default_factory=list)
    """The slowest stage's throughput over that of a perfect spread, tick by tick, while all stages are held."""
    left_alone: int = 0
    """Moves that left a stage without a holder."""

    def __post_init__(self):
        self.random = random.Random(self.seed)

    def candidates(self):
        return [member.candidate for member in self.members.values()]

    def throughputs(self):
        made = [0.0] * self.num_stages
        for c in self.candidates():
            for stage in c.shard.stages:
                made[stage] += c.stage_tokens_per_s / len(c.shard)
        return made

    def join(self, capacity=None, speed=None):
        """Let a node join: mostly small ones, a few that hold everything; the fastest is eight times the slowest."""
        if capacity is None:
            whole = self.largest is None and self.random.random() < 0.1
            most = self.largest or max(1, self.num_stages // 2)
            capacity = self.num_stages if whole else self.random.randint(1, most)
        speed = speed or 2 ** self.random.uniform(0, 3)
        self.born += 1
        name = f"n{self.random.randrange(10**6):06}-{self.born}"
        shard = choose(self.num_stages, self.candidates(), capacity, stage_tokens_per_s=speed)
        self.members[name] = Member(Candidate(name, shard, speed, capacity), self.now_s)

    def tick(self, *, stay_s=None, rest_s=None):
        """Let time go on: comings and goings (none if `stay_s` is None), then everybody decides from one view."""
        self.now_s += TICK_S
        if stay_s is not None:
            for name in sorted(self.members):
                if self.random.random() < TICK_S / stay_s:
                    del self.members[name]
            for _ in range(self.most_members - len(self.members)):
                if self.random.random() < TICK_S / rest_s:
                    self.join()
        self.decide()
        self.count()

    def decide(self):
        """Let everybody decide from one view, and make the moves."""
        view = self.candidates()
        unheld = tuple(stage for stage, made in enumerate(self.throughputs()) if made == 0)
        state = (unheld, is_lopsided(self.num_stages, view)) if view else ((), False)
        if state != self.state:
            self.state, self.state_since_s = state, self.now_s
        decided = {}
        for name, member in self.members.items() if state[1] else ():
            shard = should_move(
                self.num_stages,
                view,
                name,
                lopsided_s=self.now_s - self.state_since_s,
                settled_s=self.now_s - member.settled_at_s,
            )
            if shard is not None:
                decided[name] = shard
        assert len(decided) <= 1, decided
        for name, shard in decided.items():
            before = self.throughputs()
            old = self.members[name].candidate
            assert shard != old.shard
            assert len(shard) <= old.capacity_stages
            self.members[name] = Member(Candidate(name, shard, old.stage_tokens_per_s, old.capacity_stages), self.now_s)
            self.left_alone += any(b > 0 and a == 0 for b, a in zip(before, self.throughputs(), strict=True))
            self.moves += 1

    def count(self):
        self.node_hours += len(self.members) * TICK_S / 3600
        made = self.throughputs()
        room = sum(c.capacity_stages for c in self.candidates())
        if 0.0 in made and room >= self.spare * self.num_stages:
            self.unheld_since_s = self.now_s if self.unheld_since_s is None else self.unheld_since_s
            self.longest_unheld_s = max(self.longest_unheld_s, self.now_s - self.unheld_since_s)
        else:
            self.unheld_since_s = None
        if 0.0 not in made:
            self.shares.append(min(made) / (sum(made) / self.num_stages))
