"""`potluck demo --pipeline` as a newcomer runs it: one command, and nothing is left of it but its folder."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from processes import ROOT
from safetensors.torch import load_file

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
NODES = ("node-1", "node-2", "node-3")


@pytest.fixture
def demo(smollm2, tmp_path):
    """The demo, just begun, with the model converted already; what it prints goes to `printed`."""
    command = [sys.executable, "-m", "node", "demo", "--pipeline", "--minutes", "0.2", "--output", tmp_path / "demo"]
    with (tmp_path / "printed").open("w") as printed:
        child = subprocess.Popen(
            list(map(str, command)), stdout=printed, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=ROOT
        )
    yield child
    if child.poll() is None:
        child.terminate()  # it takes its nodes with it
        child.wait(120)


def events(output, node, kind):
    """What a node of the demo has told so far."""
    log = output / node / "logs" / "node.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def running_nodes(output):
    """The processes of the nodes that run now."""
    pointers = [output / node / "control.json" for node in NODES]
    return [json.loads(pointer.read_text())["pid"] for pointer in pointers if pointer.exists()]


def tokens_seen(printed):
    """The row of the table, node by node."""
    (row,) = [line for line in printed.splitlines() if "tokens seen" in line]
    return [int(cell.replace(",", "")) for cell in row.split("│")[2:-1]]


def layers_in(names):
    """The decoder layers that these tensors are of."""
    return {int(name.split("layers.")[1].split(".")[0]) for name in names if "layers." in name}


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_demo_of_three_stages_trains_and_compares(is_soak, request, tmp_path):
    if not is_soak:
        pytest.skip("long form only: two minutes; how it starts and ends is below, what it shows in test_pipeline.py")
    demo, output = request.getfixturevalue("demo"), tmp_path / "demo"

    code = demo.wait(580)

    printed = (tmp_path / "printed").read_text()
    assert code == 0, printed
    held = [events(output, node, "Holding")[-1] for node in NODES]
    assert sorted((each["first_stage"], each["stop_stage"]) for each in held) == [(0, 1), (1, 2), (2, 3)]
    assert [tokens > 0 for tokens in tokens_seen(printed)] == [True, False, True]
    assert all(events(output, node, "Stepped") for node in NODES)
    fetched = {name for path in (output / "node-3-cache").rglob("*.safetensors") for name in load_file(path)}
    assert layers_in(fetched) == set(range(10 * held[2]["first_stage"], 10 * held[2]["stop_stage"]))
    adapter = load_file(output / "adapter" / "adapter_model.safetensors")
    assert layers_in(adapter) == set(range(30))
    for row in ("layers held", "MB fetched", "held-out loss, base model", "perplexity, adapter"):
        assert row in printed
    assert all(events(output, node, "StateChanged")[-1]["after"] == "stopped" for node in NODES)


def test_ctrl_c_ends_the_demo_with_all_its_nodes(demo, tmp_path):
    output = tmp_path / "demo"
    until = time.monotonic() + 240
    while len(pids := running_nodes(output)) < len(NODES):
        assert time.monotonic() < until, (tmp_path / "printed").read_text()
        assert demo.poll() is None, (tmp_path / "printed").read_text()
        time.sleep(0.1)

    demo.send_signal(signal.SIGINT)

    assert demo.wait(120) == 130
    assert not [pid for pid in pids if is_alive(pid)]
    assert not running_nodes(output), "a node was cut off while it left"
