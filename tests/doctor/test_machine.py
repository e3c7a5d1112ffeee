"""What `potluck doctor` finds on this machine, and in each circumstance that keeps a node from training."""

import json
import shutil
import socket
import subprocess

import psutil
import pytest
from click.testing import CliRunner

from node.cli.main import root
from node.config.load import load_recipe
from node.config.local import LocalSettings
from node.control.server import POINTER
from node.doctor import machine, model, packages, reach
from node.doctor.finding import Level
from node.host.gpus import Gpu
from node.network.interfaces import Interface

LO = Interface("lo", "127.0.0.1", 8)
WSL = "Linux version 5.15.167.4-microsoft-standard-WSL2 (root@f9c826d3017f) (gcc 11.2.0)"


def recipe_for(tmp_path, base_model, **more):
    path = tmp_path / "recipe.yaml"
    keys = {"base_model": base_model, "adapter": "qlora", "sequence_len": 64, **more}
    path.write_text("".join(f"{key}: {value}\n" for key, value in keys.items()))
    return path


def test_this_machine_can_train_with_a_real_model(smollm2, tmp_path):
    home = tmp_path / "home"
    command = ["doctor", str(recipe_for(tmp_path, smollm2)), "--device", "cpu", "--home", str(home), "--json"]

    result = CliRunner().invoke(root, command)

    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer["can_train"]
    levels = {finding["name"]: finding["level"] for finding in answer["findings"]}
    for name in ("python", "libraries", "device", "bitsandbytes", "disk", "model", "room", "port", "clock"):
        assert levels[name] == "ok", answer
    assert all(finding["fix"] for finding in answer["findings"] if finding["level"] != "ok")
    assert not home.exists(), "an examination changes nothing"


