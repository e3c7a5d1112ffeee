import os

import psutil
import pytest
import torch

from node.core.errors import BackendUnavailable, ConfigError
from node.host.devices import _cgroup_cores, _cgroup_memory, describe, num_usable_cores, pick_device, suggest_threads


def test_auto_takes_a_gpu_if_there_is_one():
    assert pick_device("auto") == ("cuda:0" if torch.cuda.is_available() else "cpu")
    assert pick_device("cpu") == "cpu"


@pytest.mark.parametrize("name", ["", "gpu", "cuda:", "cuda:-1", "cuda:abc", "CPU", "cuda:1000", "cuda:0\n"])
def test_a_name_that_is_none_is_refused_with_the_names_that_are(name):
    with pytest.raises(ConfigError) as caught:
        pick_device(name)

    assert "cuda:<index>" in caught.value.hint


def test_a_device_that_is_not_there_is_refused_with_what_there_is():
    with pytest.raises(BackendUnavailable, match="cuda:99"):
        pick_device("cuda:99")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_the_error_says_why_and_offers_the_cpu():
    with pytest.raises(BackendUnavailable, match=r"without CUDA|no driver") as caught:
        pick_device("cuda")

    assert "--device cpu" in caught.value.hint


def test_the_cpu_is_described_with_memory_that_can_be_true():
    device = describe("cpu")

    assert device.label
    assert 0 < device.free_bytes <= device.total_bytes <= psutil.virtual_memory().total


def test_cores_and_threads_are_those_that_this_process_may_use():
    available = os.sched_getaffinity(0)
    assert 1 <= num_usable_cores() <= len(available)

    os.sched_setaffinity(0, {min(available)})
    try:
        assert num_usable_cores() == suggest_threads() == 1
    finally:
        os.sched_setaffinity(0, available)
    assert suggest_threads(1000) == 1


def test_a_containers_limits_are_read(tmp_path):
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 200000\nodd line here\n")
    (tmp_path / "cpu.max").write_text("150000 100000\n")

    assert _cgroup_memory(tmp_path) == (1_000_000, 500_000)
    assert _cgroup_cores(tmp_path) == 1.5


def test_a_container_without_limits_or_with_nonsense_has_none(tmp_path):
    assert _cgroup_memory(tmp_path / "absent")[0] == 1 << 60
    assert _cgroup_cores(tmp_path / "absent") is None
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert _cgroup_memory(tmp_path)[0] == 1 << 60
    assert _cgroup_cores(tmp_path) is None
    (tmp_path / "cpu.max").write_text("1 0 0\n\0")
    assert _cgroup_cores(tmp_path) is None
