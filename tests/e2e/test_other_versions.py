"""A real node of another version at a real swarm: both are told, neither waits, and the swarm goes on."""

import shutil

import pytest

from node.core import versions
from node.host.home import Home
from node.network.addresses import split_peer_id

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

NEWER = ("versions.daemon", versions.PROTOCOL + 1, "0.2.0")
OLDER = ("versions.daemon", versions.PROTOCOL - 1, "0.0.9")


def left_out(node):
    return [event for event in node.of("Fault") if "is left out" in event["what"]]


def steps(node):
    return len(node.of("Stepped"))


def test_nodes_of_other_versions_are_told_and_left_out_and_the_swarm_goes_on(
    tmp_path, random_model, recipe, data, start
):
    command = ("start", recipe(random_model(2), max_steps=100_000), "--data", data("anna"))
    founder = start(tmp_path / "a", *command)
    founder.wait_for(lambda n: n.of("CheckpointSaved"), "a checkpoint")
    # a member that was upgraded, and goes on with the folder and the command that it had: it knocks at no door
    shutil.copytree(
        tmp_path / "a", tmp_path / "b", ignore=shutil.ignore_patterns("identity.key", "lock", "control.json")
    )
    Home(tmp_path / "b").current_run().remember_peers([(split_peer_id(founder.address)[1], (founder.address,))])
    upgraded = start(tmp_path / "b", *command, program=NEWER)
    joiner = start(tmp_path / "c", "join", founder.address, "--data", data("bert"), program=OLDER)

    assert joiner.end(60) == 7, "".join(joiner.errors)
    said = "".join(joiner.errors)
    assert f"runs Potluck {versions.software()}, protocol {versions.PROTOCOL}; this is Potluck 0.0.9" in said
    assert "Upgrade this machine: `git pull && make env`" in said
    assert "Traceback" not in said
    for node, theirs in ((founder, {"0.0.9", "0.2.0"}), (upgraded, {versions.software()})):
        node.wait_for(lambda n, theirs=theirs: len(left_out(n)) >= len(theirs), f"the word of {theirs}")
        told = {word for event in left_out(node) for word in theirs if f"it runs Potluck {word}" in event["what"]}
        assert told == theirs
        assert all("git pull && make env" in event["hint"] for event in left_out(node))
    before = steps(founder), steps(upgraded)
    founder.wait_for(lambda n: steps(n) >= before[0] + 3, "the swarm to go on")
    upgraded.wait_for(lambda n: steps(n) >= before[1] + 3, "the upgraded one to go on alone")
    assert not founder.shared_rounds()
    assert not upgraded.shared_rounds()
    assert not founder.of("PeerSeen")
    assert founder.stop() == 0