def test_what_keeps_it_from_training_is_code_1_and_a_line_with_what_to_do(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"/ip4/127.0.0.1/tcp/{taken.getsockname()[1]}"
        result = CliRunner().invoke(root, ["doctor", "--device", "cpu", "--listen", listen, "--home", str(tmp_path)])

    assert result.exit_code == 1
    lines = result.output.splitlines()
    (at,) = [number for number, line in enumerate(lines) if line.startswith("FAIL")]
    assert listen in lines[at]
    assert "--listen" in lines[at + 1]
    assert "Training cannot start" in lines[-1]


def test_a_disk_that_is_full_or_read_only_fails_and_a_small_one_does_too(small_disk):
    home = small_disk / "home"
    assert "A checkpoint would not fit" in machine.disk(home).text, "16 MB"
    with pytest.raises(OSError, match="No space"):
        (small_disk / "ballast").write_bytes(bytes(32 << 20))
    full = machine.disk(home)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    read_only = machine.disk(home)

    assert (full.level, read_only.level) == (Level.FAIL, Level.FAIL)
    assert "No space left on device" in full.text
    assert "Read-only file system" in read_only.text
    assert "--home" in full.fix


@pytest.mark.parametrize("version", [(3, 10), (3, 14)])
def test_a_python_that_is_too_old_or_too_new_fails(version):
    finding = packages.python(version)

    assert finding.level is Level.FAIL
    assert "3.11 to 3.13" in finding.text


def test_a_library_that_is_broken_fails_by_name(tmp_path, monkeypatch):
    (tmp_path / "broken_library.py").write_text("raise OSError('libcudart.so.12: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)

    finding = packages.libraries({"torch": "torch", "broken": "broken_library"})

    assert finding.level is Level.FAIL
    assert finding.text.startswith("broken cannot be imported: libcudart.so.12")
    assert "pip install" in finding.fix


def test_a_device_that_is_not_here_fails_for_device_and_kernels():
    for finding in (machine.device("cuda:7"), machine.four_bit("cuda:7")):
        assert finding.level is Level.FAIL
        assert "cuda:7" in finding.text
        assert finding.fix


def test_no_card_is_a_warning_and_a_hot_one_too():
    cool = Gpu("NVIDIA RTX 4090", 1 << 30, 24 << 30, 45)
    hot = Gpu("NVIDIA RTX 4090", 1 << 30, 24 << 30, 93)

    assert machine.cards([], "").level is Level.WARN
    assert machine.cards([cool], "570.1").text == "NVIDIA RTX 4090, 23.0 GiB of 24.0 GiB free, 45 °C; driver 570.1"
    assert machine.cards([hot], "570.1").level is Level.WARN


def test_little_memory_is_a_warning():
    assert machine.memory(8 << 30, 1 << 30).level is Level.WARN
    assert machine.memory(8 << 30, 6 << 30).level is Level.OK


def test_a_node_that_runs_here_is_told_of(tmp_path):
    pointer = {"pid": psutil.Process().pid, "address": "unix:/nowhere", "api": 1}
    (tmp_path / POINTER).write_text(json.dumps(pointer))

    assert f"process {pointer['pid']}" in machine.running(tmp_path).text
    assert "none" in machine.running(tmp_path / "other").text


def test_files_of_a_model_that_are_cut_or_gone_fail_by_name(smollm2, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(smollm2, folder)
    recipe = load_recipe(recipe_for(tmp_path, folder)).recipe
    assert model.model_files(recipe, tmp_path)[0].level is Level.OK
    (weights,) = folder.glob("*.safetensors")
    with weights.open("r+b") as file:
        file.truncate(weights.stat().st_size - 1)
    cut, where = model.model_files(recipe, tmp_path)
    weights.unlink()
    gone, _ = model.model_files(recipe, tmp_path)

    assert (cut.level, gone.level, where) == (Level.FAIL, Level.FAIL, None)
    assert weights.name in cut.text
    assert cut.fix
    nowhere = load_recipe(recipe_for(tmp_path, tmp_path / "nowhere")).recipe
    assert model.model_files(nowhere, tmp_path)[0].level is Level.FAIL


def test_a_model_on_the_hub_is_a_warning(tmp_path):
    recipe = load_recipe(recipe_for(tmp_path, "nobody/has-this-model")).recipe

    finding, folder = model.model_files(recipe, tmp_path)

    assert (finding.level, folder) == (Level.WARN, None)
    assert "hf download nobody/has-this-model" in finding.fix


def test_a_model_that_does_not_fit_fails_whole_and_is_a_warning_in_parts(smollm2, tmp_path):
    tiny = LocalSettings(device="cpu", max_memory_gb=0.05)
    whole = load_recipe(recipe_for(tmp_path, smollm2)).recipe
    parts = load_recipe(recipe_for(tmp_path, smollm2, potluck="{stages: 4}")).recipe

    assert model.room(whole, smollm2, tiny).level is Level.FAIL
    assert model.room(parts, smollm2, tiny).level is Level.WARN
    assert model.room(parts, smollm2, LocalSettings(device="cpu")).level is Level.OK


@pytest.mark.parametrize(
    ("version", "interfaces", "level"),
    [
        ("Linux version 6.1.0-debian", [Interface("eth0", "172.20.1.2", 20)], None),
        (WSL, [LO, Interface("eth0", "172.28.112.5", 20)], Level.WARN),
        (WSL, [LO, Interface("eth0", "192.168.1.20", 24)], Level.OK),
        (WSL, [LO, Interface("loopback0", "169.254.73.152", 32), Interface("eth0", "172.16.5.5", 24)], Level.OK),
    ],
    ids=["not WSL", "NAT", "mirrored", "mirrored in such a network"],
)
def test_wsls_nat_mode_is_known_and_the_setting_named(version, interfaces, level):
    finding = reach.wsl(version, interfaces)

    assert (finding.level if finding else None) is level
    if level is Level.WARN:
        assert "networkingMode=mirrored" in finding.fix
        assert ".wslconfig" in finding.fix


@pytest.mark.parametrize(
    ("listen", "announce", "ips", "level", "text"),
    [
        (["/ip4/0.0.0.0/tcp/4040"], [], ["192.168.1.20"], Level.OK, "behind a router"),
        (["/ip4/0.0.0.0/tcp/4040"], [], ["45.1.1.7"], Level.OK, "on the Internet at 45.1.1.7"),
        (["/ip4/127.0.0.1/tcp/4040"], [], ["192.168.1.20"], Level.WARN, "only this machine"),
        (["/ip4/0.0.0.0/tcp/4040"], [], [], Level.WARN, "in no network"),
        (["/ip4/0.0.0.0/tcp/4040"], ["/dns4/me.example/tcp/1"], [], Level.OK, "/dns4/me.example/tcp/1"),
    ],
)
def test_where_others_find_the_node_is_said(listen, announce, ips, level, text):
    finding = reach.addresses(listen, announce, [LO, *(Interface("eth0", ip, 24) for ip in ips)])

    assert finding.level is level
    assert text in finding.text
