"""A lone node that is killed and goes on ends with the same bits as one that was not."""

import shutil

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def test_a_killed_and_resumed_node_ends_with_the_bits_of_an_undisturbed_one(smollm2, tmp_path, recipe, data, start):
    arguments = ("start", recipe(smollm2, max_steps=6), "--data", data("anna"))
    undisturbed = start(tmp_path / "a", *arguments)
    undisturbed.wait_for(lambda n: n.of("StateChanged") and n.of("StateChanged")[-1]["after"] == "stopped", "the end")
    assert undisturbed.child.wait(30) == 0
    assert undisturbed.hashes().keys() == {1, 2, 3, 4, 5, 6}

    (tmp_path / "b").mkdir()
    shutil.copy(tmp_path / "a" / "identity.key", tmp_path / "b" / "identity.key")
    killed = start(tmp_path / "b", *arguments)
    killed.wait_for(lambda n: any(e["version"] >= 3 for e in n.of("CheckpointSaved")), "a checkpoint of step 3")
    killed.kill()
    resumed = start(tmp_path / "b", *arguments)
    assert resumed.peer_id == undisturbed.peer_id
    assert resumed.child.wait(120) == 0

    assert min(resumed.hashes()) > 3, "it went on from the checkpoint"
    assert resumed.hashes()[6] == undisturbed.hashes()[6]
    # every microbatch was used once: the ids after the resume follow those that the checkpoint holds
    used = [e["id"] for e in resumed.of("MicrobatchDone")]
    assert used == sorted(set(used))
    assert used[-1] == undisturbed.of("MicrobatchDone")[-1]["id"]

    finished = start(tmp_path / "b", *arguments)
    assert finished.child.wait(90) == 0, "a finished run ends at once"
    assert not finished.of("Stepped")
