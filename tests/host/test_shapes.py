import pytest
import transformers

from node.core.errors import UnsupportedModel
from node.host.memory import AdapterShape
from node.host.shapes import FAMILIES, ModelShape
from node.model.families import SUPPORTED

CONFIGS = {
    "gemma2": transformers.Gemma2Config,
    "gemma3_text": transformers.Gemma3TextConfig,
    "llama": transformers.LlamaConfig,
    "mistral": transformers.MistralConfig,
    "olmo2": transformers.Olmo2Config,
    "phi3": transformers.Phi3Config,
    "qwen2": transformers.Qwen2Config,
    "qwen3": transformers.Qwen3Config,
    "smollm3": transformers.SmolLM3Config,
}
LLAMA_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}
LLAMA_70B = LLAMA_8B | {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
}


def test_all_families_that_can_be_trained_can_be_planned():
    assert set(FAMILIES) == set(SUPPORTED) == set(CONFIGS)


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_counts_are_those_of_transformers_models(family, biased, tied):
    import torch

    sizes = {
        "vocab_size": 101,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "tie_word_embeddings": tied,
        "pad_token_id": 0,
    }
    if family not in ("phi3", "olmo2", "qwen2", "smollm3"):
        sizes["head_dim"] = 16
    if biased:
        sizes |= {"attention_bias": True, "mlp_bias": True}
    config = CONFIGS[family](**sizes)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)

    shape = ModelShape.of(config.to_dict())

    assert shape.numel == sum(p.numel() for p in model.parameters())
    layer = {
        name.rpartition(".")[2]: (m.in_features, m.out_features, m.bias is not None)
        for name, m in model.model.layers[0].named_modules()
        if isinstance(m, torch.nn.Linear)
    }
    assert {x.name: (x.inputs, x.outputs, x.bias) for x in shape.linears} == layer


@pytest.mark.parametrize("family", CONFIGS)
def test_a_configuration_with_the_required_keys_alone_means_the_familys_defaults(family):
    full = CONFIGS[family]().to_dict()
    required = ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")

    short = ModelShape.of({key: full[key] for key in (*required, "vocab_size")})

    assert short == ModelShape.of(full)


@pytest.mark.parametrize(
    ("config", "millions", "adapter_millions"), [(LLAMA_8B, 8030.26, 41.94), (LLAMA_70B, 70553.7, 207.1)]
)
def test_llamas_are_as_large_as_their_names_say(config, millions, adapter_millions):
    shape = ModelShape.of(config)

    assert shape.numel / 1e6 == pytest.approx(millions, rel=1e-5)
    trainable = shape.num_layers * AdapterShape(rank=16).layer_numel(shape)
    assert trainable / 1e6 == pytest.approx(adapter_millions, rel=1e-3)


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": None},
        {"hidden_size": 0},
        {"hidden_size": "4096"},
        {"num_hidden_layers": 10**9},
        {"vocab_size": True},
        {"num_attention_heads": -1},
        {"model_type": "mamba"},
        {"model_type": None},
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(change):
    with pytest.raises(UnsupportedModel):
        ModelShape.of(LLAMA_8B | change)
