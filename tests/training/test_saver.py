"""When a version is saved, what goes into the checkpoint, and what is told."""

import asyncio

import pytest

from node.core.errors import CheckpointError, OutOfDisk
from node.core.events import CheckpointSaved, EventBus, Fault
from node.data.stream import Cursor
from node.training import saver as saver_module
from node.training.checkpoint import CheckpointStore
from node.training.saver import Saver, Snapshot

CURSOR = Cursor(1, 2, 3)


def snapshot(version, size=1000):
    return Snapshot(version, {0: b"x" * size, 1: b"y"}, CURSOR, {"rounds": version}, ("r.1", "r.2"), "0b")


class Desk:
    """A saver over a real store, with a clock of its own for what a save costs, and all that it told."""

    def __init__(self, folder, monkeypatch, every_steps=None, store_class=CheckpointStore):
        self.now, self.told, bus = 100.0, [], EventBus()
        bus.subscribe(self.told.append)
        monkeypatch.setattr(saver_module.time, "monotonic", lambda: self.now)
        self.store = store_class(folder)
        self.store.desk = self
        self.saver = Saver(self.store, fingerprint="run", data_digest="da", every_steps=every_steps, events=bus)


class Slow(CheckpointStore):
    """Takes two seconds of the desk's clock."""

    def save(self, checkpoint):
        self.desk.now += 2.0
        return super().save(checkpoint)


class Refusing(CheckpointStore):
    """Fails as told, and has as much room as told."""

    error, room = None, 0

    def save(self, checkpoint):
        if self.error is not None:
            raise self.error
        return super().save(checkpoint)

    def free_bytes(self):
        return self.room


async def test_a_checkpoint_tells_of_one_version_and_all_that_a_node_goes_on_from(tmp_path, monkeypatch):
    desk = Desk(tmp_path, monkeypatch)

    await desk.saver.save_or_raise(snapshot(3))

    loaded = desk.store.load_latest("run")
    assert (loaded.version, loaded.adapters) == (3, {0: b"x" * 1000, 1: b"y"})
    assert loaded.cursor == CURSOR.as_json()
    assert loaded.counters == {"rounds": 3}
    assert loaded.random == {"data": "da", "lineage": "r.1 r.2", "base_hash": "0b"}
    (told,) = desk.told
    size = sum(file.stat().st_size for file in tmp_path.glob("generation-*/*"))
    assert told == CheckpointSaved(3, 0.0, size)


@pytest.mark.parametrize(
    ("every_steps", "saved", "due"),
    [(1, None, [1, 2, 3]), (3, None, [3, 6]), (3, 3, [6]), (2, 5, [6]), (None, None, [1, 2, 3, 4, 5, 6])],
)
async def test_a_version_is_due_every_so_many_steps_and_never_twice(tmp_path, monkeypatch, every_steps, saved, due):
    desk = Desk(tmp_path, monkeypatch, every_steps)
    if saved is not None:
        await desk.saver.save_or_raise(snapshot(saved))

    found = [version for version in range(7) if desk.saver.is_due(version)]

    assert found == due if every_steps != 1 else found[:3] == due


async def test_without_a_number_of_steps_saving_takes_a_hundredth_of_the_time_at_most(tmp_path, monkeypatch):
    desk = Desk(tmp_path, monkeypatch, store_class=Slow)
    assert desk.saver.is_due(1), "the first one at once"
    await desk.saver.save_or_raise(snapshot(1))

    desk.now += 199.9
    assert not desk.saver.is_due(2)
    desk.now += 0.1
    assert desk.saver.is_due(2)
    assert desk.told[0].seconds == 2.0


async def test_while_one_is_being_saved_no_other_is_due(tmp_path, monkeypatch):
    desk = Desk(tmp_path, monkeypatch, 1)

    saving = asyncio.create_task(desk.saver.save(snapshot(1)))
    await asyncio.sleep(0)

    assert not desk.saver.is_due(2)
    await saving
    assert desk.saver.is_due(2)


async def test_a_failure_is_told_once_and_blocks_until_a_save_succeeds(tmp_path, monkeypatch):
    desk = Desk(tmp_path, monkeypatch, 1, store_class=Refusing)
    desk.store.error = CheckpointError("It cannot be written.", hint="Look at the folder.")
    assert not desk.saver.is_blocked

    for _ in range(3):
        await desk.saver.save(snapshot(1))
        assert desk.saver.is_blocked
    (fault,) = desk.told
    assert isinstance(fault, Fault)
    assert fault.what.startswith("It cannot be written. Training pauses")
    assert fault.hint == "Look at the folder."
    assert desk.saver.saved_version == -1
    with pytest.raises(CheckpointError):
        await desk.saver.save_or_raise(snapshot(1))

    desk.store.error = None
    await desk.saver.save(snapshot(1))
    assert not desk.saver.is_blocked
    assert desk.saver.saved_version == 1
    desk.store.error = OutOfDisk("Full.", hint="")
    await desk.saver.save(snapshot(2))
    assert [type(event) for event in desk.told] == [Fault, CheckpointSaved, Fault]


@pytest.mark.parametrize(
    ("error", "room", "may_try"),
    [
        (None, 0, True),
        (CheckpointError("It cannot be written.", hint=""), 0, True),  # that does not get better by waiting for room
        (OutOfDisk("Full.", hint=""), 1000, False),
        (OutOfDisk("Full.", hint=""), 1001, True),
    ],
)
async def test_a_full_disk_is_tried_again_only_when_there_is_room(tmp_path, monkeypatch, error, room, may_try):
    desk = Desk(tmp_path, monkeypatch, 1, store_class=Refusing)
    desk.store.error, desk.store.room = error, room

    await desk.saver.save(snapshot(1))

    assert desk.saver.has_room() is may_try
