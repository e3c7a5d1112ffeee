"""Real nodes that lose sight of each other, sleep, or all die: what they do meanwhile, and how they come together again.

The long form alone (`--soak`): four nodes in two halves, and three of which one is behind a slow link.
"""

import os
import signal
import time
from contextlib import suppress

import psutil
import pytest
from faults.rounds_network import Halves, can_make_namespaces

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not can_make_namespaces(), reason="needs root, for network namespaces"),
]
HEAL_S = 30.0
"""After so long the halves are one swarm again."""
SIDES = (0, 0, 1, 1)
APART_S = 30.0
ASLEEP_S = 60.0


def wait_for(found, what, timeout, nodes):
    until = time.monotonic() + timeout
    while not (value := found()):
        seen = {n.home.name: [e for e in list(n.events) if e["event"] != "MicrobatchDone"][-8:] for n in nodes}
        assert time.monotonic() < until, f"waited {timeout} s for {what}: {seen}"
        time.sleep(0.1)
    return value


def since(at_s, kind, node):
    return [event for event in node.of(kind) if event["at_s"] > at_s]


def rounds_since(at_s, node, members):
    """Committed rounds of that many that began after a moment."""
    results = [(e["at_s"], e["result"]) for e in since(at_s, "RoundFinished", node)]
    return [
        r
        for at, r in results
        if r["status"] == "committed" and len(r["members"]) == members and at - r["seconds"] > at_s
    ]


def all_together(nodes, at_s, timeout, what):
    """Wait for a round of all that began after a moment; return how long after it, in seconds."""
    wait_for(lambda: all(rounds_since(at_s, n, len(nodes)) for n in nodes), what, timeout, nodes)
    return time.time() - at_s


def are_equal_from(nodes, at_s):
    """From the first round of all after a moment, every version has the same bits on all nodes that made it."""
    first = max(rounds_since(at_s, node, len(nodes))[0]["version"] for node in nodes)
    tables = [{v: bits for v, bits in node.hashes().items() if v > first} for node in nodes]
    common = set(tables[0]).intersection(*tables[1:])
    return bool(common) and all(len({table[v] for table in tables}) == 1 for v in common)


def processes(node):
    """A node's process and its p2pd."""
    parent = psutil.Process(node.child.pid)
    return [parent, *parent.children(recursive=True)]


