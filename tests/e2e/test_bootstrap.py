"""Nodes behind routers that let nobody in meet through a public bootstrap node, which relays."""

import subprocess
import sys
import threading
import time

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


class MeetingPoint:
    """A bootstrap node at a public address: what to give to others, and what it says."""

    def __init__(self, internet, home):
        command = (*internet.inside(None), sys.executable, "-u", "-m", "node", "bootstrap", "--relay")
        self.process = subprocess.Popen(
            [*command, "--home", home, "--listen", f"/ip4/{PUBLIC}/tcp/4040"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.said = []
        threading.Thread(target=lambda: self.said.extend(self.process.stdout), daemon=True).start()
        self.address = self.until("--bootstrap ").split()[1]

    def until(self, beginning):
        """Wait for a line that begins so, and return it."""
        for _ in range(600):
            for line in list(self.said):
                if line.startswith(beginning):
                    return line
            assert self.process.poll() is None, self.said
            time.sleep(0.05)
        raise AssertionError(f"waited half a minute for {beginning!r}: {self.said}")


@pytest.fixture
def meeting_point(internet, tmp_path):
    point = MeetingPoint(internet, tmp_path / "meeting")
    yield point
    point.process.kill()
    point.process.wait()


def test_homes_train_together_through_a_bootstrap_node(
    internet, meeting_point, random_model, tmp_path, recipe, data, start
):
    def node(name, home, *arguments):
        known = ("--bootstrap", meeting_point.address, "--data", data(name), "--name", name)
        return start(tmp_path / name, *arguments, *known, ip="0.0.0.0", inside=internet.inside(home))

    anna = node("anna", 0, "start", recipe(random_model(2), target=256))
    assert anna.address == f"{meeting_point.address}/p2p-circuit/p2p/{anna.peer_id}"
    bert = node("bert", 1, "join", anna.address)
    for one in (anna, bert):
        one.wait_for(lambda n: len(n.shared_rounds()) >= 3, "three rounds of both")
    meeting_point.until("2 nodes of 1 run meet here.")
    assert not [event for one in (anna, bert) for event in one.of("Fault")]
    assert anna.stop() == bert.stop() == 0

    meeting_point.process.terminate()
    assert meeting_point.process.wait(20) == 0
