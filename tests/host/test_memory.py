import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from test_shapes import CONFIGS, LLAMA_8B

from node.host.memory import (
    AdapterShape,
    Workload,
    fits,
    layer_activation_bytes,
    plan_memory,
    round_traffic,
)
from node.host.shapes import ModelShape
from node.model.shard import load_shard
from node.model.spec import LoadSpec, LoraSpec

MIB = 1 << 20
SIZES = {
    "vocab_size": 64,
    "hidden_size": 128,
    "intermediate_size": 320,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}


def kept_bytes(folder: Path, family: str, num_layers: int, tokens: int, spec: LoadSpec) -> int:
    """Run a forward and count the bytes that autograd keeps, each storage once, parameters left out."""
    config = CONFIGS[family](**SIZES, num_hidden_layers=num_layers)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    shard = load_shard(folder, spec)
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = (tensor.untyped_storage().nbytes(), tensor)
        return tensor

    embedded = shard.embed(torch.arange(tokens) % 64)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = shard.forward(embedded, [tokens])
    adapters = {p.untyped_storage().data_ptr() for p in shard.lora.values()}
    assert output.requires_grad
    return sum(size for pointer, (size, _) in kept.items() if pointer not in adapters)


@pytest.mark.parametrize("family", CONFIGS)
def test_activations_are_those_that_the_model_keeps(tmp_path, family):
    check_activations(tmp_path, family, LoadSpec(lora=LoraSpec(r=4, alpha=8)), item=2)


@pytest.mark.parametrize(
    ("spec", "item"),
    [
        (LoadSpec(lora=LoraSpec(r=16, alpha=8), compute="float32"), 4),
        (LoadSpec(lora=LoraSpec(r=16, alpha=8, dropout=0.1), quantization="none"), 2),
        (LoadSpec(lora=LoraSpec(r=8, alpha=8, use_dora=True)), 2),
        (LoadSpec(lora=LoraSpec(r=8, alpha=8, targets=("q_proj", "v_proj"))), 2),
    ],
    ids=["float32", "dropout", "dora", "some"],
)
def test_activations_are_right_for_other_settings(tmp_path, spec, item):
    check_activations(tmp_path, "llama", spec, item)


def check_activations(tmp_path: Path, family: str, spec: LoadSpec, item: int) -> None:
    tokens = 256
    shape = ModelShape.of(CONFIGS[family](**SIZES, num_hidden_layers=1).to_dict())
    # The difference leaves out what is kept once: positions, and the last layer's output.
    three, one = (kept_bytes(tmp_path / str(n), family, n, tokens, spec) for n in (3, 1))
    adapter = AdapterShape(spec.lora.r, spec.lora.targets, spec.lora.use_dora)

    planned = layer_activation_bytes(shape, adapter, tokens, item)

    assert planned == pytest.approx((three - one) / 2, rel=0.05)


REAL_RUN = """
import json, sys
from array import array
from pathlib import Path

def memory(key):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024

import torch
torch.set_num_threads(1)
from node.core.types import Microbatch
from node.model.shard import load_shard
from node.model.spec import LoadSpec, LoraSpec
from node.training.adapter import StageAdapter

folder, tokens, documents, checkpointing = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "True"
started = memory("VmRSS")
shard = load_shard(folder, LoadSpec(lora=LoraSpec(r=16, alpha=32), gradient_checkpointing=checkpointing))
adapter = StageAdapter(0, shard.lora)
loaded = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the load
ids = array("i", [(7919 * i) % 49152 for i in range(tokens)])
for seed in range(2):
    shard.train_microbatch(Microbatch(0, ids, ids, (tokens // documents,) * documents), dropout_seed=seed)
print(json.dumps({"loaded": loaded - started, "peak": memory("VmHWM") - started}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.parametrize(("tokens", "documents", "checkpointing"), [(512, 1, False), (1024, 2, True)])
def test_arithmetic_agrees_with_a_real_run_on_the_cpu_within_a_fifth(smollm2, tokens, documents, checkpointing):
    shape = ModelShape.of(json.loads((smollm2 / "config.json").read_text()))
    work = Workload(tokens, gradient_checkpointing=checkpointing)

    plan = plan_memory(shape, AdapterShape(rank=16), work)
    output = subprocess.run(
        [sys.executable, "-c", REAL_RUN, str(smollm2), str(tokens), str(documents), str(checkpointing)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    measured = json.loads(output)
    at_rest = plan.weights + plan.embedding_head + plan.adapter + plan.optimizer + plan.accumulators
    assert at_rest + plan.context == pytest.approx(measured["loaded"], rel=0.25)
    assert plan.device_bytes == pytest.approx(measured["peak"], rel=0.2)


def test_an_8b_model_in_4_bits_needs_what_others_report():
    plan = plan_memory(
        ModelShape.of(LLAMA_8B), AdapterShape(rank=16), Workload(2048, gradient_checkpointing=True, on_gpu=True)
    )

    assert plan.weights / 1e9 == pytest.approx(6.98 * 0.516, rel=0.01)
    assert plan.embedding_head == 2 * 128256 * 4096 * 2 + 4096 * 2
    assert plan.adapter + plan.optimizer + plan.accumulators == 16 * 41_943_040
    assert 7 < plan.device_bytes / 2**30 < 9  # torchtune reports 7.4 GiB, with 8-bit moments
    assert fits(plan.device_bytes, 12 << 30)
    assert not fits(plan.device_bytes, 8 << 30)
    assert plan.total_bytes == plan.device_bytes + plan.host_bytes


def test_checkpointing_and_fewer_layers_need_less():
    shape, adapter = ModelShape.of(LLAMA_8B), AdapterShape(rank=16)
    full = plan_memory(shape, adapter, Workload(2048))

    checkpointed = plan_memory(shape, adapter, Workload(2048, gradient_checkpointing=True))
    half = plan_memory(shape, adapter, Workload(2048, num_layers=16, ends=False))

    assert checkpointed.activations < full.activations / 5
    assert checkpointed.weights == full.weights
    assert half.weights == full.weights // 2
    assert (half.embedding_head, half.logits) == (0, 0)


@pytest.mark.parametrize(
    ("replicas", "compression", "megabytes", "mbit", "seconds"),
    [(8, "none", 167.8, 10, 235), (8, "none", 167.8, 100, 23.5), (8, "bf16", 83.9, 20, 59), (2, "none", 167.8, 20, 67)],
)
def test_a_round_of_an_8b_adapter_takes_what_its_bytes_take(replicas, compression, megabytes, mbit, seconds):
    traffic = round_traffic(41_943_040, replicas, compression)

    assert traffic.payload_bytes / 1e6 == pytest.approx(megabytes, rel=1e-3)
    assert traffic.seconds(mbit) == pytest.approx(seconds, rel=0.01)


def test_a_node_that_is_alone_sends_nothing():
    assert round_traffic(1_000_000, 1).upload_bytes == 0
