"""The node's folder: locked, remembered, and never half written."""

import multiprocessing
import stat

import pytest

from node.core.errors import CheckpointError, ConfigError
from node.host.home import Home, LocalRun
from node.trust.identity import Identity
from node.trust.seal import ModelIdentity, RunSeal, seal_run

RUN = "cd" * 32


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path / "home")


def _hold(path, ready, done):
    home = Home(path)
    home.acquire()
    ready.set()
    done.wait(20)


def test_a_second_node_is_kept_out_of_a_home(home):
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(home.path, ready, done))
    other.start()
    assert ready.wait(30)

    with pytest.raises(ConfigError, match="Another node is running") as error:
        home.acquire()

    assert "--home" in error.value.hint
    done.set()
    other.join(20)
    home.acquire()
    home.release()


def test_a_home_is_for_its_owner_alone(tmp_path):
    home = Home(tmp_path / "not" / "there")
    home.acquire()
    home.release()
    assert stat.S_IMODE(home.path.stat().st_mode) == 0o700


def test_a_lock_whose_owner_was_killed_does_not_stop_the_next_start(home):
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(home.path, ready, done))
    other.start()
    assert ready.wait(30)
    other.kill()
    other.join(20)

    home.acquire()
    home.release()


def test_a_run_is_found_again_with_its_seal_and_what_only_this_node_knows(home, tmp_path):
    identity = Identity.load_or_create(tmp_path / "identity.key")
    seal = RunSeal(fingerprint=RUN, recipe="{}", model=ModelIdentity(digest="ab" * 32, config={}), founded_at_s=1.0)
    folder = home.create_run(RUN)
    folder.save_seal(seal_run(seal, identity))
    folder.save_local(LocalRun(origin="x", data=("a.jsonl",), base_model="/models/tiny"))

    found = home.current_run()

    assert found.load_seal().founder == identity.peer_id
    assert found.load_seal().seal == seal
    assert found.load_local().data == ("a.jsonl",)
    assert [run.path for run in home.runs()] == [folder.path]


def test_a_damaged_seal_is_refused_by_name(home, tmp_path):
    folder = home.create_run(RUN)
    for content in (b"", b"{}", b"[1]", b'{"body": "!", "public_key": "", "signature": ""}', b"\xff" * 100):
        (folder.path / "seal.json").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"seal\.json"):
            folder.load_seal()


def test_peers_are_remembered_latest_first_and_a_damaged_list_is_an_empty_one(home):
    folder = home.create_run(RUN)
    folder.remember_peers([("p1", ("/ip4/1.2.3.4/tcp/1/p2p/p1",))])
    folder.remember_peers([("p2", ("/ip4/1.2.3.5/tcp/1/p2p/p2",)), ("p3", ())])

    assert [peer.peer_id for peer in folder.known_peers()] == ["p2", "p1"]

    folder.remember_peers((f"q{n}", (f"/ip4/1.2.3.4/tcp/{n}",)) for n in range(200))
    assert len(folder.known_peers()) == 64
    (folder.path / "peers.json").write_bytes(b'{"peers": [{"peer_id": 1}]}')
    assert folder.known_peers() == ()


def test_the_port_stays_and_nonsense_is_ignored(home):
    home.path.mkdir(parents=True)
    assert home.remembered_port() is None
    home.remember_port(4123)
    assert home.remembered_port() == 4123
    for content in (b"", b"x", b"0", b"99999", b"-1"):
        (home.path / "port").write_bytes(content)
        assert home.remembered_port() is None


def test_a_home_without_a_run_says_how_to_begin(home):
    with pytest.raises(ConfigError, match="no run under") as error:
        home.current_run()
    assert "potluck start" in error.value.hint


def test_a_current_run_cannot_point_outside(home):
    home.path.mkdir(parents=True)
    (home.path / "current").write_text("../../etc")
    with pytest.raises(ConfigError):
        home.current_run()
