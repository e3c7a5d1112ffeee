"""Holders of stages that are killed and stopped, while microbatches are under way and while a round is."""

import shutil
import signal
import time

import pytest
from staged import checkpoint, tokens_brought

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def steps_on(node, count, what, timeout=120):
    """Wait for so many more steps."""
    before = len(node.of("Stepped"))
    node.wait_for(lambda n: len(n.of("Stepped")) >= before + count, what, timeout=timeout)


def kill_in_flight(holder, driver, delay_s):
    """Kill a holder while microbatches are under way."""
    before = len(driver.of("MicrobatchDone"))
    driver.wait_for(lambda n: len(n.of("MicrobatchDone")) > before, "a microbatch")
    time.sleep(delay_s)
    holder.kill()


def kill_in_a_round(holder):
    """Kill a holder as soon as it takes part in the next round."""
    before = len(holder.of("RoundStarted"))
    holder.wait_for(lambda n: len(n.of("RoundStarted")) > before, "a round")
    holder.kill()


def same_bits(*nodes):
    """At every step that replicas of one shard made, they hold the same bits; return the last such step."""
    tables = [node.hashes() for node in nodes]
    common = set(tables[0]).intersection(*tables[1:])
    for version in common:
        assert len({table[version] for table in tables}) == 1, f"different bits at step {version}"
    return max(common, default=None)


def nothing_counted_twice(driver):
    """What rounds took in is what was finished, each microbatch once, and no row was passed over."""
    done = {event["id"] for event in driver.of("MicrobatchDone")}
    # later ones may be through while one is still under way, but all that a resume does not begin with again are done
    assert done >= set(range(checkpoint(driver.home).cursor["next_id"]))
    rounds = [e["result"] for e in driver.of("RoundFinished") if e["result"]["status"] == "committed"]
    assert tokens_brought(driver) == sum(result["tokens"] for result in rounds)


def test_training_goes_on_over_a_replica_when_a_holder_is_killed_or_stopped(smollm2, tmp_path, recipe, data, start):
    path = recipe(smollm2, target=512, extra="  stages: 2\n")
    owner = start(tmp_path / "a", "start", path, "--data", data("anna"), "--stages", "0", "--name", "anna")
    lend = ("join", owner.address, "--lend", "--stages", "1")
    left = start(tmp_path / "b", *lend, "--name", "bert")
    right = start(tmp_path / "c", *lend, "--name", "cleo")
    owner.wait_for(lambda n: len(n.shared_rounds(members=3)) >= 1, "a round of three")

    kill_in_flight(left, owner, 0.1)
    steps_on(owner, 2, "steps over the other replica")
    left = start(tmp_path / "b", *lend, "--name", "bert")
    left.wait_for(lambda n: n.shared_rounds(members=3), "the killed one to catch up")
    assert left.of("AdapterSynced"), f"it took the others' state: {left.events}"

    kill_in_a_round(right)
    steps_on(owner, 2, "steps after a death in a round")
    right = start(tmp_path / "c", *lend, "--name", "cleo")
    right.wait_for(lambda n: len(n.shared_rounds(members=3)) >= 3, "the killed one to keep up")
    left.wait_for(lambda n: same_bits(n, right), "a step together")

    left.child.send_signal(signal.SIGSTOP)
    done = len(owner.of("MicrobatchDone"))
    owner.wait_for(lambda n: len(n.of("MicrobatchDone")) >= done + 6, "microbatches over the other replica")
    left.child.send_signal(signal.SIGCONT)
    before = len(left.of("Stepped"))
    left.wait_for(lambda n: len(n.of("Stepped")) > before, "the stopped one to catch up", timeout=180)
    assert same_bits(left, right)
    told = [e for e in owner.events if e["event"] in ("StagesMissing", "MicrobatchRetried", "Fault", "StagesFound")]
    assert len(owner.of("StagesMissing")) <= 1, f"only at the start nobody held the layers: {told}"
    assert owner.stop() == 0
    nothing_counted_twice(owner)


def test_training_waits_for_the_only_holder_and_goes_on_from_its_checkpoint(smollm2, tmp_path, recipe, data, start):
    path = recipe(smollm2, target=256, extra="  stages: 2\n")
    path.write_text(path.read_text().replace("evals_per_epoch: 0", "eval_steps: 1"))
    owner = start(tmp_path / "a", "start", path, "--data", data("anna"), "--stages", "0", "--name", "anna")
    lend = ("join", owner.address, "--lend", "--name", "bert")
    holder = start(tmp_path / "b", *lend, "--stages", "1")
    owner.wait_for(lambda n: len(n.of("Evaluated")) >= 3, "three scores")
    learned = {event["version"]: event["loss"] for event in owner.of("Evaluated")}

    waits = len(owner.of("StagesMissing"))
    kill_in_flight(holder, owner, 0.3)
    owner.wait_for(lambda n: len(n.of("StagesMissing")) > waits, "the owner to say what is missing", timeout=40)
    assert "layers 15-29" in owner.of("StagesMissing")[-1]["message"]
    assert checkpoint(tmp_path / "b").version >= 2
    holder = start(tmp_path / "b", *lend)
    steps_on(owner, 1, "a step with the one that came back")

    kill_in_a_round(holder)
    # of two checkpoints the older one is left: the swarm has gone further meanwhile
    newest = max(path for path in (tmp_path / "b").rglob("checkpoints/*") if path.is_dir())
    shutil.rmtree(newest)
    older = checkpoint(tmp_path / "b").version
    assert older >= 1
    holder = start(tmp_path / "b", *lend)
    scores = len(owner.of("Evaluated"))
    steps_on(owner, 2, "steps with the older bits")
    owner.wait_for(lambda n: len(n.of("Evaluated")) > scores + 1, "a score with the older bits")

    assert holder.of("Stepped")[0]["version"] > older + 1, "it took the swarm's step for its own"
    assert all(event["loss"] < learned[1] for event in owner.of("Evaluated")[3:]), "what was learned is not lost"
    assert owner.stop() == 0
    nothing_counted_twice(owner)
