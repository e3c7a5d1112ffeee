"""A GGUF file is converted tensor by tensor, to the bits that transformers' own loader gives."""

import struct

import pytest
import torch
from model.tiny_gguf import write_gguf
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GgufConfig

from node.core.errors import OutOfDisk, UnsupportedModel
from node.core.types import LayerRange
from node.model import gguf_folder
from node.model.gguf_folder import convert_gguf
from node.model.gguf_tensors import read_table
from node.model.shard import load_shard
from node.model.source import load_tokenizer, model_digest
from node.model.spec import LoadSpec, LoraSpec

TIED = {"tie_word_embeddings": True, "left_out": ["lm_head.weight"]}


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {}),
        ("llama", TIED),
        ("qwen2", {}),
        ("qwen3", {"head_dim": 128}),  # transformers does not take it from the file
        ("gemma2", TIED),
        ("gemma3_text", TIED),
    ],
)
def test_conversion_gives_the_bits_of_transformers_own(tmp_path, family, changes, monkeypatch):
    path = write_gguf(tmp_path / "tiny.gguf", family, **changes)
    expected = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    monkeypatch.setattr(gguf_folder, "_BLOCK_VALUES", 1000)  # embedding and head come in many blocks

    convert_gguf(path, tmp_path / "folder")

    found = load_file(tmp_path / "folder" / "model.safetensors")
    parameters = dict(expected.named_parameters())
    assert found.keys() == parameters.keys()
    assert all(torch.equal(found[name], parameter) for name, parameter in parameters.items())
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "folder", dtype=torch.bfloat16)
    ids = torch.tensor([[5, 7, 9, 11]])
    assert torch.equal(again(ids).logits, expected(ids).logits)
    assert load_tokenizer(tmp_path / "folder").get_vocab()["t7"] == 9


def test_a_part_of_a_converted_model_is_loaded_alone(tmp_path):
    convert_gguf(write_gguf(tmp_path / "tiny.gguf", "llama"), tmp_path / "folder")

    shard = load_shard(tmp_path / "folder", LoadSpec(LoraSpec(4, 8.0), layers=LayerRange(2, 4), ends=False))

    assert {name.split(".")[2] for name in shard.lora} == {"2", "3"}


def test_the_demo_model_keeps_its_digest(smollm2, tmp_path):
    digest = "22348cbddbd4bdfaa7dc559c6f2e9ba896d12c602cce9ec2c225c6cf5bb2e386"

    assert model_digest(smollm2, cache=tmp_path) == digest


def test_a_file_that_lacks_a_tensor_is_refused_by_name(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", "llama", left_out=["model.layers.3.mlp.up_proj.weight"])

    with pytest.raises(UnsupportedModel, match=r"no tensor for model\.layers\.3\.mlp\.up_proj\.weight"):
        convert_gguf(path, tmp_path / "folder")

    assert not list(tmp_path.glob("*folder*"))


def test_a_tensor_of_another_shape_than_the_file_says_is_refused(tmp_path, monkeypatch):
    path = write_gguf(tmp_path / "tiny.gguf", "llama")
    data = path.read_bytes()
    key = b"llama.feed_forward_length" + struct.pack("<I", 4)
    assert key in data
    path.write_bytes(data.replace(key + struct.pack("<I", 128), key + struct.pack("<I", 96)))

    with pytest.raises(UnsupportedModel, match="shape"):
        convert_gguf(path, tmp_path / "folder")


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.999])
def test_a_file_that_is_cut_short_is_refused_and_leaves_nothing(tmp_path, share):
    path = write_gguf(tmp_path / "tiny.gguf", "llama")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])

    with pytest.raises(UnsupportedModel, match=r"tiny\.gguf"):
        convert_gguf(path, tmp_path / "folder")

    assert not list(tmp_path.glob("*folder*"))


@pytest.mark.parametrize(
    ("head", "says"),
    [
        (b"GGML" + bytes(40), "begin"),
        (b"GGUF" + struct.pack("<IQQ", 9, 0, 0), "version 9"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "tensors"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 60), "a name of"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 8, 1 << 60), "array of"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQQ", 3, 0, 1, 1, b"k", 9, 8, 1, 1 << 60), "cut short"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "architecture"),
    ],
)
def test_lengths_that_cannot_be_are_refused_before_anything_is_allocated(tmp_path, head, says):
    path = tmp_path / "bad.gguf"
    path.write_bytes(head + bytes(64))

    with pytest.raises(ValueError, match=says):
        read_table(path)


def test_a_full_disk_is_named_before_anything_is_written(tmp_path, monkeypatch):
    path = write_gguf(tmp_path / "tiny.gguf", "llama")
    monkeypatch.setattr(gguf_folder, "_SPARE_BYTES", 1 << 60)

    with pytest.raises(OutOfDisk, match="MiB are free"):
        convert_gguf(path, tmp_path / "folder")
