"""What trackers get of a run: each library for real, read back from what it wrote."""

import asyncio
import math
import struct
import sys
import threading
from pathlib import Path

import pytest
from observe.figures import ALL_EVENTS, HOSTILE, Node

from node.cli.trackers import load_trackers
from node.config.local import load_local
from node.core.errors import ConfigError
from node.core.events import Evaluated, EventBus, Fault, MicrobatchDone, RoundFinished, Stepped
from node.core.types import RoundResult, RoundStatus
from node.observe import trackers
from node.observe.trackers import Figures, Pump, tracking

RUN = "f" * 12
SECRET = "secret-diary"


def live(openers, home, events=ALL_EVENTS):
    """Let trackers watch a node to which `events` happen; return what was emitted."""
    node, bus, emitted = Node(), EventBus(), []
    bus.subscribe(node.board)
    bus.subscribe(emitted.append)

    async def run():
        async with tracking(openers, node.status, bus, home):
            for event in events:
                bus.emit(event)

    asyncio.run(run())
    return emitted


def faults(emitted):
    return [event.what for event in emitted if isinstance(event, Fault) and event.what != HOSTILE]


class Kept:
    """A tracker that keeps what it is told, and fails or waits if it is told to."""

    def __init__(self, fail_at=math.inf, wait=None):
        self.subjects, self.points, self.closed = [], [], False
        self._fail_at, self._wait = fail_at, wait

    def __call__(self, subject):
        self.subjects.append(subject)
        return self

    def log(self, step, figures):
        if self._wait:
            self._wait.wait(20)
        if len(self.points) >= self._fail_at:
            raise RuntimeError("the server says no\nstack of its own")
        self.points.append((step, figures))

    def close(self):
        self.closed = True


def test_loss_of_a_step_is_the_mean_over_the_labels_since_the_step_before():
    figures = Figures()
    for event in (MicrobatchDone(1, 4.0, 9, 10, 0.1), MicrobatchDone(2, 1.0, 9, 30, 0.1)):
        assert figures.take(event) is None

    first = figures.take(Stepped(1, 2e-4, 0.5, "ab", 0.25))
    nothing_of_its_own = figures.take(Stepped(2, 1e-4, 0.4, "cd", 0.25))

    assert first == (
        1,
        {"train/loss": 1.75, "train/learning_rate": 2e-4, "train/grad_norm": 0.5, "train/epoch": 0.25},
    )
    assert nothing_of_its_own[0] == 2
    assert "train/loss" not in nothing_of_its_own[1]


def test_round_is_a_point_of_the_step_that_it_made_and_a_dropped_one_of_the_step_before():
    figures = Figures()

    kept = figures.take(RoundFinished(RoundResult(4, RoundStatus.COMMITTED, ("a", "b"), 600, 1.5, 1000)))
    dropped = [figures.take(RoundFinished(RoundResult(5, RoundStatus.DROPPED, ("a",), 0, 9.0, 10))) for _ in range(2)]

    assert kept == (5, {"round/members": 2, "round/seconds": 1.5, "round/tokens": 600, "round/bytes_sent": 1000})
    assert dropped == [(5, {"round/dropped": 1}), (5, {"round/dropped": 2})]
    assert figures.take(RoundFinished(RoundResult(5, RoundStatus.ALONE, ("a",), 9, 0.0, 0))) is None


def test_trackers_hear_no_name_and_no_text_of_others(tmp_path):
    kept = Kept()

    assert faults(live([("kept", kept)], tmp_path)) == []

    (subject,) = kept.subjects
    assert (subject.run, subject.folder) == (RUN, tmp_path / "tracked" / "kept")
    assert subject.name.startswith("mine-")
    assert kept.closed
    said = repr(kept.points) + repr(subject.config)
    assert "evil" not in said
    assert all(isinstance(value, (int, float)) for _, figures in kept.points for value in figures.values())
    assert [step for step, figures in kept.points if "swarm/peers" in figures] == [1]


def test_tracker_that_fails_is_told_of_once_and_holds_up_nothing(tmp_path):
    fails, works = Kept(fail_at=1), Kept()

    emitted = live([("fails", fails), ("works", works)], tmp_path, ALL_EVENTS * 5)

    (said,) = faults(emitted)
    assert said == "fails no longer tracks this run: the server says no."
    assert fails.closed
    assert len(works.points) == 5 * 4


def test_tracker_that_cannot_begin_is_told_of_once(tmp_path):
    def opens(subject):
        raise OSError("no space left")

    assert faults(live([("full", opens)], tmp_path)) == ["full no longer tracks this run: no space left."]


