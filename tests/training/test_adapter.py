import json
import math
import os
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from node.core.errors import CheckpointError
from node.training.adapter import StageAdapter
from node.training.checkpoint import Checkpoint, CheckpointStore
from node.training.optimizer import AdamWSettings
from node.training.schedule import ScheduleSettings, learning_rate
from node.training.state import encoded_size_limit

SHAPES = {"b.lora_B.weight": (4, 3), "a.lora_A.weight": (3, 5), "b.lora_A.weight": (3, 4), "m.magnitude": (7,)}


def make_adapter(seed: int = 0) -> tuple[StageAdapter, dict[str, nn.Parameter]]:
    random = torch.Generator().manual_seed(seed)
    parameters = {name: nn.Parameter(torch.randn(shape, generator=random)) for name, shape in SHAPES.items()}
    return StageAdapter(0, parameters), parameters


def train(adapter: StageAdapter, steps: int, seed: int = 1) -> None:
    random = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        mean = torch.randn(adapter.layout.numel, generator=random)
        adapter.step(mean, float(mean.double().square().sum()), 100, AdamWSettings(), 1e-2)


def accumulate(parameters: dict[str, nn.Parameter], factor: float) -> None:
    sum((p * factor).sum() for p in parameters.values()).backward()


def test_parameters_become_views_in_the_order_of_their_names():
    adapter, parameters = make_adapter()
    expected = torch.cat([parameters[name].data.flatten().clone() for name in sorted(SHAPES)])

    assert torch.equal(adapter.values, expected)
    assert [(e.name, e.offset) for e in adapter.layout.entries] == [
        ("a.lora_A.weight", 0),
        ("b.lora_A.weight", 15),
        ("b.lora_B.weight", 27),
        ("m.magnitude", 39),
    ]
    adapter.values.fill_(2.5)
    assert all(bool((p == 2.5).all()) for p in parameters.values())


def test_layout_does_not_depend_on_the_order_of_the_mapping():
    adapter, parameters = make_adapter()
    reordered = {name: nn.Parameter(parameters[name].detach().clone()) for name in sorted(SHAPES, reverse=True)}

    assert StageAdapter(0, reordered).digest() == adapter.digest()


def test_gradients_accumulate_in_place_and_stay_views():
    adapter, parameters = make_adapter()
    pointers = {name: p.grad.data_ptr() for name, p in parameters.items()}

    for _ in range(3):
        accumulate(parameters, 2.0)
        adapter.count(tokens=10, weight=7)

    assert bool((adapter.gradients == 6.0).all())
    assert (adapter.tokens, adapter.weight) == (30, 21)
    sealed = adapter.seal()
    accumulate(parameters, 1.0)
    assert bool((sealed.gradient == 6.0).all())
    assert bool((adapter.gradients == 1.0).all())
    assert {name: p.grad.data_ptr() for name, p in parameters.items()} == pointers


def test_sealing_starts_afresh_and_giving_back_loses_nothing():
    adapter, parameters = make_adapter()
    accumulate(parameters, 1.0)
    adapter.count(8, 8)

    sealed = adapter.seal()

    assert (sealed.version, sealed.base_hash) == (0, adapter.digest())
    assert (sealed.tokens, sealed.weight, adapter.tokens, adapter.weight) == (8, 8, 0, 0)
    accumulate(parameters, 4.0)
    adapter.count(3, 2)
    adapter.give_back(sealed)
    assert bool((adapter.gradients == 5.0).all())
    assert (adapter.tokens, adapter.weight) == (11, 10)


def test_a_torch_model_trains_the_same_as_with_its_own_optimizer():
    torch.manual_seed(0)
    ours, theirs = nn.Linear(6, 4), nn.Linear(6, 4)
    theirs.load_state_dict(ours.state_dict())
    adapter = StageAdapter(0, dict(ours.named_parameters()))
    rules = AdamWSettings(beta2=0.99, weight_decay=0.1, max_grad_norm=0.5)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=0.05, betas=(0.9, 0.99), weight_decay=0.1)

    for _ in range(20):
        x, y = torch.randn(16, 6), torch.randn(16, 4)
        for half in (slice(0, 5), slice(5, 16)):  # uneven microbatches of a summed loss
            (ours(x[half]) - y[half]).square().sum().backward()
            adapter.count(len(x[half]), len(x[half]))
        sealed = adapter.seal()
        mean = sealed.gradient / sealed.weight
        info = adapter.step(mean, float(mean.double().square().sum()), sealed.tokens, rules, 0.05)
        optimizer.zero_grad()
        ((theirs(x) - y).square().sum() / len(x)).backward()
        norm = nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        optimizer.step()
        assert info.gradient_norm == pytest.approx(float(norm), rel=1e-5)
        assert info.clipped == (float(norm) > 0.5)

    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
    assert (adapter.version, adapter.committed_tokens) == (20, 320)


