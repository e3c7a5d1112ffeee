import os
import subprocess
import sys

import pytest
import torch

from node.training.optimizer import AdamWSettings, _power, adamw_step, clip_scale

STEPS = """
import hashlib, numpy, torch
from node.training.optimizer import AdamWSettings, adamw_step, clip_scale
torch.set_num_threads(1)
random = numpy.random.Generator(numpy.random.PCG64(7))
n = 300_001
draw = lambda scale: torch.from_numpy(random.standard_normal(n, dtype=numpy.float32) * numpy.float32(scale))
values, mean, square = draw(0.02), torch.zeros(n), torch.zeros(n)
settings = AdamWSettings(beta1=0.9, beta2=0.99, weight_decay=0.01, max_grad_norm=1.0)
for step in range(1, 16):
    adamw_step(values, draw(10.0 ** -step), mean, square, step=step, lr=1e-3 / step, settings=settings,
               scale=clip_scale(0.3 * step, 1.0))
print(torch.backends.cpu.get_cpu_capability(),
      hashlib.sha256(b"".join(t.numpy().tobytes() for t in (values, mean, square))).hexdigest())
"""


def run_with_capability(capability: str) -> tuple[str, str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ATEN_CPU_CAPABILITY": capability}
    output = subprocess.run(
        [sys.executable, "-c", STEPS], env=environment, capture_output=True, text=True, check=True
    ).stdout
    name, digest = output.split()
    return name, digest


def test_steps_give_the_same_bits_on_different_instruction_sets():
    runs = dict(run_with_capability(c) for c in ("default", "avx2", "avx512"))

    if len(runs) < 2:
        pytest.skip(f"torch has one code path on this CPU, nothing to compare with: {runs}")
    assert len(set(runs.values())) == 1, runs


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_steps_agree_with_torchs_adamw(weight_decay):
    random = torch.Generator().manual_seed(0)
    values = torch.randn(5000, generator=random)
    reference = torch.nn.Parameter(values.clone())
    mean, square = torch.zeros(5000), torch.zeros(5000)
    settings = AdamWSettings(beta1=0.9, beta2=0.98, epsilon=1e-8, weight_decay=weight_decay)
    optimizer = torch.optim.AdamW([reference], lr=3e-3, betas=(0.9, 0.98), eps=1e-8, weight_decay=weight_decay)

    for step in range(1, 51):
        gradient = torch.randn(5000, generator=random) * 0.1
        reference.grad = gradient.clone()
        optimizer.step()
        adamw_step(values, gradient, mean, square, step=step, lr=3e-3, settings=settings)

    torch.testing.assert_close(values, reference.data, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(mean, optimizer.state[reference]["exp_avg"], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(square, optimizer.state[reference]["exp_avg_sq"], rtol=1e-5, atol=1e-9)


def test_blocks_change_no_bit():
    n = (1 << 20) + 4097
    gradient = torch.linspace(-1, 1, n)
    whole = [torch.linspace(0, 1, n), torch.zeros(n), torch.zeros(n)]
    tail = [t[1 << 20 :].clone() for t in whole]

    adamw_step(whole[0], gradient, whole[1], whole[2], step=1, lr=1e-2, settings=AdamWSettings())
    adamw_step(tail[0], gradient[1 << 20 :], tail[1], tail[2], step=1, lr=1e-2, settings=AdamWSettings())

    assert all(torch.equal(w[1 << 20 :], t) for w, t in zip(whole, tail, strict=True))


def test_the_gradient_is_left_as_it_was():
    gradient = torch.ones(100)

    adamw_step(
        torch.zeros(100),
        gradient,
        torch.zeros(100),
        torch.zeros(100),
        step=1,
        lr=1.0,
        settings=AdamWSettings(),
        scale=0.5,
    )

    assert torch.equal(gradient, torch.ones(100))


def test_clip_scale_is_the_one_of_torch():
    parameter = torch.nn.Parameter(torch.zeros(3))
    parameter.grad = torch.tensor([3.0, 4.0, 12.0])
    torch.nn.utils.clip_grad_norm_([parameter], 1.0)

    scaled = torch.tensor([3.0, 4.0, 12.0]) * clip_scale(13.0, 1.0)

    torch.testing.assert_close(scaled, parameter.grad)
    assert clip_scale(0.5, 1.0) == 1.0
    assert clip_scale(1e9, None) == 1.0
    assert clip_scale(1e9, 0.0) == 1.0


def test_power_by_squaring_is_a_power():
    for exponent in (0, 1, 2, 3, 7, 1000, 12345):
        assert _power(0.999, exponent) == pytest.approx(0.999**exponent, rel=1e-12)
