"""A real swarm that is entered through a coordinator, loses it twenty times, and obeys its operator."""

import time

import pytest
from click.testing import CliRunner
from serving_here import Killable

from coordinator.operator_cli import command

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]
KILLS = 20


@pytest.fixture
def server(tmp_path, unused_tcp_port):
    server = Killable(tmp_path / "coordinator", unused_tcp_port).start()
    yield server
    server.kill()


def operator(server, *arguments):
    done = CliRunner().invoke(command, [*arguments, "--state", str(server.folder)])
    assert done.exit_code == 0, done.output
    return done.output


def steps(node):
    return len(node.of("Stepped"))


def said(node):
    return ([event["what"] for event in node.of("OperatorSaid")] or [""])[-1]


def test_training_never_waits_for_a_coordinator_that_dies_again_and_again(
    random_model, tmp_path, recipe, data, start, server
):
    path = recipe(random_model(2), target=256)
    anna = start(
        tmp_path / "a", "start", path, "--data", data("anna"), "--name", "anna", "--coordinator", server.address
    )
    anna.wait_for(lambda n: n.of("CoordinatorFound"), "the coordinator")
    bert = start(tmp_path / "b", "join", server.address, "--data", data("bert"), "--name", "bert")
    for node in (anna, bert):
        node.wait_for(lambda n: n.shared_rounds(), "a shared round")
    assert "2 peers" in operator(server, "runs")

    longest_s = []
    for _ in range(KILLS):
        before, killed_at = (steps(anna), steps(bert)), time.monotonic()
        server.kill()
        for node, at in zip((anna, bert), before, strict=True):
            node.wait_for(lambda n, at=at: steps(n) > at, "a step without the coordinator", 30)
        longest_s.append(time.monotonic() - killed_at)
        server.start()
    for node in (anna, bert):
        node.wait_for(lambda n: len(n.of("CoordinatorFound")) > len(n.of("CoordinatorLost")), "the coordinator again")
        assert not node.of("PeerLost"), "nobody counts the other out for a coordinator's death"
    print("waits for a step of both after a kill, s:", *(f"{wait:.1f}" for wait in longest_s))

    operator(server, "pause")
    for node in (anna, bert):
        node.wait_for(lambda n: said(n) == "paused", "the pause")
    time.sleep(2.0)  # what was under way comes to its end
    before = steps(anna), steps(bert)
    time.sleep(3.0)
    assert (steps(anna), steps(bert)) == before
    operator(server, "resume")
    for node, at in zip((anna, bert), before, strict=True):
        node.wait_for(lambda n, at=at: steps(n) > at, "a step after the pause")

    operator(server, "finish")
    assert anna.end(60) == bert.end(60) == 0
    last = max(anna.hashes().keys() & bert.hashes().keys())
    assert anna.hashes()[last] == bert.hashes()[last]
    assert len(anna.shared_rounds()) >= KILLS
    assert "finished" in operator(server, "runs")
