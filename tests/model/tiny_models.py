"""Tiny random models of every supported family."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

COMMON = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

WINDOWED = ["sliding_attention", "full_attention"] * 3

FAMILIES = {
    "llama": {"model_type": "llama"},
    "llama3-rope": {
        "model_type": "llama",
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "mistral": {"model_type": "mistral", "sliding_window": 8},
    "qwen2": {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8, "layer_types": WINDOWED},
    "qwen3": {"model_type": "qwen3"},
    "gemma2": {
        "model_type": "gemma2",
        "sliding_window": 8,
        "query_pre_attn_scalar": 16,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0,
    },
    "gemma3_text": {
        "model_type": "gemma3_text",
        "sliding_window": 8,
        "query_pre_attn_scalar": 16,
        "layer_types": WINDOWED,
    },
    "phi3": {"model_type": "phi3", "sliding_window": 8},
    "smollm3": {"model_type": "smollm3", "no_rope_layers": [1, 1, 0, 1, 1, 0], "use_sliding_window": False},
    "olmo2": {"model_type": "olmo2"},
}
"""The families of `node.model.families.SUPPORTED`, with windows of 8 tokens where the family has any."""


def save_tiny(folder: Path, **changes) -> Path:
    """Save a random model with the given configuration to `folder`."""
    settings = {**COMMON, **changes}
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:  # norms and biases start at constants, which would hide a mistake with them
                parameter.add_(torch.randn_like(parameter) * (0.5 if name.endswith("bias") else 0.1))
    model.save_pretrained(folder)
    return folder
