"""Silent traps of the libraries below, each with the test that would tell."""

import pytest
import torch
from reference import loaded
from tiny_models import FAMILIES, save_tiny
from transformers import AutoModelForCausalLM

from node.core.errors import UnsupportedModel
from node.core.types import Document, LayerRange, Microbatch
from node.model.build import build
from node.model.quantization import Nf4Weight
from node.model.spec import LoadSpec, LoraSpec


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_evaluation_leaves_the_next_gradients_as_they_were(tiny, batch, compute):
    # bitsandbytes' own linear layer repacks its weights in a forward without gradients on CPUs with AVX512-BF16.
    shard = loaded(tiny("llama"), quantization="nf4", compute=compute)
    gradients = []

    for _ in range(2):
        shard.train_microbatch(batch, dropout_seed=0)
        gradients.append([parameter.grad.clone() for parameter in shard.lora.values()])
        for parameter in shard.lora.values():
            parameter.grad.zero_()
        shard.evaluate(batch)
        shard.evaluate(batch, adapter=False)

    assert all(torch.equal(first, second) for first, second in zip(*gradients, strict=True))
    assert any(first.abs().max() > 0 for first in gradients[0])


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3_text"])
def test_tied_head_is_the_embedding_and_nothing_is_left_on_meta(tmp_path, batch, family):
    folder = save_tiny(tmp_path / family, **{**FAMILIES[family], "tie_word_embeddings": True})
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    ids = torch.tensor(batch.input_ids)[:33]

    shard = loaded(folder)
    built = build(folder, LoadSpec(lora=LoraSpec(4, 8.0), compute="float32", quantization="none"))

    assert built.model.lm_head.weight is built.model.model.embed_tokens.weight
    tensors = [*built.model.named_parameters(remove_duplicate=False), *built.model.named_buffers()]
    assert not [name for name, tensor in tensors if tensor.is_meta]
    expected = model(ids[None].long(), use_cache=False).logits[0]
    torch.testing.assert_close(shard.logits(ids, [33], adapter=False), expected.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text"])
def test_no_document_sees_another_even_if_the_configuration_asks_for_a_cache(tmp_path, documents, family):
    # With use_cache, transformers silently stops telling packed documents apart.
    folder = save_tiny(tmp_path / family, **{**FAMILIES[family], "use_cache": True})
    shard = loaded(folder)
    other = Document(documents[3].input_ids[:9], documents[3].labels[:9])

    with_first = Microbatch.of(0, [documents[0], documents[1]])
    with_other = Microbatch.of(0, [other, documents[1]])
    logits = [shard.logits(torch.tensor(b.input_ids), b.lengths)[-7:] for b in (with_first, with_other)]

    assert torch.equal(logits[0], logits[1])


def test_document_far_longer_than_a_block_of_queries_equals_transformers(tmp_path):
    for family in ("llama", "mistral", "gemma2"):
        settings = {**FAMILIES[family], "num_hidden_layers": 2, "max_position_embeddings": 1024}
        if "sliding_window" in settings:
            settings["sliding_window"] = 300
        folder = save_tiny(tmp_path / family, **settings)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        ids = torch.randint(3, 160, (700,), generator=torch.Generator().manual_seed(1))
        expected = [model(part[None], use_cache=False).logits[0].detach() for part in (ids[:20], ids)]

        packed = loaded(folder).logits(torch.cat((ids[:20], ids)), [20, 700], adapter=False)

        torch.testing.assert_close(packed, torch.cat(expected), rtol=1e-4, atol=1e-4)


def test_labels_of_a_documents_first_token_never_count(tiny, documents):
    shard = loaded(tiny("llama"))
    labels = documents[1].labels[:]
    labels[0] = 17
    wrong = Document(documents[1].input_ids, labels)

    right_loss = shard.evaluate(Microbatch.of(0, [documents[0], documents[1]]))
    wrong_loss = shard.evaluate(Microbatch.of(0, [documents[0], wrong]))

    assert wrong_loss == right_loss


def test_layers_that_the_model_has_not_are_refused(tiny):
    with pytest.raises(UnsupportedModel, match="6 layers"):
        loaded(tiny("llama"), layers=LayerRange(4, 9))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(576, 192), (4096, 192), (33, 10)])
def test_nf4_is_bit_for_bit_that_of_bitsandbytes(dtype, shape):
    from bitsandbytes import functional as bnb

    weight = (torch.randn(shape, generator=torch.Generator().manual_seed(2)) ** 3).to(dtype)
    weight[0, :] = 0
    codes, state = bnb.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)

    ours = Nf4Weight.quantize(weight, dtype).dense()

    assert torch.equal(ours, bnb.dequantize_4bit(codes, state))
