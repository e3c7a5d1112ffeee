"""The adapters: their start, their variants, dropout, and how gradients are added."""

import hashlib
import os
import subprocess
import sys

import pytest
import torch
from reference import assert_same_gradients, loaded, reference_loss, reference_model, spec
from tiny_models import save_tiny

from node.core.errors import UnsupportedModel
from node.core.types import LayerRange
from node.model.lora import initial_a
from node.model.shard import load_shard
from node.model.spec import LoraSpec

START = """
import hashlib, sys, torch
from node.core.types import LayerRange
from node.model.shard import load_shard
from node.model.spec import LoadSpec, LoraSpec
shard = load_shard(sys.argv[1], LoadSpec(lora=LoraSpec(r=4, alpha=8.0, use_dora=True), seed=3, quantization="none"))
digest = hashlib.sha256()
for name, parameter in shard.lora.items():
    digest.update(name.encode() + parameter.detach().numpy().tobytes())
print(torch.backends.cpu.get_cpu_capability(), digest.hexdigest())
"""


def test_shard_starts_with_the_adapter_of_the_whole_model(tiny):
    whole = load_shard(tiny("llama"), spec())
    part = load_shard(tiny("llama"), spec(layers=LayerRange(2, 4), ends=False))

    assert set(part.lora) == {name for name in whole.lora if name.split(".")[2] in "23"}
    for name, parameter in part.lora.items():
        assert torch.equal(parameter, whole.lora[name]), name


def test_adapter_starts_with_the_same_bits_on_every_simd_path(tiny):
    printed = {}
    for capability in ("default", "avx2"):
        run = subprocess.run(
            [sys.executable, "-c", START.replace("sys.argv[1]", f"__import__('pathlib').Path({str(tiny('llama'))!r})")],
            env={**os.environ, "ATEN_CPU_CAPABILITY": capability},
            capture_output=True,
            text=True,
            check=True,
        )
        path, digest = run.stdout.split()
        printed[path] = digest

    assert len(printed) == 2, f"both runs took the path {list(printed)}"
    assert len(set(printed.values())) == 1


def test_start_depends_on_seed_and_name_and_stays_as_it_is():
    a = initial_a(7, "model.layers.0.self_attn.q_proj", 8, 64)

    assert not torch.equal(a, initial_a(8, "model.layers.0.self_attn.q_proj", 8, 64))
    assert not torch.equal(a, initial_a(7, "model.layers.1.self_attn.q_proj", 8, 64))
    # Nodes of different releases must start alike, so the bits are part of the protocol.
    assert hashlib.sha256(a.numpy().tobytes()).hexdigest() == (
        "2cff33415963c550cd8cc24f96c421f62cb8ae77bddce8ff2bbfe217a85d27ee"
    )


def test_start_has_the_spread_of_peft():
    a = initial_a(1, "x", 256, 400)

    assert float(a.abs().max()) <= 1 / 20
    assert float(a.std()) == pytest.approx(1 / 20 / 3**0.5, rel=0.01)


def test_fresh_adapter_changes_nothing_and_learns(tiny, batch):
    shard = load_shard(tiny("qwen3"), spec())

    before = shard.evaluate(batch)
    losses = []
    for _ in range(8):
        losses.append(shard.train_microbatch(batch, dropout_seed=0))
        with torch.no_grad():
            for parameter in shard.lora.values():
                parameter -= 2e-3 * parameter.grad.sign()
                parameter.grad.zero_()

    assert before == shard.evaluate(batch, adapter=False) == losses[0]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("lora", [
    LoraSpec(r=4, alpha=8.0, use_rslora=True),
    LoraSpec(r=4, alpha=8.0, use_dora=True),
    LoraSpec(r=4, alpha=8.0, use_dora=True, use_rslora=True),
    LoraSpec(r=4, alpha=8.0, targets=("q_proj", "down_proj")),
], ids=["rslora", "dora", "rsdora", "list"])  # fmt: skip
def test_variants_have_the_loss_and_gradients_of_peft(tiny, documents, batch, lora, quantization):
    shard = loaded(tiny("qwen2"), lora=lora, quantization=quantization)
    model = reference_model(tiny("qwen2"), shard, quantization=quantization, lora=lora)

    loss = shard.train_microbatch(batch, dropout_seed=0)
    expected = reference_loss(model, documents)
    expected.backward()

    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    assert_same_gradients(shard, model)


def test_module_list_limits_the_adapters_and_an_unknown_name_is_refused(tiny):
    shard = load_shard(tiny("llama"), spec(lora=LoraSpec(r=4, alpha=8.0, targets=("v_proj",))))

    assert list(shard.lora)[:2] == [
        "model.layers.0.self_attn.v_proj.lora_A.weight",
        "model.layers.0.self_attn.v_proj.lora_B.weight",
    ]
    assert len(shard.lora) == 12
    with pytest.raises(UnsupportedModel, match="c_attn") as refused:
        load_shard(tiny("llama"), spec(lora=LoraSpec(r=4, alpha=8.0, targets=("c_attn",))))
    assert "q_proj" in refused.value.hint


