"""Loading a shard reads the shard: its tensors alone, and with no more memory than it has to."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import load_file, save_file
from test_gguf_folder import write_gguf
from tiny_models import COMMON
from transformers import AutoConfig, AutoModelForCausalLM

from node.core.errors import WeightsMissing
from node.core.types import LayerRange
from node.model.build import tensor_names
from node.model.shard import load_shard
from node.model.spec import LoadSpec, LoraSpec
from node.model.weights import read_header

LORA = LoraSpec(r=4, alpha=8.0)
WIDE = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_key_value_heads": 4}
WIDE |= {"head_dim": 64, "num_hidden_layers": 12, "vocab_size": 4096}
LAYERS = LayerRange(4, 8)
LAYER_VALUES = 2 * 1024 * 1024 + 2 * 256 * 1024 + 3 * 4096 * 1024
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Of one value: its code, its part of a scale in 8 bits, its part of that scale's scale."""

MEASURE = """
import json, sys
from pathlib import Path

def number(file, key):
    return next(int(line.split()[1]) for line in Path(file).read_text().splitlines() if line.startswith(key + ":"))

import torch
torch.set_num_threads(1)
from node.core.types import LayerRange
from node.model.gguf_folder import convert_gguf
from node.model.shard import load_shard
from node.model.spec import LoadSpec, LoraSpec

small, large, start, stop = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])

def load(path, layers):
    if path.suffix == ".gguf":
        return convert_gguf(path, path.with_suffix(".folder"))
    return load_shard(path, LoadSpec(lora=LoraSpec(r=4, alpha=8.0), layers=layers, ends=False))

load(small, LayerRange(0, 1))  # whatever is loaded or compiled at the first time is not of the shard
memory, read = number("/proc/self/status", "VmRSS"), number("/proc/self/io", "rchar")
Path("/proc/self/clear_refs").write_text("5")  # forget the peak until here
shard = load(large, LayerRange(start, stop))
peak = number("/proc/self/status", "VmHWM") - memory
print(json.dumps({"peak": peak * 1024, "read": number("/proc/self/io", "rchar") - read}))
"""

linux = pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A llama of 190 million parameters in one file of bf16; every value of a tensor is the same few."""
    folder = tmp_path_factory.mktemp("wide")
    config = AutoConfig.for_model("llama", **{**COMMON, **WIDE})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    row = torch.randn(4096, dtype=torch.bfloat16)
    tensors = {name: row[: p.shape[-1]].repeat(*p.shape[:-1], 1).view(p.shape) for name, p in model.named_parameters()}
    save_file(tensors, folder / "model.safetensors")
    model.config.save_pretrained(folder)
    return folder


def measured(small, large):
    """Return the peak of memory and the number of bytes read of a process that loads LAYERS, or converts a file."""
    command = [sys.executable, "-c", MEASURE, str(small), str(large), str(LAYERS.start), str(LAYERS.stop)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.fixture(scope="module")
def loading(wide, tiny):
    """What loading the shard takes."""
    return measured(tiny("llama"), wide)


@linux
def test_peak_of_loading_a_shard_stays_near_its_own_size(wide, loading):
    bound = 1.1 * (len(LAYERS) * LAYER_VALUES * NF4_BYTES + 2 * LAYER_VALUES * 2)
    assert bound < (wide / "model.safetensors").stat().st_size / 3

    assert loading["peak"] <= bound


@linux
def test_only_the_tensors_of_the_shard_are_read(wide, loading):
    spec = LoadSpec(lora=LORA, layers=LAYERS, ends=False)
    entries = {entry.name: entry.stop - entry.start for entry in read_header(wide / "model.safetensors")}
    own = sum(entries[name] for name in tensor_names(wide, spec, entries))

    assert own == len(LAYERS) * 2 * (LAYER_VALUES + 2 * 1024)
    assert own <= loading["read"] <= own + (1 << 20)  # beside them the header and the configuration


@linux
def test_peak_of_converting_a_gguf_file_stays_within_two_layers(tmp_path):
    small = write_gguf(tmp_path / "small.gguf", "llama", kinds=[Kind.F16])
    large = write_gguf(tmp_path / "large.gguf", "llama", kinds=[Kind.F16], **WIDE)

    got = measured(small, large)

    assert got["peak"] <= 2 * LAYER_VALUES * 2
    assert (tmp_path / "large.folder" / "model.safetensors").stat().st_size > 12 * LAYER_VALUES * 2


@pytest.mark.parametrize(("key", "value"), [("shape", [64, 129]), ("shape", [1 << 40, 64]), ("dtype", "F64")])
def test_header_whose_size_disagrees_with_shape_and_type_is_refused(tiny, tmp_path, key, value):
    folder = shutil.copytree(tiny("llama"), tmp_path / "copy")
    name = "model.layers.3.mlp.down_proj.weight"
    alter_header(folder / "model.safetensors", name, key, value)

    with pytest.raises(WeightsMissing, match=rf"{re.escape(name)} is F\d\d \[.*\] in 32768 bytes"):
        load_shard(folder, LoadSpec(lora=LORA))


def alter_header(path, name, key, value):
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert header[name][key] != value
    header[name][key] = value
    altered = json.dumps(header).encode()
    path.write_bytes(len(altered).to_bytes(8, "little") + altered + data[8 + length :])


def test_folder_with_a_part_of_the_tensors_loads_as_a_shard(tiny, tmp_path):
    folder = part_of(tiny("llama"), tmp_path / "part", "model.layers.2.", "model.layers.3.")
    spec = LoadSpec(lora=LORA, layers=LayerRange(2, 4), ends=False)

    shard, whole = load_shard(folder, spec), load_shard(tiny("llama"), LoadSpec(lora=LORA))

    hidden = torch.randn(9, 64, dtype=torch.bfloat16)
    with torch.no_grad():
        got, expected = (holder.forward(hidden, [9], LayerRange(2, 4)) for holder in (shard, whole))
    assert torch.equal(got, expected)


def test_folder_with_a_part_of_the_tensors_names_what_a_larger_shard_lacks(tiny, tmp_path):
    folder = part_of(tiny("llama"), tmp_path / "part", "model.layers.2.", "model.layers.3.")

    with pytest.raises(WeightsMissing, match=r"others\.safetensors"):
        load_shard(folder, LoadSpec(lora=LORA, layers=LayerRange(2, 5), ends=False))


def part_of(model, folder, *prefixes):
    """Copy to `folder` the tensors whose names begin so; the index names all, as that of a whole model does."""
    tensors = load_file(model / "model.safetensors")
    own = {name: tensor for name, tensor in tensors.items() if name.startswith(prefixes)}
    folder.mkdir()
    shutil.copy(model / "config.json", folder)
    save_file(own, folder / "own.safetensors")
    weight_map = {name: "own.safetensors" if name in own else "others.safetensors" for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder
