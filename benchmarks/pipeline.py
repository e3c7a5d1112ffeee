"""Does a model that is cut in two keep two cores busy? On loopback, far apart, and on a thin link.

Two real nodes, a core each, hold half of the layers each and drive their own data through both halves. Compared are:

  loopback  tokens per second of both together, against one node that holds the undivided model on one core while a copy
            of it keeps the other core busy. Two is the most there can be; the goal is 1.85.
  far       the same pair with 40 ms of round trip between them, at a rate that leaves compute the limit (1.25 times what
            the pair sends on loopback); against loopback. Goal 0.95.
  thin      the same with half of the rate that the pair sends on loopback, so that the link is the limit: bytes of hidden
            states that arrive, against what the link could carry. Goal 0.90.

`far` and `thin` run in two network namespaces with a link between them whose packets are really late (`slow_link.py`), so
they need root; delays are real, and the rates are scaled to what two cores make. The cases alternate.

    python -m benchmarks.pipeline [--quick] [--runs 5] [--seconds 40] [--activations int8] [--wire star]
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

from benchmarks.nodes import Node, write_inputs
from benchmarks.slow_link import ADDRESSES, SlowLink, inside
from benchmarks.two_nodes import rate, run_single
from node.control.client import ControlClient

TARGET_TOKENS = 32768
"""64 microbatches a step: the pipeline comes to a rest once a step."""
GOALS = {"loopback": 1.85, "far": 0.95, "thin": 0.90}
ONE_WAY_MS = 20


class Placed(Node):
    """A node in a network namespace, or on loopback."""

    def __init__(self, home: Path, arguments: list[str], core: int, space: int | None) -> None:
        self.home, self.space = home, space
        super().__init__(home, arguments, core)

    def command(self, arguments: list[str], home: Path) -> list[str]:
        """Return the command line, inside the namespace if there is one."""
        address = ADDRESSES[self.space] if self.space is not None else "127.0.0.1"
        plain = super().command(arguments, home, address=address)
        return plain if self.space is None else inside(self.space, plain)

    def hidden_bytes(self) -> int:
        """Return the bytes of hidden states and gradients that this node has received so far."""
        with ControlClient(self.home) as control:
            return control.status().given.hidden_bytes_received


def run_pair(folder: Path, recipe: Path, data: Path, seconds: float, *, apart: bool = False) -> dict:
    """Measure two halves: tokens per second of both, and bytes per second that each received."""
    spaces = (0, 1) if apart else (None, None)
    common = ["--data", str(data), "--fresh"]
    nodes = [Placed(folder / "a", ["start", str(recipe), "--stages", "0", *common], 0, spaces[0])]
    try:
        address = nodes[0].listening()["addresses"][0]
        nodes.append(Placed(folder / "b", ["join", address, "--stages", "1", *common], 1, spaces[1]))
        for node in nodes:
            node.wait_for_microbatches(4)
        before, start_s = [node.hidden_bytes() for node in nodes], time.time()
        time.sleep(seconds)
        after, stop_s = [node.hidden_bytes() for node in nodes], time.time()
        received = [(b - a) / (stop_s - start_s) for a, b in zip(before, after, strict=True)]
        return {"rates": [rate(node, start_s, stop_s) for node in nodes], "received": received}
    finally:
        for node in nodes:
            node.stop()


def show(run_number: int, case: str, rates: list[float], about: str = "") -> None:
    print(f"{run_number:4} {case:10} {rates[0]:8.1f} {rates[1]:8.1f}  {about}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one run of each")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--activations", default="lowbit", choices=["none", "bf16", "int8", "lowbit"])
    parser.add_argument("--wire", default="star", choices=["star", "chain"])
    options = parser.parse_args()
    runs = 1 if options.quick else options.runs
    singles, pairs, far, thin = [], [], [], []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        whole, data = write_inputs(folder, target_batch_tokens=TARGET_TOKENS)
        cut = folder / "cut.yaml"
        cut.write_text(
            whole.read_text() + f"  stages: 2\n  activations: {options.activations}\n  wire: {options.wire}\n"
        )
        print(f"{'run':>4} {'':10} {'core 0':>8} {'core 1':>8}  tokens/s")
        for number in range(runs):
            single = run_single(folder, whole, data, options.seconds)
            show(number, "undivided", single["rates"])
            pair = run_pair(folder, cut, data, options.seconds)
            most = max(pair["received"])
            show(number, "loopback", pair["rates"], f"{most * 8 / 1e6:.2f} Mbit/s the busier way")
            singles.append(single["rates"][0])
            pairs.append(sum(pair["rates"]))
            with SlowLink(mbit_per_s=1.25 * most * 8 / 1e6, one_way_s=ONE_WAY_MS / 1000):
                apart = run_pair(folder, cut, data, options.seconds, apart=True)
            show(number, "far", apart["rates"], f"{2 * ONE_WAY_MS} ms, {1.25 * most * 8 / 1e6:.2f} Mbit/s")
            far.append(sum(apart["rates"]) / sum(pair["rates"]))
            with SlowLink(mbit_per_s=0.5 * most * 8 / 1e6, one_way_s=ONE_WAY_MS / 1000):
                bound = run_pair(folder, cut, data, options.seconds, apart=True)
            thin.append(max(bound["received"]) / (0.5 * most))
            show(number, "thin", bound["rates"], f"{0.5 * most * 8 / 1e6:.2f} Mbit/s, {thin[-1]:.3f} of it useful")
    ratios = {
        "loopback": statistics.median(pairs) / statistics.median(singles),
        "far": statistics.median(far),
        "thin": statistics.median(thin),
    }
    print(f"two halves make {ratios['loopback']:.3f} times the tokens of one undivided node; goal {GOALS['loopback']}")
    print(f"40 ms apart they keep {ratios['far']:.3f} of that; goal {GOALS['far']}")
    print(f"on a link of half the rate, {ratios['thin']:.3f} of it carries hidden states; goal {GOALS['thin']}")
    print(json.dumps({"benchmark": "pipeline", "runs": runs, **ratios, "goals": GOALS}))


if __name__ == "__main__":
    main()
