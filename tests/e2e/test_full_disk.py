"""A node whose disk is full pauses, says why, and goes on by itself when there is room."""

import contextlib
import time

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]


def fill(disk):
    with (disk / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(b"x" * (1 << 12))


def state(node):
    return node.of("StateChanged")[-1]["after"]


def versions(node, kind):
    return [event["version"] for event in node.of(kind)]


@pytest.fixture
def run_on_a_full_disk(small_disk, random_model, recipe, data, start):
    """Start a node, let it save, and fill its disk."""

    def run(**options):
        arguments = ("start", recipe(random_model(4), max_steps=100_000), "--data", data("anna"))
        node = start(small_disk / "home", *arguments, **options)
        node.wait_for(lambda n: max(versions(n, "CheckpointSaved"), default=0) >= 2, "a checkpoint")
        fill(small_disk)
        node.wait_for(lambda n: any("No space left" in e["what"] for e in n.of("Fault")), "the full disk is told")
        return node

    return run


def test_a_full_disk_pauses_training_until_there_is_room(small_disk, run_on_a_full_disk):
    node = run_on_a_full_disk()
    node.wait_for(lambda n: state(n) == "paused", "the pause")
    saved, made = max(versions(node, "CheckpointSaved")), max(versions(node, "Stepped"))
    (fault,) = [e for e in node.of("Fault") if "No space left" in e["what"]]

    time.sleep(3)  # long enough for ten steps

    assert state(node) == "paused"
    assert max(versions(node, "Stepped")) == made, "a step that could not be saved"
    assert made - saved <= 1
    assert "It needs" in fault["what"]
    assert "is free" in fault["what"]
    assert str(small_disk) in fault["what"]
    assert "Training pauses" in fault["what"]
    (small_disk / "filler").unlink()
    node.wait_for(lambda n: max(versions(n, "CheckpointSaved")) > made + 1, "steps that are saved again")
    assert state(node) == "training"
    assert node.stop() == 0


def test_without_the_pause_steps_are_made_that_are_not_saved(run_on_a_full_disk, is_soak):
    if not is_soak:
        pytest.skip("the long form alone (--soak): it shows that the test before would fail without the pause")
    node = run_on_a_full_disk(program=("faults.without_pause",))
    saved = max(versions(node, "CheckpointSaved"))

    node.wait_for(lambda n: max(versions(n, "Stepped")) > saved + 2, "steps that would be lost")


def test_a_swarm_goes_on_without_a_node_whose_disk_is_full_and_takes_it_back(
    small_disk, random_model, recipe, data, start, tmp_path, is_soak
):
    if not is_soak:
        pytest.skip("the long form alone (--soak): two nodes, for most of a minute")
    anna = start(tmp_path / "anna", "start", recipe(random_model(4), max_steps=100_000), "--data", data("anna"))
    ben = start(small_disk / "home", "join", anna.address, "--data", data("ben"))
    ben.wait_for(lambda n: len(n.shared_rounds()) >= 3 and n.of("CheckpointSaved"), "shared rounds")

    fill(small_disk)
    ben.wait_for(lambda n: state(n) == "paused", "the pause")
    paused_at = max(versions(ben, "Stepped"))
    anna.wait_for(lambda n: max(versions(n, "Stepped")) > paused_at + 5, "steps without ben")
    assert max(versions(ben, "Stepped")) <= paused_at + 1
    (small_disk / "filler").unlink()
    before = len(ben.shared_rounds())
    ben.wait_for(lambda n: len(n.shared_rounds()) > before + 3, "rounds together again")

    common = anna.hashes().keys() & ben.hashes().keys()
    assert all(anna.hashes()[version] == ben.hashes()[version] for version in common)
    assert ben.stop() == 0
    assert anna.stop() == 0