def test_replicas_that_take_the_same_steps_have_the_same_digest():
    one, two = make_adapter()[0], make_adapter()[0]

    train(one, 3)
    train(two, 3)

    assert one.digest() == two.digest()
    train(one, 1, seed=2)
    train(two, 1, seed=3)
    assert one.digest() != two.digest()


def test_digest_sees_every_bit_of_values_moments_version_and_layout():
    adapter, _ = make_adapter()
    train(adapter, 2)
    seen = {adapter.digest()}

    for tensor in (adapter.values, adapter.exp_avg, adapter.exp_avg_sq):
        state = adapter.state()
        tensor[3] = math.nextafter(float(tensor[3]), math.inf) if tensor[3] == 0 else tensor[3] * (1 + 2**-23)
        adapter._digest = None
        seen.add(adapter.digest())
        adapter.load_state(state)
    adapter.version += 1
    adapter._digest = None
    seen.add(adapter.digest())
    renamed = StageAdapter(0, {n.replace("a.", "c."): nn.Parameter(torch.zeros(s)) for n, s in SHAPES.items()})
    plain = StageAdapter(0, {n: nn.Parameter(torch.zeros(s)) for n, s in SHAPES.items()})

    assert len(seen) == 5
    assert renamed.digest() != plain.digest()


def test_digest_is_the_same_on_different_instruction_sets():
    program = (
        "import numpy, torch\nfrom torch import nn\nfrom node.training.adapter import StageAdapter\n"
        "from node.training.optimizer import AdamWSettings\n"
        "r = numpy.random.Generator(numpy.random.PCG64(1))\n"
        "d = lambda *s: torch.from_numpy(r.standard_normal(s, dtype=numpy.float32))\n"
        "a = StageAdapter(0, {'x': nn.Parameter(d(100, 33)), 'y': nn.Parameter(d(7))})\n"
        "for i in range(8):\n"
        "    a.step(d(3307), 10.0 * i, 5, AdamWSettings(weight_decay=0.01), 1e-3)\n"
        "print(a.digest())\n"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "OMP_NUM_THREADS": "1", "ATEN_CPU_CAPABILITY": capability},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for capability in ("default", "avx2")
    }

    assert len(digests) == 1


def test_state_travels_as_bytes_and_safetensors_reads_it(tmp_path):
    adapter, parameters = make_adapter()
    train(adapter, 3)
    data = adapter.to_bytes()
    other, _ = make_adapter(seed=9)

    other.from_bytes(data, digest=adapter.digest())

    assert (other.digest(), other.version, other.committed_tokens) == (adapter.digest(), 3, 300)
    assert len(data) <= encoded_size_limit(adapter.layout)
    tensors = safetensors.torch.load(data)
    assert set(tensors) == {f"{part}/{name}" for part in ("values", "exp_avg", "exp_avg_sq") for name in SHAPES}
    assert all(torch.equal(tensors[f"values/{name}"], parameters[name].data) for name in SHAPES)
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(data)
    with safetensors.safe_open(path, framework="pt") as file:
        assert file.metadata()["digest"] == adapter.digest()


def test_loading_a_state_keeps_what_has_accumulated():
    adapter, parameters = make_adapter()
    accumulate(parameters, 1.5)
    adapter.count(4, 4)
    other, _ = make_adapter()
    train(other, 2)

    adapter.load_state(other.state())

    assert bool((adapter.gradients == 1.5).all())
    assert (adapter.version, adapter.weight) == (2, 4)
    assert torch.equal(parameters["m.magnitude"].data, adapter.layout.views(other.values)["m.magnitude"])


def test_a_state_is_a_copy():
    adapter, _ = make_adapter()
    state = adapter.state()
    before = state.digest(adapter.layout)

    train(adapter, 1)

    assert state.digest(adapter.layout) == before


