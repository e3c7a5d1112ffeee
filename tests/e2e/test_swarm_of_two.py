"""The main job: two nodes train one adapter; one is killed and comes back; the founder leaves; the other goes on."""

import json

import pytest
from processes import potluck
from safetensors.torch import load_file

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def assert_same_bits(*nodes):
    """At every version that two nodes stepped to, they hold the same bits."""
    tables = [node.hashes() for node in nodes]
    common = set(tables[0]).intersection(*tables[1:])
    assert common, "the nodes have no version in common"
    for version in common:
        assert len({table[version] for table in tables}) == 1, f"different bits at step {version}"
    return common


def test_two_nodes_train_together_through_a_kill_and_the_founders_leave(smollm2, tmp_path, recipe, data, start):
    found = ("start", recipe(smollm2), "--data", data("anna"), "--name", "anna")
    founder = start(tmp_path / "a", *found)
    address = founder.address
    # the second node computes on another SIMD path: its gradients differ, its adapter must not
    join = ("join", address, "--data", data("bert"), "--name", "bert")
    other = start(tmp_path / "b", *join, env={"ATEN_CPU_CAPABILITY": "default"})
    founder.wait_for(lambda n: len(n.shared_rounds()) >= 3, "three shared rounds")
    other.wait_for(lambda n: len(n.shared_rounds()) >= 3, "three shared rounds")
    assert_same_bits(founder, other)
    status = other.status()
    assert {peer["name"] for peer in status["peers"]} == {"anna", "bert"}
    assert int(status["given"]["tokens_committed"]) > 0

    peer_id = other.peer_id
    other.kill()
    steps = len(founder.of("Stepped"))
    founder.wait_for(lambda n: len(n.of("Stepped")) >= steps + 3, "the survivor to go on", timeout=40)

    again = start(tmp_path / "b", *join)
    assert again.peer_id == peer_id
    shared = len(founder.shared_rounds())
    founder.wait_for(lambda n: len(n.shared_rounds()) >= shared + 2, "rounds with the one that came back")
    again.wait_for(lambda n: len(n.shared_rounds()) >= 2, "rounds with the founder")
    assert again.of("AdapterSynced"), "it caught up from a peer"
    assert_same_bits(founder, again)

    assert founder.stop() == 0
    steps = len(again.of("Stepped"))
    again.wait_for(lambda n: len(n.of("Stepped")) >= steps + 3, "the other to go on without the founder", timeout=40)
    exported = potluck("export", "peft", "--home", tmp_path / "b", "--output", tmp_path / "adapter", "--json")
    assert exported.returncode == 0, exported.stderr
    assert json.loads(exported.stdout)["step"] > 0
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert any(bool(tensor.any()) for name, tensor in weights.items() if "lora_B" in name)
    stopped = potluck("stop", "--home", tmp_path / "b")
    assert stopped.returncode == 0, stopped.stderr
    assert again.child.wait(30) == 0
    assert potluck("status", "--home", tmp_path / "b").returncode == 3


def test_a_swarm_is_found_again_whoever_of_it_has_gone(random_model, tmp_path, recipe, data, start):
    found = ("start", recipe(random_model(2), target=1024), "--data", data("anna"), "--name", "anna")
    founder = start(tmp_path / "a", *found)
    join = ("join", founder.address, "--data", data("bert"), "--name", "bert")
    again = start(tmp_path / "b", *join)
    again.wait_for(lambda n: len(n.shared_rounds()) >= 1, "a round with the founder")
    second_address = again.status()["addresses"][0]
    assert founder.stop() == 0
    third = start(tmp_path / "c", "join", second_address, "--data", data("cleo"), "--name", "cleo")
    third.wait_for(lambda n: len(n.shared_rounds()) >= 1, "a round through an address that is not the founder's")

    # the node at the address that bert was given is gone: he finds the swarm by the peers that he remembers
    assert again.stop() == 0
    bert = start(tmp_path / "b", *join)
    bert.wait_for(lambda n: len(n.shared_rounds()) >= 1, "rounds without the founder's address")
    # and the founder comes back with its own old command, to what the swarm is now
    anna = start(tmp_path / "a", *found)
    anna.wait_for(lambda n: len(n.shared_rounds(members=3)) >= 1, "a round of three")
    assert anna.of("AdapterSynced"), "it follows the swarm instead of its own past"
    third.wait_for(lambda n: len(n.shared_rounds(members=3)) >= 1, "a round of three")
    assert_same_bits(anna, third)
