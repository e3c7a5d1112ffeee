"""A coordinator where none of a node's libraries are, in a process of its own; and killed again and again."""

import asyncio
import subprocess
import sys

import pytest
from click.testing import CliRunner
from light_nodes import LightNode, make_run
from serving_here import Killable

from coordinator.operator_cli import command
from coordinator.server import Settings, serving
from coordinator.store import StoreError

KILLS = 10
WITHOUT = "torch", "transformers", "peft", "bitsandbytes", "hivemind", "numpy", "safetensors", "datasets"
PROGRAM = f"""
import sys

class Never:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {WITHOUT!r}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Never())
sys.argv[1:1] = ["serve"]
from coordinator.operator_cli import command
command()
"""


def launched(*arguments):
    return subprocess.Popen(
        [sys.executable, "-u", "-c", PROGRAM, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def fill(file):
    """Leave no room on the disk that the file is on."""
    with file.open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(1 << 16))


async def test_it_serves_page_and_metrics_too_without_a_nodes_libraries(tmp_path):
    arguments = ("--listen", "127.0.0.1:0", "--state", tmp_path / "state", "--dashboard", "127.0.0.1:0", "--metrics")
    process = launched(*arguments, "127.0.0.1:0")
    try:
        lines = iter(process.stdout.readline, "")
        address = next((line.strip() for line in lines if line.startswith("coordinator://")), None)
        assert address, process.stderr.read()[-600:]
        node = LightNode(tmp_path, address)
        assert (await node.join()).run.name == "demo"
        assert (await node.beat()).is_known
        await node.client.close()
    finally:
        process.terminate()
        assert process.wait(20) == 0
        process.stdout.close()
        process.stderr.close()


async def test_what_it_knows_outlives_kill_9_again_and_again(tmp_path, unused_tcp_port):
    folder = tmp_path / "state"
    server = Killable(folder, unused_tcp_port).start()
    address = server.address
    anna, evil = (LightNode(tmp_path, address, name) for name in ("anna", "evil"))
    for node in (anna, evil):
        await node.join()
        await node.beat()

    def operator(*arguments):
        done = CliRunner().invoke(command, [*arguments, "--state", str(folder)])
        return done.output

    assert "Evicted" in await asyncio.to_thread(operator, "evict", evil.peer_id[-6:])
    assert "Paused" in await asyncio.to_thread(operator, "pause")
    await asyncio.sleep(1.5)  # it is written once a second
    try:
        for number in range(KILLS):
            for _ in range(number):
                await anna.beat()
            server.kill()
            server.start()
            assert server.address == address, "certificate, token and port are the same"
            assert "paused" in await asyncio.to_thread(operator, "runs")
            assert (await anna.join(run=None, fingerprint="")).run.name == "demo", "known without being told again"
            with pytest.raises(Exception, match="evicted"):
                await evil.join()
    finally:
        server.kill()
        for node in (anna, evil):
            await node.client.close()


async def test_a_memory_that_is_damaged_is_one_line(tmp_path):
    (tmp_path / "coordinator.sqlite").write_bytes(b"SQLite format 3\x00" + b"\xff" * 5000)

    with pytest.raises(StoreError, match=r"coordinator\.sqlite cannot be used: .* move it away"):
        async with serving(Settings(tmp_path, "127.0.0.1", 0), lambda _: None):
            pass


async def test_a_disk_that_refuses_ends_nothing_and_is_told_once(small_disk):
    said = []
    async with serving(Settings(small_disk / "state", "127.0.0.1", 0), said.append) as here:
        node = LightNode(small_disk, here.address)
        filler = small_disk / "filler"
        with pytest.raises(OSError, match="No space"):
            fill(filler)
        await node.join()
        for _ in range(3):
            await node.beat()
            await asyncio.sleep(1.1)
        assert len([line for line in said if "Going on" in line]) == 1
        filler.unlink()
        for _ in range(2):
            assert (await node.beat()).is_known
            await asyncio.sleep(1.1)
        await node.client.close()
    async with serving(Settings(small_disk / "state", "127.0.0.1", 0), said.append) as again:
        assert [run.facts.name for run in again.hub.runs.values()] == [make_run().name]
