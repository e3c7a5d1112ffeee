"""A lone node that is killed and goes on ends with the same bits as one that was not."""

import itertools
import random
import shutil
import signal

import pytest
from faults.fault import Fault

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

SAVE = "training.checkpoint:CheckpointStore.save"
IN_A_SAVE = [
    Fault(f"{SAVE}:rename", "kill", nth=2),
    Fault("training.checkpoint:_write_synced:write", "kill", nth=4),
    Fault("training.checkpoint:CheckpointStore._prune:rename", "kill", when="after"),
]


def samples_by_step(node):
    """The ids of the microbatches in each step that a node made, by the step's version."""
    steps, ids = {}, []
    for event in list(node.events):
        if event["event"] == "MicrobatchDone":
            ids.append(event["id"])
        elif event["event"] == "Stepped":
            steps[event["version"]], ids = ids, []
    return steps


def test_a_killed_and_resumed_node_ends_with_the_bits_of_an_undisturbed_one(
    smollm2, tmp_path, recipe, data, start, is_soak
):
    kills = 10 if is_soak else 3
    last, chance = 2 * kills, random.Random(4)
    arguments = ("start", recipe(smollm2, max_steps=last), "--data", data("anna"))
    undisturbed = start(tmp_path / "a", *arguments)
    assert undisturbed.end(60 * kills) == 0
    assert undisturbed.hashes().keys() == set(range(1, last + 1))
    samples = samples_by_step(undisturbed)
    assert sorted(itertools.chain(*samples.values())) == list(range(samples[last][-1] + 1)), (
        "each sample once, none skipped"
    )

    (tmp_path / "b").mkdir()
    shutil.copy(tmp_path / "a" / "identity.key", tmp_path / "b" / "identity.key")
    reached = 0
    for kill in range(kills):
        is_in_a_save = kill % 2 == 1
        node = start(tmp_path / "b", *arguments, faults=[IN_A_SAVE[kill // 2 % 3]] if is_in_a_save else ())
        if is_in_a_save:
            assert node.end(120) == -signal.SIGKILL, "the save was not reached"
        else:
            wanted = chance.randrange(2, 8)
            node.wait_for(lambda n, wanted=wanted: len(n.of("MicrobatchDone")) >= wanted, f"{wanted} microbatches")
            node.kill()
        went_on_after = min(node.hashes(), default=reached + 1) - 1
        assert went_on_after >= reached - 1, "more than one step was lost"
        for version, ids in samples_by_step(node).items():
            assert ids == samples[version], f"another sample in step {version}"
            assert node.hashes()[version] == undisturbed.hashes()[version]
        reached = max(node.hashes(), default=reached)

    resumed = start(tmp_path / "b", *arguments)
    assert resumed.peer_id == undisturbed.peer_id
    assert resumed.end(240) == 0
    assert min(resumed.hashes(), default=last + 1) > max(1, reached - 1), "it went on from the checkpoint"
    assert samples_by_step(resumed) == {v: ids for v, ids in samples.items() if v in resumed.hashes()}
    assert resumed.hashes()[last] == undisturbed.hashes()[last]

    finished = start(tmp_path / "b", *arguments)
    assert finished.end(90) == 0, "a finished run ends at once"
    assert not finished.of("Stepped")
