"""Files of an earlier version work; those of a newer one are refused with the command that helps, and stay as they are."""

import json
import os
import shutil

import pytest

from node.config import recipe as recipe_module
from node.config.load import load_recipe
from node.config.recipe import Recipe
from node.control.client import ControlClient
from node.core import versions
from node.core.errors import CheckpointError, ConfigError, NewerFormat, NodeError, RunMismatch
from node.core.files import sealed
from node.host import home as home_module
from node.host.home import Home
from node.result import open_result
from node.training import checkpoint as checkpoint_module
from node.training.checkpoint import Checkpoint, CheckpointStore, _canonical, _checksum
from node.training.state import decode, encode
from node.trust import seal as seal_module
from node.trust.seal import open_seal
from versions import golden, material

COMMAND = "git pull && make env"
GOLDEN = golden.ROOT / "0.1"


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def old_home(tmp_path):
    """A home as 0.1 left it."""
    return shutil.copytree(GOLDEN / "home", tmp_path / "home")


def set_format(home, number):
    (home / "format").write_bytes(sealed(str(number).encode()))


# --- the home ------------------------------------------------------------------------------------------------------


def test_a_home_of_0_1_works(old_home):
    home = Home(old_home)
    home.acquire()
    home.release()

    assert golden.read_home(old_home) == golden.read_home(GOLDEN / "home")


@pytest.mark.parametrize("number", [b"", b"#", b"1\n#blake2b 00"], ids=["absent", "damaged", "torn"])
def test_a_home_from_before_there_was_a_number_gets_one_and_works(old_home, number):
    (old_home / "format").unlink()
    if number:
        (old_home / "format").write_bytes(number)
    before = {path: data for path, data in contents(old_home).items() if path.name != "format"}

    home = Home(old_home)
    home.acquire()
    home.release()

    after = contents(old_home)
    assert before.items() <= after.items()
    assert (old_home / "format").read_bytes() == sealed(str(versions.HOME_FORMAT).encode())


def take_part(home):
    Home(home).acquire()


@pytest.mark.parametrize("use", [take_part, open_result])
def test_a_newer_home_is_refused_with_the_command_and_nothing_in_it_is_touched(old_home, use):
    set_format(old_home, versions.HOME_FORMAT + 1)
    before = contents(old_home)

    with pytest.raises(ConfigError, match="written by a newer Potluck: its format is 2") as refused:
        use(old_home)

    assert COMMAND in refused.value.hint
    assert "--home" in refused.value.hint
    assert contents(old_home) == before


def test_without_the_check_a_newer_home_is_written_into(old_home, monkeypatch):
    set_format(old_home, versions.HOME_FORMAT + 1)
    before = contents(old_home)
    monkeypatch.setattr(home_module, "refuse_newer", lambda home: None)

    take_part(old_home)

    assert contents(old_home) != before


# --- checkpoints, adapters, seals ----------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path):
    """A store whose latest generation was written by a newer version."""
    store = CheckpointStore(tmp_path / "checkpoints")
    for version in (1, 2):
        store.save(Checkpoint(material.RUN, version, {0: b"x"}))
    path = tmp_path / "checkpoints" / "generation-00000002" / "manifest.json"
    body = json.loads(path.read_text())
    del body["checksum"]
    body |= {"format": "potluck-checkpoint-2", "a new key": 1}
    path.write_bytes(_canonical({**body, "checksum": _checksum(_canonical(body))}))
    return store


def test_a_newer_checkpoint_is_refused_and_neither_set_aside_nor_replaced_by_an_older_one(store):
    before = contents(store.folder)

    with pytest.raises(NewerFormat, match="its format is potluck-checkpoint-2") as refused:
        store.load_latest(material.RUN)

    assert COMMAND in refused.value.hint
    assert contents(store.folder) == before


def test_without_the_check_a_newer_checkpoint_counts_as_damaged_and_its_work_is_lost(store, monkeypatch):
    monkeypatch.setattr(checkpoint_module, "format_number", lambda *_: None)

    assert store.load_latest(material.RUN).version == 1


def test_a_flipped_bit_in_the_format_is_damage_and_no_newer_version(store):
    path = store.folder / "generation-00000002" / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b"checkpoint-2", b"checkpoint-6"))

    assert store.load_latest(material.RUN).version == 1


def test_a_newer_adapter_is_refused_by_its_format():
    data = encode(material.adapter(), material.layout()).replace(b"potluck-adapter-1", b"potluck-adapter-2")

    with pytest.raises(CheckpointError, match="its format is potluck-adapter-2") as refused:
        decode(data, material.layout())

    assert COMMAND in refused.value.hint


def newer_seal():
    body = {**json.loads(material.seal().model_dump_json()), "format": 2, "a new key": 1}
    return material.identity().sign("run", json.dumps(body).encode())


def test_a_run_that_a_newer_version_founded_is_refused_with_the_command():
    with pytest.raises(RunMismatch, match="founded by a newer Potluck: its seal has format 2") as refused:
        open_seal(newer_seal(), sender="somebody")

    assert COMMAND in refused.value.hint


def test_without_the_check_a_newer_run_looks_like_a_broken_peer(monkeypatch):
    monkeypatch.setattr(seal_module, "_refuse_newer", lambda body: None)

    with pytest.raises(NodeError, match="cannot be read") as refused:
        open_seal(newer_seal(), sender="somebody")

    assert COMMAND not in refused.value.hint


# --- recipes -------------------------------------------------------------------------------------------------------


class NewerRecipe(Recipe):
    """A recipe with a key that came later."""

    new_key: int = 0


def shared(**changes):
    return json.dumps({**json.loads((GOLDEN / "recipe.json").read_text()), **changes})


def test_a_run_keeps_its_name_when_a_newer_version_knows_more_keys(monkeypatch):
    old = Recipe.from_shared_json(shared())
    name, text = old.fingerprint("ab"), old.shared_json()
    monkeypatch.setattr(recipe_module, "LATER_KEYS", frozenset({"new_key"}))

    new = NewerRecipe.from_shared_json(shared())

    assert new.fingerprint("ab") == name
    assert new.shared_json() == text
    used = NewerRecipe.from_shared_json(shared(new_key=1))
    assert used.fingerprint("ab") != name
    assert json.loads(used.shared_json())["new_key"] == 1


def test_a_later_key_that_is_not_listed_gives_the_run_another_name():
    assert NewerRecipe.from_shared_json(shared()).fingerprint("ab") != Recipe.from_shared_json(shared()).fingerprint(
        "ab"
    )


def test_a_recipe_of_a_newer_version_is_refused_with_the_key_and_the_command(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text((GOLDEN / "recipe.yaml").read_text() + "entirely_new: 1\n")

    with pytest.raises(ConfigError, match="unknown key 'entirely_new'") as refused:
        load_recipe(path)
    assert COMMAND in refused.value.hint

    with pytest.raises(RunMismatch, match="entirely_new") as refused:
        Recipe.from_shared_json(shared(entirely_new=1))
    assert COMMAND in refused.value.hint


# --- the running node ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("api", [0, versions.LOCAL_API + 1])
def test_a_command_of_another_version_than_the_running_nodes_says_how_to_start_it_again(tmp_path, api):
    pointer = {"pid": os.getpid(), "address": "unix:/tmp/none", "api": api, "something": "new"}
    (tmp_path / "control.json").write_text(json.dumps(pointer))

    with pytest.raises(NodeError, match="started by another version") as refused:
        ControlClient(tmp_path)

    assert f"kill {os.getpid()}" in refused.value.hint