def test_a_swarm_survives_a_partition_a_sleep_and_the_death_of_all(
    random_model, tmp_path, recipe, data, start, is_soak, record_property
):
    if not is_soak:
        pytest.skip("long form only: four nodes, for some minutes")
    # steps of about a second, so that the halves make some while they are apart
    path = recipe(random_model(2), target=2048)
    with Halves() as network:
        nodes, commands = [], []
        for number, side in enumerate(SIDES):
            what = ("join", nodes[0].address) if nodes else ("start", path)
            where = {"ip": network.address(side), "inside": network.inside(side)}
            commands.append(((tmp_path / f"n{number}", *what, "--data", data(f"n{number}")), where))
            nodes.append(start(*commands[-1][0], **where))
        all_together(nodes, 0.0, 120, "a round of all")

        # the halves are parted, and each goes on by itself as soon as the other's records have expired
        network.cut()
        cut_at_s = time.time()
        time.sleep(APART_S)
        wait_for(lambda: all(since(cut_at_s, "Stepped", n) for n in nodes), "each half to go on", 60, nodes)
        steps = [len(since(cut_at_s, "Stepped", node)) for node in nodes]
        network.heal()
        healed_at_s = time.time()
        together_s = all_together(nodes, healed_at_s, HEAL_S, "a round of all after the healing")
        wait_for(lambda: are_equal_from(nodes, healed_at_s), "equal bits", 20, nodes)
        followed = [node for node in nodes if since(healed_at_s, "AdapterSynced", node)]
        losers = {side for node, side in zip(nodes, SIDES, strict=True) if node in followed}
        assert len(losers) == 1, "one side follows the other"
        told = [event["tokens"] for node in followed for event in since(healed_at_s, "WorkLost", node)]

        # one is suspended with all of its processes, and catches up when it wakes
        sleeper, others = nodes[-1], nodes[:-1]
        stopped = processes(sleeper)
        for process in stopped:
            process.suspend()
        slept_at_s = time.time()
        time.sleep(ASLEEP_S)
        for process in stopped:
            process.resume()
        woke_at_s = time.time()
        caught_up_s = all_together(nodes, woke_at_s, 60, "a round with the one that slept")
        wait_for(lambda: are_equal_from(nodes, woke_at_s), "equal bits", 20, nodes)
        steps_meanwhile = min(
            len([e for e in since(slept_at_s, "Stepped", n) if e["at_s"] < woke_at_s]) for n in others
        )

        # all die, and one comes back: it goes on alone from its checkpoint
        last = nodes[-1]
        last.wait_for(lambda n: since(woke_at_s, "CheckpointSaved", n), "a checkpoint")
        for node in nodes:
            with suppress(ProcessLookupError):
                os.killpg(node.child.pid, signal.SIGKILL)
            node.child.wait(20)
        saved = max(event["version"] for event in last.of("CheckpointSaved"))
        made = max(last.hashes())
        died_at_s = time.time()
        arguments, where = commands[-1]
        alone = start(*arguments, **where)
        alone.wait_for(lambda n: len(n.of("Stepped")) >= 2, "the only one left to go on", timeout=90)
        assert saved < min(alone.hashes()) <= made + 1, "it goes on from its checkpoint"
        figures = {
            "steps of each while apart": steps,
            "one swarm after, s": round(together_s, 1),
            "tokens told as lost": told,
            "steps of the others while one slept": steps_meanwhile,
            "caught up after, s": round(caught_up_s, 1),
            "last one went on after, s": round(alone.of("Stepped")[0]["at_s"] - died_at_s, 1),
        }
        record_property("figures", figures)
        print(figures)


def test_a_peer_behind_10_mbit_stays_in_the_rounds_of_real_nodes(
    smollm2, tmp_path, recipe, data, start, is_soak, record_property
):
    if not is_soak:
        pytest.skip("long form only: rounds of ten seconds; the short form is test_slow_and_dead_peers.py")
    # nobody steps before all are here: who joins later has a state of 29 MB to fetch, while the others go on
    path = recipe(smollm2, extra="    min_replicas: 3\n")
    with Halves(mbit_per_s=10) as network:
        nodes = []
        for number, side in enumerate((0, 0, 1)):
            what = ("join", nodes[0].address, "--base-model", smollm2) if nodes else ("start", path)
            where = {"ip": network.address(side), "inside": network.inside(side)}
            nodes.append(start(tmp_path / f"n{number}", *what, "--data", data(f"n{number}"), **where))
        all_together(nodes, 0.0, 300, "a round of all")
        began_s = time.time()

        slow = nodes[-1]
        wait_for(lambda: len(rounds_since(began_s, slow, 3)) >= 12, "12 rounds with the slow one", 420, nodes)

        results = [event["result"] for event in since(began_s, "RoundFinished", nodes[0])]
        with_it = [r for r in results if r["status"] == "committed" and slow.peer_id in r["members"]]
        figures = {
            "rounds with it": len(with_it),
            "without it": sum(r["status"] == "committed" for r in results) - len(with_it),
            "dropped": [r["reason"] for r in results if r["status"] == "dropped"],
            "seconds": [round(r["seconds"], 1) for r in with_it],
            "MB it sent a round": round(rounds_since(began_s, slow, 3)[0]["bytes_sent"] / 1e6, 1),
        }
        record_property("figures", figures)
        print(figures)
        assert len(with_it) >= 0.9 * len(results), figures
