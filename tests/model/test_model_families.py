"""Packed documents, cut models and the reference, for every supported family."""

import pytest
import torch
from reference import assert_same_gradients, loaded, reference_loss, reference_model
from tiny_models import FAMILIES

from node.core.types import LayerRange
from node.model.families import SUPPORTED
from node.model.spec import LoraSpec


def test_every_supported_family_is_tested():
    assert {settings["model_type"] for settings in FAMILIES.values()} == set(SUPPORTED)


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_documents_give_the_logits_of_each_alone(tiny, documents, batch, family):
    shard = loaded(tiny(family))
    packed = shard.logits(torch.tensor(batch.input_ids), batch.lengths)

    alone = [shard.logits(torch.tensor(document.input_ids), [len(document)]) for document in documents]

    torch.testing.assert_close(packed, torch.cat(alone), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_those_of_transformers_and_peft(tiny, documents, batch, family):
    shard = loaded(tiny(family))
    model = reference_model(tiny(family), shard)

    loss = shard.train_microbatch(batch, dropout_seed=0)
    expected = reference_loss(model, documents)
    expected.backward()

    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    assert_same_gradients(shard, model)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "phi3"])
def test_nf4_loss_and_gradients_are_those_of_bitsandbytes_and_peft(tiny, documents, batch, family):
    shard = loaded(tiny(family), quantization="nf4")
    model = reference_model(tiny(family), shard, quantization="nf4")

    loss = shard.train_microbatch(batch, dropout_seed=0)
    expected = reference_loss(model, documents)
    expected.backward()

    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    assert_same_gradients(shard, model)


@pytest.mark.parametrize("family", FAMILIES)
def test_three_shards_in_a_row_equal_the_whole_model(tiny, batch, family):
    whole = loaded(tiny(family))
    expected = whole.train_microbatch(batch, dropout_seed=0)
    ranges = [LayerRange(0, 2), LayerRange(2, 5), LayerRange(5, 6)]
    parts = [loaded(tiny(family), layers=layers, ends=False) for layers in ranges]
    labels = torch.tensor(batch.labels.tolist())

    hidden = [whole.embed(torch.tensor(batch.input_ids))]
    outputs = []
    for part in parts:
        outputs.append(part.forward(hidden[-1], batch.lengths))
        hidden.append(outputs[-1].detach().requires_grad_())
    loss = whole.loss_sum(hidden[-1], labels, batch.lengths)
    loss.backward()
    for index in (2, 1, 0):
        outputs[index].backward(hidden[index + 1].grad)

    assert float(loss.detach()) == pytest.approx(expected, rel=1e-6)
    held = {name: parameter for part in parts for name, parameter in part.lora.items()}
    assert sorted(held) == list(whole.lora)
    for name, parameter in whole.lora.items():
        assert torch.allclose(held[name].grad, parameter.grad, rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointing_changes_no_gradient(tiny, batch, family):
    plain = loaded(tiny(family), lora=LoraSpec(r=4, alpha=8.0, dropout=0.3))
    checkpointed = loaded(tiny(family), lora=LoraSpec(r=4, alpha=8.0, dropout=0.3), gradient_checkpointing=True)

    losses = [shard.train_microbatch(batch, dropout_seed=11) for shard in (plain, checkpointed)]

    assert losses[0] == losses[1]
    for name, parameter in plain.lora.items():
        assert torch.equal(parameter.grad, checkpointed.lora[name].grad), name