def test_gradients_are_added_in_place_to_views_of_one_buffer(tiny, batch):
    plain, flat = loaded(tiny("llama")), loaded(tiny("llama"))
    size = sum(parameter.numel() for parameter in flat.lora.values())
    values, gradients = torch.empty(size), torch.zeros(size)
    offset = 0
    for parameter in flat.lora.values():
        view = slice(offset, offset + parameter.numel())
        values[view] = parameter.detach().reshape(-1)
        parameter.data = values[view].view(parameter.shape)
        parameter.grad = gradients[view].view(parameter.shape)
        offset += parameter.numel()

    for _ in range(2):
        plain.train_microbatch(batch, dropout_seed=0)
        flat.train_microbatch(batch, dropout_seed=0)

    assert torch.equal(gradients, torch.cat([parameter.grad.reshape(-1) for parameter in plain.lora.values()]))
    values.zero_()
    assert flat.evaluate(batch) == flat.evaluate(batch, adapter=False) != plain.evaluate(batch)


DROPPED = LoraSpec(r=4, alpha=8.0, dropout=0.25)


@pytest.mark.parametrize("lora", [DROPPED, LoraSpec(r=4, alpha=8.0, dropout=0.25, use_dora=True)], ids=["lora", "dora"])
def test_dropout_repeats_with_its_seed_and_is_off_in_evaluation(tiny, batch, lora):
    shard, plain = (
        loaded(tiny("llama"), lora=lora),
        loaded(tiny("llama"), lora=LoraSpec(4, 8.0, use_dora=lora.use_dora)),
    )

    losses = [shard.train_microbatch(batch, dropout_seed=seed) for seed in (1, 1, 2)]

    assert losses[0] == losses[1] != losses[2]
    assert shard.evaluate(batch) == plain.evaluate(batch)
    assert losses[0] != plain.train_microbatch(batch, dropout_seed=1)


def test_dropout_zeroes_its_share_keeps_the_mean_and_differs_between_layers(tmp_path):
    folder = save_tiny(tmp_path / "one", model_type="llama", num_hidden_layers=1)
    shard = load_shard(folder, spec(lora=LoraSpec(r=64, alpha=64.0, dropout=0.25)))
    first, second = (m for n, m in shard.linears.items() if n.endswith(("k_proj", "v_proj")))
    for layer in (first, second):  # A is the identity and B sums, so the adapter's part is the sum of what is kept
        layer.lora_a.data = torch.eye(64)
        layer.lora_b.data = torch.eye(32, 64)
    ones = torch.ones(500, 64)
    shard.step.dropout_seed = 9

    kept = [layer(ones) - layer_without(shard, layer, ones) for layer in (first, second)]

    for values in kept:
        dropped = (values < 1e-3).float().mean()
        assert float(dropped) == pytest.approx(0.25, abs=0.02)
        assert float(values.detach().mean()) == pytest.approx(1.0, abs=0.03)
        assert torch.all((values < 1e-3) | ((values - 4 / 3).abs() < 1e-3))
    assert not torch.equal(kept[0] < 1e-3, kept[1] < 1e-3)


def layer_without(shard, layer, x):
    shard.step.adapter = False
    y = layer(x)
    shard.step.adapter = True
    return y


def test_dropout_gradient_is_that_of_the_masked_forward(tiny, batch):
    shard = loaded(tiny("llama"), lora=DROPPED)
    shard.train_microbatch(batch, dropout_seed=4)
    name = "model.layers.2.mlp.up_proj.lora_A.weight"
    parameter = shard.lora[name]
    direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    slope = float((parameter.grad * direction).sum())
    gradient_free = []

    for step in (+1e-3, -1e-3):
        parameter.data += step * direction
        gradient_free.append(shard.train_microbatch(batch, dropout_seed=4))
        parameter.data -= step * direction

    assert (gradient_free[0] - gradient_free[1]) / 2e-3 == pytest.approx(slope, rel=2e-2)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3_text"])
def test_shard_without_layers_embeds_and_judges_like_the_whole_model(tiny, batch, family):
    whole = load_shard(tiny(family), spec())
    ends = load_shard(tiny(family), spec(holds_layers=False, lora=LoraSpec(r=4, alpha=8.0, targets=("q_proj",))))
    ids, labels = whole.tensors(batch)
    hidden = whole.forward(whole.embed(ids), batch.lengths).detach()

    assert ends.layers is None
    assert ends.lora == {}
    assert torch.equal(ends.embed(ids), whole.embed(ids))
    assert torch.equal(ends.forward(hidden, batch.lengths), hidden)
    assert torch.equal(ends.loss_sum(hidden, labels, batch.lengths), whole.loss_sum(hidden, labels, batch.lengths))
