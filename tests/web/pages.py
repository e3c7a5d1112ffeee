"""A page over snapshots of the test's own, served as a node serves it."""

import asyncio
import threading
from contextlib import contextmanager
from pathlib import Path

from coordinator.web.app import make_app
from coordinator.web.gate import new_token
from coordinator.web.hints import with_hints
from coordinator.web.serve import open_socket, page_url, serving
from coordinator.web.snapshot import Commands, PeerView, RoundView, RunView, Snapshot

JOIN = "potluck join /ip4/192.168.1.20/tcp/4040/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"


def peer(number, **fields):
    values = {
        "id": f"QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DW{number:05}",
        "name": f"pc-{number}",
        "state": "training",
        "stop_stage": 4,
        "stop_layer": 32,
        "tokens_per_s": 900.0,
        "tokens_given": 40_000,
        "share": 0.25,
        "loss": 2.1,
        "version": 40,
        "heard_s_ago": 0.7,
    }
    return PeerView(**(values | fields))


def run(**fields):
    """A run in the middle of its training: four stages, one peer slow, one gone."""
    values = {
        "fingerprint": "ab" * 32,
        "name": "recipes of the street",
        "base_model": "Qwen/Qwen3-8B",
        "state": "training",
        "version": 40,
        "max_steps": 120,
        "seconds_left": 2400.0,
        "target_tokens": 32_768,
        "tokens_towards_next": 20_000,
        "tokens_per_s": 2700.0,
        "loss": 2.104,
        "held_out_loss": 2.211,
        "held_out_loss_before": 2.9,
        "training": [(step, 2 + 1 / (1 + step / 8) + 0.05 * ((step * 7) % 5 - 2)) for step in range(1, 41)],
        "held_out": [(step, 2.15 + 0.75 / (1 + step / 10)) for step in range(0, 41, 8)],
        "num_stages": 4,
        "num_layers": 32,
        "peers": [
            peer(1, name="anna", is_me=True, stop_stage=2, stop_layer=16, share=0.5),
            peer(2, name="bert", first_stage=2, first_layer=16, mark="slow", share=0.3),
            peer(3, name="cleo", stop_stage=0, stop_layer=0, share=0.2),
            peer(4, name="dora", mark="left", heard_s_ago=95.0, share=0.0, tokens_per_s=0.0),
        ],
        "rounds": [
            RoundView(
                version=version,
                status="dropped" if version == 33 else "committed",
                members=3,
                tokens=33_000,
                seconds=1.4,
                bytes_sent=4_200_000,
                reason="dora did not answer" if version == 33 else "",
            )
            for version in range(28, 40)
        ],
        "commands": Commands(
            join=JOIN, stop="potluck stop --home here", export="potluck export peft --home here --output adapter"
        ),
    }
    return with_hints(RunView(**(values | fields)))


class Shown:
    """A source whose snapshot the test changes."""

    def __init__(self, *runs):
        self.runs = runs or (run(),)
        self.viewers = 0
        self.has_ended = False

    def snapshot(self):
        return Snapshot(runs=self.runs)

    async def changes(self):
        self.viewers += 1
        try:
            while not self.has_ended:
                yield self.snapshot()
                await asyncio.sleep(0.05)
        finally:
            self.viewers -= 1


@contextmanager
def served(source):
    """Serve a source's page in a thread; yield the address with the token."""
    token, listener = new_token(), open_socket("127.0.0.1", 0)
    started, loop = threading.Event(), asyncio.new_event_loop()
    end = asyncio.Event()

    async def serve():
        async with serving(make_app(source, token=token), listener):
            started.set()
            await end.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert started.wait(10)
    yield page_url(listener, token)
    source.has_ended = True
    loop.call_soon_threadsafe(end.set)
    thread.join(10)
    loop.close()


def until(page, expression):
    """Wait until an expression is true in the page; its own policy forbids playwright's way, which evaluates strings."""
    for _ in range(200):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never true: {expression}")


AXE = Path(__file__).parent / "vendor" / "axe.min.js"
