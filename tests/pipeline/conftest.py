"""Fixtures for small pipelines."""

import sys
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "model"))

from reference import loaded
from small_swarm import PACKING, Swarm, documents
from tiny_models import FAMILIES, save_tiny

from node.data.stream import MicrobatchStream
from node.training.adapter import StageAdapter
from node.training.loop import dropout_seed


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("models") / "llama", **FAMILIES["llama"])


@pytest.fixture
async def swarm(tiny_folder, tmp_path):
    async with AsyncExitStack() as stack:
        made = Swarm(tiny_folder, tmp_path)
        made.stack = stack
        yield made
        await made.stop()


@pytest.fixture
def undivided(tiny_folder):
    """Return a function: the gradients that one process gets from a driver's first microbatches, in one piece."""

    def compute(*drivers, **spec):
        whole = loaded(tiny_folder, **spec)
        adapter = StageAdapter(0, whole.lora)
        for name, count in drivers:
            stream = MicrobatchStream(documents(name), PACKING, seed=1, salt=name)
            for _ in range(count):
                batch = next(stream)
                whole.train_microbatch(batch, dropout_seed=dropout_seed(f"1:{name}", batch.id))
        return adapter.layout.views(adapter.gradients)

    return compute
