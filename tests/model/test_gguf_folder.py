"""A GGUF file is converted tensor by tensor, to the bits that transformers' own loader gives."""

import struct

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import load_file
from tiny_models import COMMON
from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig
from transformers.modeling_gguf_pytorch_utils import TensorProcessor, get_gguf_hf_weights_map

from node.core.errors import OutOfDisk, UnsupportedModel
from node.core.types import LayerRange
from node.model import gguf_folder
from node.model.gguf_folder import convert_gguf
from node.model.gguf_tensors import read_table
from node.model.shard import load_shard
from node.model.source import load_tokenizer, model_digest
from node.model.spec import LoadSpec, LoraSpec

KINDS = [Kind.Q8_0, Kind.Q4_0, Kind.Q5_0, Kind.BF16, Kind.F16, Kind.F32]
ARCHITECTURES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
}
TIED = {"tie_word_embeddings": True, "left_out": ["lm_head.weight"]}


def write_gguf(path, family, *, left_out=(), kinds=KINDS, **changes):
    """Write a random model of a family with matrices of all kinds, as llama.cpp would."""
    settings = {**COMMON, "tie_word_embeddings": False, **changes}
    config = AutoConfig.for_model(family, **settings)
    architecture = ARCHITECTURES[family]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    names = {theirs: ours for ours, theirs in get_gguf_hf_weights_map(model, TensorProcessor()).items()}
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_context_length(settings["max_position_embeddings"])
    writer.add_embedding_length(settings["hidden_size"])
    writer.add_block_count(settings["num_hidden_layers"])
    writer.add_feed_forward_length(settings["intermediate_size"])
    writer.add_head_count(settings["num_attention_heads"])
    writer.add_head_count_kv(settings["num_key_value_heads"])
    writer.add_key_length(settings["head_dim"])
    writer.add_rope_dimension_count(settings["head_dim"])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(settings["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["t", "1", *(f"t{index}" for index in range(settings["vocab_size"] - 2))])
    writer.add_token_merges(["t 1"])
    writer.add_eos_token_id(2)
    generator = np.random.default_rng(0)
    parameters = [(name, p) for name, p in model.named_parameters() if name not in left_out]
    for position, (name, parameter) in enumerate(parameters):
        values = generator.standard_normal(parameter.shape, dtype=np.float32)
        kind = Kind.F32 if values.ndim == 1 else kinds[position % len(kinds)]
        writer.add_tensor(names[name], gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


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