def test_tracker_that_stands_still_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "_END_S", 0.3)
    monkeypatch.setattr(trackers, "_MAX_WAITING", 4)
    go_on, node, emitted = threading.Event(), Node(), []
    pump = Pump("slow", Kept(wait=go_on), node.status, tmp_path, emitted.append)

    for version in range(50):
        pump(Evaluated(version, 2.0, 10))
    pump.close()
    go_on.set()

    assert faults(emitted) == ["slow has not taken the last figures within 0 s."]


@pytest.fixture
def secrets(monkeypatch):
    """A machine on which much is called by a name that no tracker may learn."""
    monkeypatch.setattr(sys, "argv", ["potluck", "start", "recipe.yaml", "--data", f"/home/me/{SECRET}.jsonl"])
    monkeypatch.setenv("USER", SECRET)
    monkeypatch.setattr("socket.gethostname", lambda: SECRET)
    monkeypatch.setattr("platform.node", lambda: SECRET)
    return SECRET.encode()


def written(folder):
    return [path for path in Path(folder).rglob("*") if path.is_file()]


def test_tensorboard_can_read_what_was_written(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    emitted = live(load_trackers(["tensorboard"]), tmp_path)

    (file,) = written(tmp_path)
    assert file.parent.parent == tmp_path / "tracked" / "tensorboard" / RUN
    read = EventAccumulator(str(file.parent)).Reload()
    curves = {tag: [(e.step, e.tensor_proto.float_val[0]) for e in read.Tensors(tag)] for tag in read.Tags()["tensors"]}
    assert faults(emitted) == []
    assert curves["train/loss"] == [(1, pytest.approx((2.5 * 80 + 2.4 * 90) / 170))]
    assert curves["eval/loss"] == [(1, pytest.approx(2.2))]
    assert curves["round/dropped"] == [(0, 1.0)]
    assert curves["swarm/peers"] == [(1, 3.0)]


def wandb_records(data):
    """The records of a short file of W&B's: LevelDB's log, which begins with seven bytes of W&B's own."""
    from wandb.proto.wandb_internal_pb2 import Record

    at = 7
    while at < len(data):
        _, size, kind = struct.unpack_from("<IHB", data, at)
        assert kind == 1, "a whole record"
        yield Record.FromString(data[at + 7 : at + 7 + size])
        at += 7 + size


def test_wandb_keeps_figures_and_nothing_of_the_machine(tmp_path, monkeypatch, secrets):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    emitted = live(load_trackers(["wandb"]), tmp_path)

    files = written(tmp_path / "tracked" / "wandb")
    (log,) = (path for path in files if path.suffix == ".wandb")
    figures = [
        ("/".join(item.nested_key) or item.key, item.value_json)
        for record in wandb_records(log.read_bytes())
        for item in record.history.item
    ]
    assert faults(emitted) == []
    assert ("eval/loss", "2.2") in figures
    assert ("train/global_step", "1") in figures
    assert [path.name for path in files if secrets in path.read_bytes()] == []


def test_wandb_without_a_login_is_refused_before_the_training(monkeypatch, tmp_path):
    pytest.importorskip("wandb")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    import wandb

    wandb.teardown()

    with pytest.raises(ConfigError, match="not logged in"):
        load_trackers(["wandb"])


def test_trackio_keeps_figures_and_nothing_of_the_machine(tmp_path, monkeypatch, secrets):
    pytest.importorskip("trackio")
    import trackio.sqlite_storage
    import trackio.utils

    for module in (trackio, trackio.utils, trackio.sqlite_storage):
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path)

    emitted = live(load_trackers(["trackio"]), tmp_path)

    (run,) = trackio.sqlite_storage.SQLiteStorage.get_runs("potluck")
    points = trackio.sqlite_storage.SQLiteStorage.get_logs("potluck", run)
    assert faults(emitted) == []
    assert [point["eval/loss"] for point in points if "eval/loss" in point] == [2.2]
    assert [path.name for path in written(tmp_path) if secrets in path.read_bytes()] == []


def test_missing_library_is_named_with_the_command_that_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.summary", None)
    monkeypatch.delitem(sys.modules, "node.observe.track_tensorboard", raising=False)

    with pytest.raises(ConfigError, match="--track tensorboard: its library is not installed") as refusal:
        load_trackers(["tensorboard"])

    assert "pip install 'potluck[tensorboard]'" in refusal.value.hint


def test_trackers_stand_in_the_settings_too(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text('track = "tensorboard"\n')

    assert load_local(path).track == ("tensorboard",)
    assert load_local(path, track=("wandb", "trackio")).track == ("wandb", "trackio")
    path.write_text('track = ["mlflow"]\n')
    with pytest.raises(ConfigError, match="track"):
        load_local(path)
