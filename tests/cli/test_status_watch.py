"""`potluck status --watch`: over the real local API, on a real terminal and without one."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pexpect
import pytest
from rich.console import Console

from node.control.server import ControlServer
from node.core.errors import NotRunning
from node.host.gpus import Gpu
from node.observe.panel import panel
from node.observe.watch import statuses, watch_plain
from node.v1 import control_pb2

ROOT = Path(__file__).parent.parent.parent


def status(version=0, peers=1, **fields):
    answer = control_pb2.GetStatusResponse(
        state="training", version=version, max_steps=9, tokens_per_s=70, target_batch_tokens=100, **fields
    )
    for number in range(peers):
        answer.peers.add(name=f"pc-{number}", peer_id=f"Qm{number}", is_me=not number, state="training")
    return answer


class Training:
    """A node that makes a step whenever it is asked, and ends after some."""

    def __init__(self, steps=3):
        self.version, self.steps = 0, steps

    def status(self):
        if self.version == self.steps:
            raise NotRunning("it has ended")
        self.version += 1
        return status(self.version, loss=3.0 - 0.5 * self.version)


@contextmanager
def node_at(home, made):
    """A node's local API whose status is made by `made()`; yield what ends the node."""
    loop = asyncio.new_event_loop()
    end, started = asyncio.Event(), threading.Event()

    class Node:
        def status(self):
            return made()

    async def serve():
        server = ControlServer(home, Node())
        await server.start()
        started.set()
        await end.wait()
        await server.close()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert started.wait(10)

    def stop():
        if thread.is_alive():
            loop.call_soon_threadsafe(end.set)
        thread.join(10)

    yield stop
    stop()
    loop.close()


def command(home, *flags):
    return [sys.executable, "-m", "node", "status", "--home", str(home), "--watch", *flags]


def test_without_a_terminal_there_is_a_line_a_step_and_a_last_one():
    lines = []

    watch_plain(Training(), lines.append, lambda: True)

    assert lines == [
        "training, alone",
        "step 1/9  loss 2.500  70 tokens/s  alone",
        "step 2/9  loss 2.000  70 tokens/s  alone",
        "step 3/9  loss 1.500  70 tokens/s  alone",
        "The node has ended.",
    ]


def test_nothing_new_is_no_line():
    lines = []
    node = Training()
    node.status = lambda: status(4)
    rounds = iter([True, True, True, False])

    watch_plain(node, lines.append, lambda: next(rounds))

    assert len(lines) == 3


def test_a_node_that_never_answered_is_an_error():
    with pytest.raises(NotRunning):
        list(statuses(Training(steps=0), lambda: True))


def test_the_panel_shows_curve_round_peers_and_cards():
    console = Console(width=100, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    cards = (Gpu("NVIDIA H100", 12_300_000_000, 80_000_000_000, 54), Gpu("a virtual one", 1, 2, None))

    console.print(panel(status(4, peers=2, loss=2.0, tokens_towards_next=50, seconds_left=600), [3.0, 2.5, 2.0], cards))

    text = console.export_text()
    for part in ("4/9, 10 min left", "2.000", "█", "50 %", "70 tokens/s, 2 peers", "12.3 GB of 80.0 GB  54 °C", "pc-1"):
        assert part in text, part


def test_json_is_an_object_a_line_until_the_node_ends(tmp_path):
    with node_at(tmp_path, lambda: status(4, name="\u202eevil")) as stop:
        child = subprocess.Popen(command(tmp_path, "--json"), stdout=subprocess.PIPE, text=True, cwd=ROOT)
        lines = [child.stdout.readline(), child.stdout.readline()]
        stop()
        code = child.wait(20)
        child.stdout.close()

    assert [json.loads(line)["version"] for line in lines] == ["4", "4"]
    assert "\u202e" not in lines[0]
    assert code == 0


def _as_on_a_terminal():
    """Obey Ctrl-C, though the suite itself may run where it is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("key", ["q", "\x03"])
def test_a_person_leaves_the_panel_with_q_or_ctrl_c_and_code_0(tmp_path, key):
    with node_at(tmp_path, lambda: status(4, loss=2.0)):
        program, *arguments = command(tmp_path)
        child = pexpect.spawn(
            program, arguments, cwd=str(ROOT), timeout=30, encoding="utf-8", preexec_fn=_as_on_a_terminal
        )
        child.expect("next round")
        child.send(key)
        child.expect(pexpect.EOF)
        child.close()

    assert child.exitstatus == 0
