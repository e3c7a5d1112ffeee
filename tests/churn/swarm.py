"""Real nodes of known speeds, killed with -9 and started again at random moments."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from processes import Node
from safetensors import safe_open

from churn.figures import Life, could_compute, longest_wait, times_of_two


@dataclass(frozen=True, slots=True)
class Mark:
    """A step of the run."""

    version: int
    tokens: int
    """Of all members, behind it."""
    at_s: float
    """When it was made, in Unix seconds."""


class Seat:
    """One member's place: its folder and command stay the same, its processes come and go."""

    def __init__(self, home: Path, data: Path, tokens_per_s: float) -> None:
        self.home, self.data, self.tokens_per_s = home, data, tokens_per_s
        self.processes: list[Node] = []
        self.ends_s: list[float] = []
        """When each process but a living last one died."""

    @property
    def is_up(self) -> bool:
        """Whether it has a process, perhaps one that only starts."""
        return len(self.processes) > len(self.ends_s)

    @property
    def is_training(self) -> bool:
        """Whether its present process has begun to train."""
        return self.is_up and trains_since(self.processes[-1]) is not None

    def kill(self) -> None:
        """Kill the process with -9."""
        self.ends_s.append(time.time())
        self.processes[-1].kill()

    def lives(self, until_s: float) -> list[Life]:
        """Return the lives of its processes that came to train, the present one until then."""
        ends_s = [*self.ends_s, *([until_s] if self.is_up else [])]
        begins = [(trains_since(p), end) for p, end in zip(self.processes, ends_s, strict=True)]
        return [Life(begin, end, self.tokens_per_s) for begin, end in begins if begin is not None]


def trains_since(node: Node) -> float | None:
    """Return when a process could train for the first time, in Unix seconds."""
    return next((e["at_s"] for e in node.of("StateChanged") if e["after"] == "training"), None)


class Swarm:
    """The seats, the first of which founds the run."""

    def __init__(
        self,
        start: Callable[..., Node],
        folder: Path,
        recipe: Sequence[str | Path],
        data: Sequence[Path],
        speeds: Sequence[float],
    ) -> None:
        """Start all, the others when the founder listens; `recipe` is what `start` is given, but for the data."""
        self._start, self._recipe = start, recipe
        self.seats = [Seat(folder / f"n{i}", d, s) for i, (d, s) in enumerate(zip(data, speeds, strict=True))]
        for seat in self.seats:
            self.start(seat)

    def start(self, seat: Seat) -> None:
        """Give a seat a process: with the command that it was started with at first, or through any that lives."""
        found = seat is self.seats[0]
        address = "" if found else next(s for s in self.seats if s.is_up and s is not seat).processes[-1].address
        what = ("start", *self._recipe) if found else ("join", address)
        program = ("churn.paced", seat.tokens_per_s)
        seat.processes.append(self._start(seat.home, *what, "--data", seat.data, program=program))

    def until_all_train(self, timeout: float = 180.0) -> Mark:
        """Wait until everybody has been in a round and one is saved; return its step."""
        for seat in self.seats:
            seat.processes[-1].wait_for(lambda n: n.shared_rounds(), "a round", timeout)
        founder = self.seats[0]
        founder.processes[-1].wait_for(lambda n: last_saved(founder.home, n), "a step that is saved", timeout)
        return self.newest()[1]

    def disturb(self, chance: random.Random, *, mean_s: float, until: Callable[[], bool], steady: int = 0) -> int:
        """Kill and start at random, as a Poisson process; return the number of kills.

        Args:
            chance: Makes the moments and the choices.
            mean_s: Between two moments.
            until: Whether it is enough; asked ten times a second.
            steady: The first so many are left alone. Without any, one that trains is always left.
        """
        kills, due = 0, time.monotonic() + chance.expovariate(1 / mean_s)
        while not until():
            time.sleep(0.1)
            if time.monotonic() < due:
                continue
            due += chance.expovariate(1 / mean_s)
            seats = self.seats[steady:]
            training, down = [s for s in seats if s.is_training], [s for s in seats if not s.is_up]
            can_kill = len(training) > (0 if steady else 1)
            if down and (not can_kill or chance.random() < 0.5):
                self.start(chance.choice(down))
            elif can_kill:
                chance.choice(training).kill()
                kills += 1
        return kills

    def has_ended(self) -> Seat | None:
        """Return a member that leaves because the last step is made; None if there is none yet."""
        return next((seat for seat in self.seats if seat.is_up and _leaves(seat.processes[-1])), None)

    def end(self) -> tuple[Seat, Mark]:
        """Let a member that leaves do so and kill the others; return it, and the last step."""
        leaver = self.has_ended()
        assert leaver is not None
        for seat in self.seats:
            if seat.is_up and seat is not leaver:
                seat.kill()
        assert leaver.processes[-1].end(60) == 0, leaver.processes[-1].errors
        version, tokens = max(saved_in(leaver.home))
        steps = [e for seat in self.seats for node in seat.processes for e in node.of("Stepped")]
        return leaver, Mark(version, tokens, min(e["at_s"] for e in steps if e["version"] == version))

    def newest(self) -> tuple[Seat, Mark]:
        """Return a living member that has saved the newest step of all, and that step."""
        saved = [(seat, last_saved(seat.home, seat.processes[-1])) for seat in self.seats if seat.is_training]
        return max(((seat, mark) for seat, mark in saved if mark is not None), key=lambda pair: pair[1].tokens)

    def figures(self, begin: Mark, end: Mark) -> dict[str, float]:
        """Return what came of the time between two steps."""
        seconds = end.at_s - begin.at_s
        lives = [life for seat in self.seats for life in seat.lives(end.at_s)]
        commits = [e["at_s"] for seat in self.seats for node in seat.processes for e in node.of("Stepped")]
        alive = [dataclasses.replace(life, tokens_per_s=1) for life in lives]
        spans = times_of_two(lives, begin.at_s, end.at_s)
        counted, could = end.tokens - begin.tokens, could_compute(lives, begin.at_s, end.at_s)
        done = [e for seat in self.seats for node in seat.processes for e in node.of("MicrobatchDone")]
        computed = sum(e["tokens"] for e in done if begin.at_s < e["at_s"] < end.at_s)
        return {
            "seconds": round(seconds),
            "steps": end.version - begin.version,
            "tokens counted": counted,
            "computed / could compute": round(computed / could, 3),
            "counted / could compute": round(counted / could, 3),
            "mean number alive": round(could_compute(alive, begin.at_s, end.at_s) / seconds, 2),
            "longest wait for a round, s": round(longest_wait(commits, spans), 1),
        }


def _leaves(node: Node) -> bool:
    return any(event["after"] in ("draining", "stopped") for event in node.of("StateChanged"))


def saved_in(home: Path) -> list[tuple[int, int]]:
    """Return version and committed tokens of each checkpoint in a home."""
    found = []
    for file in home.glob("runs/*/checkpoints/generation-*/adapter-0.safetensors"):
        # it may be removed at this very moment, by a newer one
        with suppress(FileNotFoundError), safe_open(file, framework="pt") as opened:
            found.append((int(opened.metadata()["version"]), int(opened.metadata()["committed_tokens"])))
    return found


def last_saved(home: Path, node: Node) -> Mark | None:
    """Return the newest step that a process made and saved; None if there is none yet."""
    made = {event["version"]: event["at_s"] for event in node.of("Stepped")}
    saved = [(version, tokens) for version, tokens in saved_in(home) if version in made]
    return Mark(*max(saved), made[max(saved)[0]]) if saved else None
