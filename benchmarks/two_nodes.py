"""How much faster are two nodes than one? Two on a core each, against one whose neighbour core is busy too.

Two real nodes on loopback (`potluck start` on core 0, `potluck join` on core 1) train one adapter. The baseline is a
node on core 0 that is alone in its swarm, while a copy of it that is not joined keeps core 1 busy, since two cores
share caches, memory and heat. The cases alternate. Compared are tokens per second: both nodes' against the single
one's. Two is the most there can be; the goal is 0.95 of it.

    python -m benchmarks.two_nodes [--quick] [--runs 3] [--seconds 90]
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.nodes import START_S, Node, Watched, write_inputs

TARGET_TOKENS = 4096
GOAL = 0.95 * 2


def rate(node: Watched, start_s: float, stop_s: float) -> float:
    """Return tokens per second between the first and the last microbatch that ended in the window."""
    done = [event for event in node.microbatches() if start_s <= event["at_s"] <= stop_s]
    assert len(done) >= 3, f"{len(done)} microbatches in {stop_s - start_s:.0f} s: the window is too short"
    return sum(event["tokens"] for event in done[1:]) / (done[-1]["at_s"] - done[0]["at_s"])


def shared_steps(events: list[dict]) -> list[dict]:
    """Return the rounds in which both took part."""
    return [
        event["result"]
        for event in events
        if event["event"] == "RoundFinished"
        and event["result"]["status"] == "committed"
        and len(event["result"]["members"]) == 2
    ]


def window(nodes: list[Node], seconds: float) -> list[float]:
    start_s = time.time()
    time.sleep(seconds)
    stop_s = time.time()
    for node in nodes:
        node.wait(lambda _: True, 1, "life")
    return [rate(node, start_s, stop_s) for node in nodes]


def run_pair(folder: Path, recipe: Path, data: Path, seconds: float) -> dict:
    nodes = [Node(folder / "a", ["start", str(recipe), "--data", str(data), "--fresh"], core=0)]
    try:
        address = nodes[0].listening()["addresses"][0]
        nodes.append(Node(folder / "b", ["join", address, "--data", str(data), "--fresh"], core=1))
        nodes[1].wait_for_microbatches(2)
        nodes[0].wait(shared_steps, START_S, "a round of both")
        before = len(shared_steps(nodes[0].events))
        rates = window(nodes, seconds)
        rounds = shared_steps(nodes[0].events)[before:]
        dropped = sum(
            event["event"] == "RoundFinished" and event["result"]["status"] == "dropped" for event in nodes[0].events
        )
        round_s = statistics.median(r["seconds"] for r in rounds) if rounds else float("nan")
        return {"rates": rates, "rounds": len(rounds), "dropped": dropped, "round_s": round_s}
    finally:
        for node in nodes:
            node.stop()


def run_single(folder: Path, recipe: Path, data: Path, seconds: float) -> dict:
    """Measure a node on core 0 while its copy, in a swarm of its own, keeps core 1 busy."""
    names = ("single", "copy")
    nodes = []
    try:
        for core, name in enumerate(names):
            nodes.append(Node(folder / name, ["start", str(recipe), "--data", str(data), "--fresh"], core=core))
        for node in nodes:
            node.wait_for_microbatches(2)
        return {"rates": window(nodes, seconds)}
    finally:
        for node in nodes:
            node.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short run of each")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=90.0)
    options = parser.parse_args()
    runs, seconds = (1, 45.0) if options.quick else (options.runs, options.seconds)
    pairs, singles = [], []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        recipe, data = write_inputs(folder, target_batch_tokens=TARGET_TOKENS)
        print(f"{'run':>4} {'':8} {'core 0':>8} {'core 1':>8}  tokens/s")
        for run in range(runs):
            single = run_single(folder, recipe, data, seconds)
            print(f"{run:4} {'apart':8} {single['rates'][0]:8.1f} {single['rates'][1]:8.1f}", flush=True)
            pair = run_pair(folder, recipe, data, seconds)
            about = f"{pair['rounds']} rounds of {pair['round_s']:.2f} s, {pair['dropped']} dropped"
            print(f"{run:4} {'together':8} {pair['rates'][0]:8.1f} {pair['rates'][1]:8.1f}  {about}", flush=True)
            singles.append(single["rates"][0])
            pairs.append(sum(pair["rates"]))
    ratio = statistics.median(pairs) / statistics.median(singles)
    print(f"two nodes make {ratio:.3f} times the tokens of one; goal {GOAL:.2f}")
    print(json.dumps({"benchmark": "two_nodes", "runs": runs, "ratio": ratio, "goal": GOAL}))


if __name__ == "__main__":
    main()
