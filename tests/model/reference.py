"""The reference that our shards are compared with: transformers' own model with peft's adapter."""

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from node.model.shard import load_shard
from node.model.spec import LoadSpec, LoraSpec

LORA = LoraSpec(r=4, alpha=8.0)


def spec(**changes) -> LoadSpec:
    return LoadSpec(**{"lora": LORA, "quantization": "none", "compute": "float32", "seed": 3, **changes})


def loaded(folder, **changes):
    """Load a shard whose adapters do something."""
    shard = load_shard(folder, spec(**changes))
    for name, parameter in shard.lora.items():
        if "lora_B" in name:
            torch.manual_seed(hash_of(name))
            torch.nn.init.normal_(parameter.data, std=0.1)
    return shard


def hash_of(name: str) -> int:
    return sum(map(ord, name)) * 7919 + len(name)


def reference_model(folder, shard, quantization="none", lora=LORA) -> PeftModel:
    """Return transformers' and peft's model with the same adapter as `shard`."""
    settings = {}
    if quantization == "nf4":
        settings["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )
        settings["device_map"] = {"": "cpu"}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", **settings)
    model.config.use_cache = False
    targets = sorted({name.split(".")[4] for name in shard.lora})
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        target_modules=targets,
    )
    peft_model = get_peft_model(model, config)
    names = dict(peft_model.named_parameters())
    with torch.no_grad():
        for name, value in shard.lora.items():
            names[peft_name(name)].copy_(value)
    return peft_model.train()


def peft_name(name: str) -> str:
    name = name.replace("lora_A.weight", "lora_A.default.weight").replace("lora_B.weight", "lora_B.default.weight")
    return "base_model.model." + name.replace("lora_magnitude_vector", "lora_magnitude_vector.default.weight")


def reference_loss(model, documents) -> torch.Tensor:
    """Return the summed loss of the reference, each document alone."""
    total = torch.zeros(())
    for document in documents:
        logits = model(input_ids=torch.tensor([document.input_ids.tolist()]), use_cache=False).logits[0]
        labels = torch.tensor(document.labels.tolist())
        if len(labels) > 1:
            total = total + torch.nn.functional.cross_entropy(
                logits[:-1], labels[1:], reduction="sum", ignore_index=-100
            )
    return total


def assert_same_gradients(shard, model, rtol=2e-4):
    names = dict(model.named_parameters())
    for name, parameter in shard.lora.items():
        expected = names[peft_name(name)].grad
        scale = expected.abs().max()
        assert scale > 0, f"the reference has no gradient for {name}"
        assert torch.allclose(parameter.grad, expected, rtol=rtol, atol=float(scale) * rtol), name
