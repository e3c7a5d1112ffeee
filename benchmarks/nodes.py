"""What the benchmarks of whole nodes share: a recipe on the demo's model, and pinned children that are watched."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
from platformdirs import user_cache_path

from node.data.demo_data import write_docstrings
from node.demo.model import find_demo_gguf
from node.model.source import resolve_base_model

START_S = 240.0
RECIPE = """\
base_model: {base_model}
adapter: qlora
lora_r: 16
lora_alpha: 32
sequence_len: 512
sample_packing: true
val_set_size: 0
micro_batch_size: 1
learning_rate: 1e-4
lr_scheduler: constant
warmup_steps: 0
max_steps: 1000000
evals_per_epoch: 0
save_steps: {save_steps}
seed: 7
potluck:
  averaging:
    target_batch_tokens: {target}
"""


def write_inputs(folder: Path, *, target_batch_tokens: int, save_steps: int = 4) -> tuple[Path, Path]:
    """Write recipe and data, convert the model if that was not done before, and return the two files."""
    cache = user_cache_path("potluck")
    model = resolve_base_model(str(find_demo_gguf(cache)), cache=cache / "models")
    recipe, data = folder / "recipe.yaml", folder / "data.jsonl"
    recipe.write_text(
        RECIPE.format(base_model=model, target=target_batch_tokens, save_steps=save_steps), encoding="utf-8"
    )
    write_docstrings(data)
    return recipe, data


class Watched:
    """A child process on one core that prints events as JSON lines, each kept with the child's CPU seconds so far."""

    def __init__(self, command: list[str], core: int, log: Path) -> None:
        self.events: list[dict] = []
        self._log = log
        self._child = subprocess.Popen(
            ["taskset", "-c", str(core), *command],
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            stdin=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"},
            process_group=0,
        )
        threading.Thread(target=self._read, daemon=True).start()

    def wait(self, happened, seconds: float, what: str):
        """Wait until `happened(events)` is true and return it."""
        until = time.monotonic() + seconds
        while not (result := happened(self.events)):
            if self._child.poll() is not None:
                raise RuntimeError(f"the child ended early: {self._log.read_text()[-2000:]}")
            if time.monotonic() > until:
                raise TimeoutError(f"waited {seconds:.0f} s for {what}; latest: {self.events[-3:]}")
            time.sleep(0.02)
        return result

    def microbatches(self) -> list[dict]:
        """Return the microbatches done so far."""
        return [event for event in self.events if event["event"] == "MicrobatchDone"]

    def wait_for_microbatches(self, count: int) -> None:
        """Wait until that many more are done."""
        goal = len(self.microbatches()) + count
        self.wait(lambda _: len(self.microbatches()) >= goal, START_S + 20 * count, f"{count} microbatches")

    def pause(self) -> None:
        """Let the child stand still."""
        os.killpg(self._child.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        os.killpg(self._child.pid, signal.SIGCONT)

    def stop(self) -> None:
        """Let the child leave; kill it if it does not."""
        if self._child.poll() is None:
            self.resume()
            self._child.terminate()
            try:
                self._child.wait(90)
            except subprocess.TimeoutExpired:
                os.killpg(self._child.pid, signal.SIGKILL)
                self._child.wait()

    def _read(self) -> None:
        assert self._child.stdout is not None
        process = psutil.Process(self._child.pid)  # taskset becomes the program itself
        for line in self._child.stdout:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            self.events.append({"cpu_s": _cpu_seconds(process), **event})


class Node(Watched):
    """A real node: `potluck start` or `potluck join`."""

    def __init__(self, home: Path, arguments: list[str], core: int) -> None:
        home.mkdir(parents=True, exist_ok=True)
        super().__init__(self.command(arguments, home), core, home / "stderr.txt")

    def command(self, arguments: list[str], home: Path, *, address: str = "127.0.0.1") -> list[str]:
        """Return the command line of a node that listens at `address`."""
        listen = ["--listen", f"/ip4/{address}/tcp/0", "--threads", "1", "--log", "json", "--device", "cpu"]
        return [sys.executable, "-m", "node", *arguments, "--home", str(home), *listen]

    def listening(self) -> dict:
        """Wait until the node listens, and return its introduction."""
        return self.wait(
            lambda events: next((e for e in events if e["event"] == "Listening"), None), START_S, "the node to listen"
        )


def _cpu_seconds(process: psutil.Process) -> float:
    """Return the CPU time of the child and of its own children, the libp2p daemon above all."""
    total = 0.0
    try:
        for one in (process, *process.children(recursive=True)):
            times = one.cpu_times()
            total += times.user + times.system
    except psutil.Error:
        return float("nan")
    return total
