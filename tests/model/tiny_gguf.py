"""Random GGUF models of a few kilobytes, written as llama.cpp would."""

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from model.tiny_models import COMMON
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_gguf_pytorch_utils import TensorProcessor, get_gguf_hf_weights_map

KINDS = [Kind.Q8_0, Kind.Q4_0, Kind.Q5_0, Kind.BF16, Kind.F16, Kind.F32]
ARCHITECTURES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
}


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
