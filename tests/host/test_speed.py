import pytest
from test_shapes import LLAMA_8B

from node.host.memory import AdapterShape
from node.host.shapes import ModelShape
from node.host.speed import flop_per_token, tokens_per_s


def test_a_token_of_an_8b_model_costs_30_or_45_gflop():
    shape, adapter = ModelShape.of(LLAMA_8B), AdapterShape(rank=16)

    plain = flop_per_token(shape, adapter, gradient_checkpointing=False)
    checkpointed = flop_per_token(shape, adapter, gradient_checkpointing=True)

    assert plain / 1e9 == pytest.approx(30, rel=0.02)
    assert checkpointed / 1e9 == pytest.approx(45, rel=0.05)


def test_the_estimate_follows_the_size_of_the_model():
    adapter = AdapterShape(rank=16)
    speeds = [
        tokens_per_s(
            ModelShape.of(LLAMA_8B | {"num_hidden_layers": layers, "vocab_size": 8}),
            adapter,
            tokens=16,
            device="cpu",
            compute="bfloat16",
            gradient_checkpointing=False,
        )
        for layers in (4, 32)
    ]

    assert 4 < speeds[0] / speeds[1] < 16  # 8 but for what else the machine does meanwhile
