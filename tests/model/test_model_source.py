"""Where base models come from, and what identifies them."""

import json
import os
import shutil
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from node.core.errors import UnsupportedModel, WeightsMissing
from node.model.families import read_config
from node.model.gguf_folder import convert_gguf
from node.model.source import digest_of, load_tokenizer, maths_of, model_digest, resolve_base_model, tensor_digests


@pytest.fixture
def model(tiny, tmp_path):
    """A copy of a tiny model that a test may change."""
    return shutil.copytree(tiny("llama"), tmp_path / "copy")


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_folder_is_its_own_base_model(model, tmp_path):
    assert resolve_base_model(str(model), cache=tmp_path / "cache") == model


def test_digest_ignores_the_layout_of_files_and_what_changes_no_number(model, tmp_path):
    before = model_digest(model, cache=tmp_path / "cache")
    tensors = load_file(model / "model.safetensors")
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: tensors[name] for name in held}, model / file, metadata={"x": "y"})
    (model / "model.safetensors").unlink()
    index = {"weight_map": {name: file for file, held in parts.items() for name in held}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    edit(model / "config.json", transformers_version="9.9", use_cache=False, _name_or_path="/somewhere")

    assert model_digest(model, cache=tmp_path / "cache") == before


@pytest.mark.parametrize("change", ["value", "name", "shape", "config"])
def test_digest_changes_with_everything_that_changes_a_number(model, tmp_path, change):
    before = model_digest(model, cache=tmp_path / "cache")
    tensors = load_file(model / "model.safetensors")
    name = "model.layers.3.mlp.up_proj.weight"
    if change == "value":
        tensors[name].view(torch.int32)[5, 5] ^= 1
    elif change == "name":
        tensors[name], tensors["model.layers.2.mlp.up_proj.weight"] = (
            tensors["model.layers.2.mlp.up_proj.weight"],
            tensors[name],
        )
    elif change == "shape":
        tensors[name] = tensors[name].T.contiguous().reshape(64, 128)
    else:
        edit(model / "config.json", rms_norm_eps=1e-3)
    save_file(tensors, model / "model.safetensors")

    assert model_digest(model, cache=tmp_path / "cache") != before


def test_digest_is_made_of_the_digests_of_the_tensors(model, tmp_path):
    digests = tensor_digests(model)

    assert list(digests) == sorted(load_file(model / "model.safetensors"))
    assert digest_of(maths_of(read_config(model)), digests) == model_digest(model, cache=tmp_path / "cache")


def test_known_digest_reads_no_weights(model, tmp_path):
    before = model_digest(model, cache=tmp_path / "cache")
    weights = model / "model.safetensors"
    stat = weights.stat()
    with weights.open("r+b") as file:
        file.seek(-1000, os.SEEK_END)
        file.write(bytes(1000))

    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    remembered = model_digest(model, cache=tmp_path / "cache")
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))

    assert remembered == before
    assert model_digest(model, cache=tmp_path / "cache") != before


@pytest.mark.parametrize("size", [0, 4, 8, 200, 100_000])
def test_weights_cut_short_are_refused_by_name(model, tmp_path, size):
    with (model / "model.safetensors").open("r+b") as file:
        file.truncate(size)

    with pytest.raises(WeightsMissing, match=r"model\.safetensors"):
        model_digest(model, cache=tmp_path / "cache")


def test_pickled_weights_are_refused(model, tmp_path):
    (model / "model.safetensors").rename(model / "pytorch_model.bin")

    with pytest.raises(WeightsMissing, match=r"pytorch_model\.bin.*can run code"):
        resolve_base_model(str(model), cache=tmp_path)


def test_file_that_the_index_names_and_is_not_there_is_named(model, tmp_path):
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "part-2.safetensors"}}))

    with pytest.raises(WeightsMissing, match=r"part-2\.safetensors"):
        resolve_base_model(str(model), cache=tmp_path)


def test_index_cannot_lead_out_of_the_folder(model, tmp_path):
    shutil.copy(model / "model.safetensors", tmp_path / "outside.safetensors")
    (model / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"lm_head.weight": "../outside.safetensors"}})
    )

    with pytest.raises(WeightsMissing, match="lacks outside"):
        resolve_base_model(str(model), cache=tmp_path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "gpt2"}, "gpt2"),
        ({"model_type": None}, "None"),
        ({"model_type": "gemma3"}, "images"),
        ({"quantization_config": {"quant_method": "gptq"}}, "already quantised"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "own Python code"),
    ],
)
def test_model_that_cannot_be_trained_is_refused_with_a_hint(model, tmp_path, changes, says):
    edit(model / "config.json", **changes)

    with pytest.raises(UnsupportedModel, match=says) as refused:
        resolve_base_model(str(model), cache=tmp_path)

    assert refused.value.hint


@pytest.mark.parametrize("name", ["/no/such/folder", "./missing", "missing.gguf", "a/b/c", "..", "x y"])
def test_name_that_is_nowhere_is_refused(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(WeightsMissing):
        resolve_base_model(name, cache=tmp_path / "cache")


def test_file_of_another_kind_is_refused(model, tmp_path):
    with pytest.raises(UnsupportedModel, match=r"not a \.gguf file"):
        resolve_base_model(str(model / "model.safetensors"), cache=tmp_path)


def test_broken_gguf_is_refused_and_leaves_nothing(tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))

    with pytest.raises(UnsupportedModel, match=r"broken\.gguf"):
        convert_gguf(broken, tmp_path / "cache" / "folder")

    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").iterdir())


HUB = """
import pathlib, socket, sys
def refuse(*args, **kwargs): raise AssertionError("the network was touched")
socket.socket.connect = refuse
socket.getaddrinfo = refuse
from node.model.source import resolve_base_model
print(resolve_base_model("someone/tiny", cache=pathlib.Path(sys.argv[1])))
"""


def run_from_hub(cache, hub, **environment):
    return subprocess.run(
        [sys.executable, "-c", HUB, str(cache)],
        env={**os.environ, "HF_HUB_CACHE": str(hub), "HF_HUB_OFFLINE": "0", **environment},
        capture_output=True,
        text=True,
    )


def test_cached_hub_model_never_touches_the_network(model, tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--someone--tiny"
    shutil.copytree(model, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)

    run = run_from_hub(tmp_path, tmp_path / "hub")

    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == str(repository / "snapshots" / commit)


def test_hub_model_that_is_not_cached_is_refused_offline(tmp_path):
    run = run_from_hub(tmp_path, tmp_path / "hub", HF_HUB_OFFLINE="1")

    assert "WeightsMissing" in run.stderr.splitlines()[-1]
    assert "touched" not in run.stderr


def test_gguf_is_converted_once_with_its_tokenizer(smollm2, monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", None)

    tokenizer = load_tokenizer(smollm2)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Grüße, 世界!"}], tokenize=False)

    assert len(tokenizer) == 49152
    assert "<|im_start|>user\nGrüße, 世界!<|im_end|>" in text
    assert (
        tokenizer.decode(tokenizer("Grüße, 世界! def f(): return 1")["input_ids"]) == "Grüße, 世界! def f(): return 1"
    )
    assert read_config(smollm2)["model_type"] == "llama"
    assert not list(smollm2.glob("*.bin"))


def test_folder_without_tokenizer_is_refused(model):
    with pytest.raises(WeightsMissing, match="tokenizer"):
        load_tokenizer(model)
