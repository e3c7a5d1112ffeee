"""Every step that changes the disk: killed there, refused there, cut off from power there. Nothing is lost."""

import errno
import os
import re
import shutil
import signal
import tempfile
from functools import partial
from pathlib import Path

import pytest

from faults.crash import BROKEN, DONE, PowerCut, crashed
from faults.durable import durable_steps, names
from faults.fault import Fault
from faults.injector import injected
from faults.scenarios import SCENARIOS
from node.core.errors import NodeError
from node.training import checkpoint

BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}


@pytest.fixture(scope="module")
def passings(tmp_path_factory):
    """How often each scenario passes each point when nothing strikes, and what in the code has no name."""
    counts, unnamed = {}, set()
    for scenario in SCENARIOS:
        folder = tmp_path_factory.mktemp("undisturbed") / "state"
        folder.mkdir()
        scenario.prepare(folder)
        with injected(*scenario.always, durable_steps()) as injector:
            scenario.act(folder)
        scenario.check(folder)
        counts[scenario.name] = dict(injector.passed)
        unnamed |= injector.unnamed
    return counts, unnamed


@pytest.fixture
def begin():
    """Prepare a scenario in a new folder and return the folder: in memory if there is such a place, since a real
    `fsync` takes a hundredth of a second and the injector does not need it."""
    memory = Path("/dev/shm")
    tmp_path = Path(tempfile.mkdtemp(prefix="potluck-test-", dir=memory if os.access(memory, os.W_OK) else None))
    count = 0

    def prepare(scenario):
        nonlocal count
        count += 1
        folder = tmp_path / str(count) / "state"
        folder.mkdir(parents=True)
        scenario.prepare(folder)
        return folder

    yield prepare
    shutil.rmtree(tmp_path)


def test_every_durable_step_in_the_code_is_passed_by_a_scenario(passings):
    counts, unnamed = passings

    passed = {point for points in counts.values() for point in points}

    assert sorted(set(names()) - passed) == [], "write a scenario in scenarios.py that passes these steps"
    assert sorted(unnamed) == [], "teach durable.py to name these steps"
    assert len(names()) > 50


def test_a_new_durable_step_is_seen(passings, monkeypatch):
    monkeypatch.setattr("faults.scenarios.SCENARIOS", ())
    counts = dict(passings[0])

    del counts["saving checkpoints"], counts["failing to save"], counts["opening a damaged store"]

    passed = {point for points in counts.values() for point in points}
    assert "training.checkpoint:CheckpointStore.save:rename" in set(names()) - passed


@pytest.mark.parametrize("name", BY_NAME)
def test_a_node_that_is_killed_at_any_durable_step_loses_nothing(name, passings, begin, is_soak):
    scenario = BY_NAME[name]
    points = list(passings[0][name].items())
    for point, count in points[:: 6 if scenario.is_slow and not is_soak else 1]:
        crashes = [Fault(point, "kill"), Fault(point, "kill", when="after"), Fault(point, "kill", nth=count)]
        torn = [Fault(point, "truncate"), Fault(point, "kill", when="after")]
        for faults in [*([crash] for crash in crashes[:: 3 if scenario.is_slow and not is_soak else 1]), torn]:
            if faults is torn and not point.endswith(":write"):
                continue
            folder = begin(scenario)

            assert crashed(partial(scenario.act, folder), *faults, *scenario.always) == -signal.SIGKILL, point

            scenario.check(folder)
            scenario.act(folder) if not scenario.always else None
            scenario.check(folder)


def refused(scenario, folder, fault):
    """Act with a fault; return the error's message with where it struck, or nothing if nobody minded."""
    with injected(fault, durable_steps()) as injector:
        try:
            scenario.act(folder)
        except NodeError as error:
            return f"{error.message} {injector.struck}"
    return ""


@pytest.mark.parametrize("name", [name for name, scenario in BY_NAME.items() if not scenario.always])
def test_a_step_that_the_disk_refuses_is_told_with_path_and_bytes_and_loses_nothing(name, passings, begin, is_soak):
    scenario = BY_NAME[name]
    total = sum(passings[0][name].values())
    codes = ("EIO", "ENOSPC", "EROFS")
    stride = (7 if is_soak else 71) if scenario.is_slow else 1
    told = 0

    for nth in range(1, total + 1, stride):
        for code in codes if is_soak or not scenario.is_slow else codes[:1]:
            folder = begin(scenario)
            message = refused(scenario, folder, Fault("*", "fail", nth=nth, code=code))
            if message:
                told += 1
                # what only makes or moves a folder needs no bytes worth telling
                is_small = re.search(r":(mkdir|lock)'|archive_run:rename'", message) is not None
                for part in (str(folder.parent), os.strerror(getattr(errno, code)), "It needs", "free"):
                    assert part in message or (is_small and part in "It needs free")
            scenario.check(folder)
            scenario.act(folder)
            scenario.check(folder)
    assert told >= total // 3 // stride or not scenario.tells, "most steps matter"


def test_a_power_cut_at_any_step_of_a_save_loses_no_checkpoint(passings, begin):
    scenario = BY_NAME["saving checkpoints"]

    for nth in range(1, sum(passings[0][scenario.name].values()) + 1):
        folder, cut = begin(scenario), PowerCut()
        scenario.act(folder)

        ended = crashed(partial(scenario.act, folder), Fault("*", "fail", nth=nth, error=cut.strike), cut)

        assert ended in (-signal.SIGKILL, DONE)
        scenario.check(folder)


def test_without_the_sync_of_files_a_power_cut_is_seen(begin):
    scenario = BY_NAME["saving checkpoints"]
    folder, cut = begin(scenario), PowerCut()
    scenario.act(folder)

    def without_sync():
        checkpoint.os = type("OsWithoutSync", (), {"fsync": staticmethod(lambda _: None)})

    last = "training.checkpoint:CheckpointStore._prune:rename"
    crashed(lambda: scenario.act(folder), Fault(last, "fail", error=cut.strike), cut, also=without_sync)

    with pytest.raises(AssertionError, match=r"acknowledged|torn"):
        scenario.check(folder)


def test_without_a_rename_at_the_end_a_torn_checkpoint_is_seen(begin):
    scenario = BY_NAME["saving checkpoints"]
    folder = begin(scenario)
    scenario.act(folder)

    def in_place():
        store = checkpoint.CheckpointStore

        def save(self, new):
            generation = self.folder / "generation-00000009"
            generation.mkdir()
            for name, data in checkpoint._render(new).items():
                checkpoint._write_synced(generation / name, data)
            return 0

        store.save = save

    crashed(lambda: scenario.act(folder), Fault("*_write_synced:write", "kill", when="after", nth=2), also=in_place)

    with pytest.raises(AssertionError, match="torn"):
        scenario.check(folder)


def test_a_child_that_raises_is_not_taken_for_a_crash(begin):
    assert crashed(lambda: 1 // 0) == BROKEN
    assert crashed(lambda: None) == DONE
