"""Whatever ends a node, in whichever phase: no process, no socket, no temporary file, and the next start works at once.

The long form (`--soak`) adds the ways, phases and points that the short one leaves out.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pexpect
import pytest
from faults.fault import Fault, write_faults
from leftovers import Place
from processes import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]  # the long form; each wait has a bound of its own

ENDS_WITHIN_S = 20.0
"""Far below what a load that hangs, or a peer that does not answer, would take."""


@pytest.fixture
def place(tmp_path):
    """Make places that are cleaned up after the test."""
    made = []

    def make(name="home"):
        made.append(Place(tmp_path / name))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def found(random_model, recipe, data, start):
    """Start a lone node at a place."""
    arguments = ("start", recipe(random_model(2), max_steps=100_000), "--data", data("anna"))
    return lambda at, **options: start(at.home, *arguments, **{**options, "env": {**at.env, **options.get("env", {})}})


def ctrl_c(node):
    """As a terminal does it: to all processes of the foreground group."""
    os.killpg(node.child.pid, signal.SIGINT)


def ctrl_c_twice(node):
    ctrl_c(node)
    node.wait_for(lambda n: n.of("StateChanged")[-1]["after"] == "draining", "draining")
    ctrl_c(node)


def terminate(node):
    node.child.terminate()


def kill(node):
    node.child.kill()


SLOW_SAVES = Fault("training.checkpoint:CheckpointStore.save:rename", "delay", times=0, seconds=5.0)
WAYS = ((kill, -9, ()), (ctrl_c_twice, 130, (SLOW_SAVES,)), (terminate, 0, ()), (ctrl_c, 0, ()))
"""What ends a node, the exit code, and faults that keep it busy meanwhile."""


def test_whatever_ends_a_node_nothing_is_left_and_the_next_start_works_at_once(place, found, is_soak):
    at, address = place(), None
    for way, code, faults in WAYS * 2 if is_soak else WAYS[:2]:
        node = found(at, faults=faults)
        node.wait_for(lambda n: n.of("Stepped"), "a step")
        assert address in (None, node.address), "the port of before is still taken"
        address = node.address
        assert at.processes(), "nothing is marked: the search cannot find what is left"
        assert at.sockets()
        assert not at.written_outside()

        way(node)

        assert node.end(ENDS_WITHIN_S) == code, "".join(node.errors)
        at.assert_nothing_is_left()
        assert "Traceback" not in "".join(node.errors)


def test_a_terminal_that_is_closed_leaves_nothing_and_the_node_has_saved(place, found, random_model, recipe, data):
    at = place()
    command = [
        sys.executable,
        "-m",
        "node",
        "start",
        recipe(random_model(2), max_steps=100_000),
        "--data",
        data("anna"),
    ]
    command += ["--home", at.home, "--listen", "/ip4/127.0.0.1/tcp/0", "--threads", "1"]
    environment = {**os.environ, **at.env, "OMP_NUM_THREADS": "1"}
    shell = pexpect.spawn("/bin/bash", ["--norc", "-i"], env=environment, cwd=str(ROOT), dimensions=(40, 200))
    shell.sendline(" ".join(map(str, command)))
    until = time.monotonic() + 60
    while not list(at.home.glob("runs/*/checkpoints/generation-*")):
        assert time.monotonic() < until, "no step was saved"
        with contextlib.suppress(pexpect.TIMEOUT):  # a terminal that nobody reads would hold the node up
            shell.read_nonblocking(1 << 16, timeout=0.05)

    os.close(shell.fileno())

    at.assert_nothing_is_left(ENDS_WITHIN_S)
    log = [json.loads(line) for line in (at.home / "logs" / "node.jsonl").read_text().splitlines()]
    assert log[-1]["event"] == "StateChanged"
    assert log[-1]["after"] == "stopped", "it was cut off instead of leaving"


def test_a_demo_that_is_killed_leaves_no_node(place, tmp_path):
    at = place("demo")
    command = [sys.executable, "-m", "node", "demo", "--output", str(at.home), "--minutes", "10"]
    environment = {**os.environ, **at.env}
    driver = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, process_group=0)
    until = time.monotonic() + 60
    while not (at.home / "node-1" / "control.json").exists():
        assert time.monotonic() < until, "no node was started"
        time.sleep(0.1)

    driver.kill()
    driver.wait()

    at.assert_nothing_is_left(ENDS_WITHIN_S)


STEP = "core.files:write_whole:replace"
CRASHES = {
    "as the identity is written": Fault(STEP, "kill", nth=1),
    "when gRPC listens, before p2pd": Fault(STEP, "kill", nth=2, when="after"),
    "after p2pd": Fault(STEP, "exit", nth=3),
    "as a disk refuses the identity": Fault(STEP, "fail", nth=1),
    "as a disk refuses the port": Fault(STEP, "fail", nth=3),
    "as a disk refuses the pointer": Fault(STEP, "fail", nth=2),
    "while joining": Fault(STEP, "kill", nth=5),
    "while loading": Fault(STEP, "fail", nth=7),
    "in the first save": Fault("training.checkpoint:CheckpointStore.save:rename", "kill"),
}
IN_SHORT = ("as a disk refuses the pointer",)


def test_a_crash_in_startup_leaves_nothing_and_the_next_start_works(place, found, is_soak):
    chosen = CRASHES if is_soak else {name: CRASHES[name] for name in IN_SHORT}
    for name, fault in chosen.items():
        at = place(name.replace(" ", "-"))
        node = found(at, faults=[fault])
        assert node.end(120) in (-9, 77, 6), f"it did not crash {name}: {''.join(node.errors)}"
        at.assert_nothing_is_left()
        assert "Traceback" not in "".join(node.errors), name
        if is_soak:
            again = found(at)
            assert again.address
            kill(again)
            again.end(ENDS_WITHIN_S)
            at.assert_nothing_is_left()


def test_a_node_that_is_stopped_while_a_thread_hangs_ends_at_once_and_a_patient_one_does_not(place, found, tmp_path):
    at, other = place(), place("other")
    hangs = [Fault("model.facts:remembered:mkdir", "delay", seconds=120)]
    write_faults(tmp_path / "faults.json", hangs)
    fresh = {"XDG_CACHE_HOME": str(tmp_path / "empty-cache")}
    node = found(at, faults=hangs, env=fresh)
    patient = found(other, program=("e2e.patient", tmp_path / "faults.json"), env=fresh)
    for each in (node, patient):
        each.wait_for(lambda n: any(e["after"] == "joining" for e in n.of("StateChanged")), "joining")
    time.sleep(1)  # until the threads hang; were they not to, the nodes would be further
    for each in (node, patient):
        assert each.of("StateChanged")[-1]["after"] == "joining"
        terminate(each)

    assert node.end(ENDS_WITHIN_S) == 0, "".join(node.errors)
    at.assert_nothing_is_left()
    time.sleep(1)
    assert patient.of("StateChanged")[-1]["after"] == "stopped"
    assert other.processes(), "it did not wait for its thread: the guard is not what ended the other"


def test_a_node_that_is_stopped_in_any_phase_of_its_start_leaves_nothing(place, found, is_soak):
    if not is_soak:
        pytest.skip("the long form: a start for each moment")
    at = place()
    for number in (signal.SIGTERM, signal.SIGINT):
        delay_s, was_training = 0.2, False
        while not was_training:
            node = found(at)
            time.sleep(delay_s)
            was_training = bool(node.of("Stepped"))
            os.killpg(node.child.pid, number)
            assert node.end(ENDS_WITHIN_S) in (0, 130, -number, 1), "".join(node.errors)
            at.assert_nothing_is_left()
            delay_s += 0.3


def test_a_node_that_is_killed_as_its_network_daemon_starts_leaves_nothing_unless_unguarded(place, found):
    places = {guards: place(guards) for guards in ("guarded", "unguarded")}
    nodes = {guards: found(at, program=("e2e.killed", guards)) for guards, at in places.items()}
    for node in nodes.values():
        assert node.end(60) == -9

    places["guarded"].assert_nothing_is_left()
    with pytest.raises(AssertionError, match="left behind") as seen:
        places["unguarded"].assert_nothing_is_left(within_s=2)
    for what in ("p2pd -listen", "p2pd.sock", "control.sock"):
        assert what in str(seen.value)
