"""Nodes behind routers that let nobody in meet through a public bootstrap node, which relays."""

import subprocess
import sys

import pytest
from faults.nat import PUBLIC, Internet, can_make_routers
from processes import ROOT

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(180),
    pytest.mark.skipif(not can_make_routers(), reason="needs root and nftables, for routers of its own"),
]


@pytest.fixture
def internet():
    with Internet(2) as internet:
        yield internet


@pytest.fixture
def meeting_point(internet, tmp_path):
    """A bootstrap node at a public address; yields what to give to others."""
    command = (*internet.inside(None), sys.executable, "-u", "-m", "node", "bootstrap", "--relay")
    process = subprocess.Popen(
        [*command, "--home", tmp_path / "meeting", "--listen", f"/ip4/{PUBLIC}/tcp/4040"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("--bootstrap "):
            yield line.split()[1]
            break
    process.terminate()
    said = process.stdout.read()
    assert process.wait(20) == 0
    assert "2 nodes of 1 run meet here." in said


def test_homes_train_together_through_a_bootstrap_node(
    internet, meeting_point, random_model, tmp_path, recipe, data, start
):
    def node(name, home, *arguments):
        known = ("--bootstrap", meeting_point, "--data", data(name), "--name", name)
        return start(tmp_path / name, *arguments, *known, ip="0.0.0.0", inside=internet.inside(home))

    anna = node("anna", 0, "start", recipe(random_model(2), target=256))
    assert anna.address == f"{meeting_point}/p2p-circuit/p2p/{anna.peer_id}"
    bert = node("bert", 1, "join", anna.address)
    for one in (anna, bert):
        one.wait_for(lambda n: len(n.shared_rounds()) >= 3, "three rounds of both")
    assert not [event for one in (anna, bert) for event in one.of("Fault")]
    assert anna.stop() == bert.stop() == 0
