"""One flipped bit in anything that is stored is found before it is used."""

import contextlib
import random
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from faults import scenarios
from faults.crash import files_below
from faults.scenarios import RUN, damage
from node.core.errors import NodeError
from node.host import home
from node.host.home import Home
from node.model import facts
from node.model.facts import is_hex, remembered
from node.model.gguf_folder import is_intact
from node.model.source import local_base_model
from node.model.store import FetchedFolder
from node.trust.identity import Identity

FOUND = None


@dataclass(frozen=True)
class Stored:
    """One kind of file."""

    prepare: Callable[[Path], object]
    files: str
    """A pattern below the folder."""
    use: Callable[[Path], object]
    """What a node makes of them; `FOUND`, or a `NodeError`, if it noticed."""


def live(folder):
    scenarios.prepare_home(folder)
    here = Home(folder / "home")
    run = here.create_run(RUN)
    run.save_seal(scenarios._sealed())
    run.save_local(scenarios.LocalRun(base_model="/models/tiny", tokens_given=7))
    run.save_coordinator("coordinator://10.0.0.1:7300/" + "t" * 32)
    run.remember_peers([("p1", ("/ip4/10.0.0.1/tcp/1/p2p/p1",))])
    here.remember_port(4001)


def take(folder):
    here = Home(folder / "home")
    here.acquire()
    here.release()


def run_of(folder):
    return Home(folder / "home").current_run()


def fetched(folder):
    """The tensors that are damaged are fetched again, and the small files too."""
    into, before = FetchedFolder(folder / "fetched", scenarios._manifest()), files_below(folder)
    into.prepare()
    if files_below(folder) != before:
        return FOUND
    if into.drop_damaged(scenarios._TENSORS) or into.file("config.json") is None:
        return FOUND
    return into.held() == scenarios._TENSORS.keys() or FOUND


def converted(folder):
    (model,) = (path for path in (folder / "models").iterdir() if path.is_dir() and path.name != "digests")
    return is_intact(model) or FOUND


def convert(folder):
    scenarios.prepare_gguf(folder)
    local_base_model(str(folder.parent / "tiny.gguf"), cache=folder / "models")


def checked(folder):
    done = subprocess.run(["sha256sum", "--strict", "-c", "SHA256SUMS"], cwd=folder / "out", capture_output=True)
    return done.returncode == 0 or FOUND


STORED = {
    "identity": Stored(scenarios.make_identity, "identity.key", lambda f: Identity.load_or_create(f / "identity.key")),
    "seal": Stored(live, "home/runs/*/seal.json", lambda f: run_of(f).load_seal()),
    "what this node knows": Stored(live, "home/runs/*/local.json", lambda f: run_of(f).load_local()),
    "peers": Stored(live, "home/runs/*/peers.json", lambda f: run_of(f).known_peers() or FOUND),
    "coordinator": Stored(live, "home/runs/*/coordinator.json", lambda f: run_of(f).load_coordinator()),
    "port": Stored(live, "home/port", lambda f: Home(f / "home").remembered_port()),
    "format": Stored(take, "home/format", lambda f: home._format_of(f / "home")),
    "current run": Stored(live, "home/current", run_of),
    "memo of digests": Stored(
        scenarios.remember,
        "cache/digests/*",
        lambda f: (
            [remembered(f / "cache", [f / "file"], k, lambda: "cd" * 32, is_hex) for k in "ab"] == ["ab" * 32] * 2
            or FOUND
        ),
    ),
    "fetched weights": Stored(scenarios.fetch, "fetched/*.*", fetched),
    "converted model": Stored(convert, "models/*[0-9a-f]/*", converted),
    "export": Stored(scenarios.prepare_an_export, "out/[aR]*", checked),
}


def flips_that_nobody_saw(stored, folder, num_flips):
    folder.mkdir()
    stored.prepare(folder)
    chosen = [path for path in sorted(folder.glob(stored.files)) if path.suffix != ".lock"]
    assert chosen
    assert stored.use(folder), "undamaged it is used"
    pristine = folder.with_name("pristine")
    shutil.copytree(folder, pristine)
    chance, unseen = random.Random(3), []
    for _ in range(num_flips):
        file = chance.choice(chosen)
        bit = chance.randrange(8 * file.stat().st_size)
        damage(file, bit)
        with contextlib.suppress(NodeError):
            if stored.use(folder) is not FOUND:
                unseen.append((file.name, bit))
        shutil.copytree(pristine, folder, dirs_exist_ok=True)
    return unseen


@pytest.mark.parametrize("name", STORED)
def test_a_flipped_bit_is_found_before_use(name, tmp_path, is_soak):
    assert flips_that_nobody_saw(STORED[name], tmp_path / "state", 1000 if is_soak else 25) == []


@pytest.mark.parametrize("name", ["peers", "port", "what this node knows", "memo of digests"])
def test_without_its_checksum_a_flipped_bit_is_used(name, tmp_path, monkeypatch):
    for room in (home, facts):
        monkeypatch.setattr(room, "unsealed", lambda data: data[: data.rfind(b"\n#")])

    assert flips_that_nobody_saw(STORED[name], tmp_path / "state", 40) != []
