"""Two machines on one local network: the second finds the swarm of the first without an address, and trains along."""

import subprocess
import sys

import pytest
from faults.lan import Lan
from faults.rounds_network import can_make_namespaces
from processes import ROOT

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(120),
    pytest.mark.skipif(not can_make_namespaces(), reason="needs root, for network namespaces"),
]


def test_a_node_joins_the_swarm_on_its_network_without_an_address(random_model, tmp_path, recipe, data, start):
    with Lan() as lan:

        def look(*more):
            command = [*lan.inside(1), sys.executable, "-m", "node", "join", "--data", data("bert"), *more]
            return subprocess.run(
                [*map(str, command), "--home", tmp_path / "b"],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=60,
            )

        nothing = look("--yes")
        assert nothing.returncode == 4
        assert "No swarm names itself on the local network." in nothing.stderr
        assert "UDP 5353" in nothing.stderr

        founder = start(
            tmp_path / "a",
            *("start", recipe(random_model(2)), "--data", data("anna"), "--name", "anna"),
            ip="0.0.0.0",
            inside=lan.inside(0),
        )
        (listening,) = founder.wait_for(lambda n: n.of("Listening"), "listening")
        assert {address.split("/")[2] for address in listening["addresses"]} == {lan.address(0)}, "and not Docker's"
        founder.wait_for(lambda n: n.of("Stepped"), "a step alone")

        asked = look()
        assert asked.returncode == 2
        assert f"potluck join {listening['addresses'][0]}    # test: random, 1 peer" in asked.stderr

        other = start(
            tmp_path / "b",
            *("join", "--yes", "--data", data("bert"), "--name", "bert"),
            ip="0.0.0.0",
            inside=lan.inside(1),
        )
        for node in (founder, other):
            node.wait_for(lambda n: n.shared_rounds(), "a round of both", timeout=60)
        assert founder.stop() == 0
        assert other.stop() == 0