def test_every_flipped_bit_is_found():
    adapter, _ = make_adapter()
    train(adapter, 2)
    data, digest = adapter.to_bytes(), adapter.digest()
    target, _ = make_adapter()
    step = 7  # coprime to 8, so every bit position is met

    for bit in range(0, 8 * len(data), step):
        torn = bytearray(data)
        torn[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CheckpointError):
            target.from_bytes(bytes(torn), digest=digest)


def test_every_truncation_and_addition_is_found():
    adapter, _ = make_adapter()
    data = adapter.to_bytes()

    for size in range(len(data)):
        with pytest.raises(CheckpointError):
            adapter.from_bytes(data[:size])
    with pytest.raises(CheckpointError):
        adapter.from_bytes(data + b"\0" * 8)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=4000))
def test_garbage_is_refused_with_a_typed_error(garbage):
    adapter, _ = make_adapter()

    with pytest.raises(CheckpointError):
        adapter.from_bytes(garbage)


def rewrite_header(data: bytes, change) -> bytes:
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    change(header)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h["__metadata__"].update(version="-1"),
        lambda h: h["__metadata__"].update(version="9" * 30),
        lambda h: h["__metadata__"].update(version="²"),
        lambda h: h["__metadata__"].update(version=["1"]),
        lambda h: h["__metadata__"].update(digest="0" * 64),
        lambda h: h["values/m.magnitude"].update(dtype="F64"),
        lambda h: h["values/m.magnitude"].update(data_offsets=[0, 28]),
        lambda h: h.update({"values/evil": h.pop("values/m.magnitude")}),
    ],
)
def test_a_header_that_is_not_the_expected_one_is_refused(change):
    adapter, _ = make_adapter()
    before = adapter.digest()

    with pytest.raises(CheckpointError):
        adapter.from_bytes(rewrite_header(adapter.to_bytes(), change))

    assert adapter.digest() == before


def test_a_state_of_another_digest_than_announced_is_refused():
    adapter, _ = make_adapter()
    other, _ = make_adapter(seed=5)
    before = adapter.digest()

    with pytest.raises(CheckpointError, match="the swarm holds"):
        adapter.from_bytes(other.to_bytes(), digest=before)

    assert adapter.digest() == before


@pytest.mark.parametrize(("part", "value"), [("values", math.nan), ("exp_avg", math.inf), ("exp_avg_sq", -1.0)])
def test_numbers_that_no_training_makes_are_refused_even_with_a_right_digest(part, value):
    adapter, _ = make_adapter()
    bad, _ = make_adapter()
    getattr(bad, part)[5] = value

    with pytest.raises(CheckpointError, match=part):
        adapter.from_bytes(bad.to_bytes(), digest=bad.digest())


def test_a_state_of_other_shapes_is_refused():
    adapter, _ = make_adapter()
    other = StageAdapter(0, {"a": nn.Parameter(torch.zeros(adapter.layout.numel))})

    with pytest.raises(CheckpointError):
        adapter.from_bytes(other.to_bytes())
    with pytest.raises(CheckpointError, match="shape"):
        adapter.load_state(StageAdapter(0, {"a": nn.Parameter(torch.zeros(3))}).state())


def test_training_goes_on_from_a_checkpoint_with_the_same_bits(tmp_path):
    def run(adapter, weight, steps):
        for step in steps:
            x = torch.linspace(-1, 1, 60).view(20, 3) * (step + 1)
            (x @ weight).square().sum().backward()
            adapter.count(20, 20)
            sealed = adapter.seal()
            mean = sealed.gradient / sealed.weight
            rate = learning_rate(ScheduleSettings(0.1, "cosine", 2, 10), adapter.version)
            adapter.step(mean, float(mean.double().square().sum()), sealed.tokens, AdamWSettings(), rate)

    start = torch.arange(6.0).view(3, 2)
    whole, first, second = (nn.Parameter(start.clone()) for _ in range(3))
    undisturbed, store = StageAdapter(0, {"w": whole}), CheckpointStore(tmp_path)
    run(undisturbed, whole, range(10))
    stopped = StageAdapter(0, {"w": first})
    run(stopped, first, range(6))
    store.save(Checkpoint("run", stopped.version, {0: stopped.to_bytes()}, cursor={"next": 6}))

    loaded = store.load_latest("run")
    resumed = StageAdapter(0, {"w": second})
    resumed.from_bytes(loaded.adapters[0])
    run(resumed, second, range(loaded.cursor["next"], 10))

    assert resumed.digest() == undisturbed.digest()
    assert torch.equal(second, whole)
