"""Our normalisation against that of every family."""

import pytest
import torch
from tiny_models import FAMILIES
from transformers import AutoModelForCausalLM

from node.model.norms import RmsNorm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_norms_are_those_of_the_family(tiny, family, dtype):
    model = AutoModelForCausalLM.from_pretrained(tiny(family), dtype=dtype)
    theirs = [module for name, module in model.named_modules() if name.endswith("norm")]
    # One direction of a hidden state is often hundreds of times the others: rounding shows there.
    x = (torch.randn(50, 64) * 3).index_fill(1, torch.tensor([7]), 500.0)

    for norm in theirs:
        ours = RmsNorm.of(norm)
        a = x[:, : norm.weight.numel()].to(dtype).requires_grad_()
        b = a.detach().clone().requires_grad_()
        direction = torch.randn(a.shape).to(dtype)

        expected, got = norm(a), ours(b)
        expected.backward(direction)
        got.backward(direction)

        torch.testing.assert_close(got, expected, rtol=1e-6 if dtype == torch.float32 else 0, atol=0)
        scale = float(a.grad.float().abs().max())
        tolerance = scale * (1e-5 if dtype == torch.float32 else 2e-2)
        assert torch.allclose(b.grad, a.grad, rtol=0, atol=tolerance)
    assert len(theirs) >= 13


def test_norm_leaves_its_input_alone():
    norm = RmsNorm.of(type("LlamaRMSNorm", (torch.nn.RMSNorm,), {"variance_epsilon": 1e-5})(8))
    x = torch.randn(3, 8)
    before = x.clone()

    norm(x)

    assert torch.equal(x, before)
