"""How much memory does it take to load a shard, next to loading the whole model?

A random model in llama's shape (1.1 billion parameters, 16 layers) is written once as bf16 safetensors in three files and
once as a GGUF file in Q8_0. Each case is a process of its own, which first does the same with a tiny model. Printed for
each, above what the process had before:

    peak      the most memory in use (VmHWM) while loading
    kept      what is in use afterwards (VmRSS)
    bound     1.1 x (the shard's layers in NF4 + two of the model's layers in bf16): what loading a shard may take
    whole     the baseline's peak over this one's: for safetensors the same loader with all layers, for GGUF the whole
              model as transformers makes it of the file in memory

A GGUF file is loaded as a node does it: converted into a folder, then the shard is read from there. Linux only.

    python benchmarks/shard_loading.py [--quick] [--first 4] [--stop 12]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

sys.path.insert(0, str(Path(__file__).parent.parent))

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig

from node.core.types import LayerRange
from node.model.shard import load_shard
from node.model.source import resolve_base_model
from node.model.spec import LoadSpec, LoraSpec

LARGE = {
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 2048,
}
QUICK = {**LARGE, "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_key_value_heads": 4}
TINY = {**QUICK, "vocab_size": 256, "hidden_size": 128, "intermediate_size": 256, "head_dim": 8, "num_hidden_layers": 2}
NUM_FILES = 3
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Of one value: its code, its part of a scale in 8 bits, its part of that scale's scale."""
CASES = ("safetensors", "safetensors whole", "gguf", "gguf whole")
MIB = 1 << 20


def outline(shape: dict[str, int]) -> AutoModelForCausalLM:
    """Return the model without its values."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **shape), dtype=torch.bfloat16)


def write_folder(folder: Path, shape: dict[str, int]) -> None:
    """Write a random model as bf16 safetensors in several files and an index."""
    folder.mkdir(parents=True)
    model = outline(shape)
    model.config.save_pretrained(folder)
    parameters = list(model.named_parameters())
    per_file = len(parameters) // NUM_FILES + 1
    weight_map = {}
    for start in range(0, len(parameters), per_file):
        own = {name: p.shape for name, p in parameters[start : start + per_file]}
        file = f"model-{start // per_file}.safetensors"
        save_file({name: torch.randn(size, dtype=torch.bfloat16) * 0.02 for name, size in own.items()}, folder / file)
        weight_map.update(dict.fromkeys(own, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def write_gguf(path: Path, shape: dict[str, int]) -> None:
    """Write a random model as a GGUF file, matrices in Q8_0, one tensor at a time."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(shape["max_position_embeddings"])
    writer.add_embedding_length(shape["hidden_size"])
    writer.add_block_count(shape["num_hidden_layers"])
    writer.add_feed_forward_length(shape["intermediate_size"])
    writer.add_head_count(shape["num_attention_heads"])
    writer.add_head_count_kv(shape["num_key_value_heads"])
    writer.add_rope_dimension_count(shape["head_dim"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["t", "1", *(f"t{index}" for index in range(shape["vocab_size"] - 2))])
    writer.add_token_merges(["t 1"])
    writer.add_eos_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, shape["num_hidden_layers"])
    tensors = {names.get_name(name.removesuffix(".weight")): p for name, p in outline(shape).named_parameters()}
    for name, parameter in tensors.items():
        kind = gguf.GGMLQuantizationType.F32 if parameter.ndim == 1 else gguf.GGMLQuantizationType.Q8_0
        stored = gguf.quants.quant_shape_to_byte_shape(tuple(parameter.shape), kind)
        dtype = np.dtype(np.float32 if parameter.ndim == 1 else np.uint8)
        info = tuple(parameter.shape) if parameter.ndim == 1 else stored
        writer.add_tensor_info(f"{name}.weight", info, dtype, int(np.prod(stored)), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for values in random_values(list(tensors.values())):
        writer.write_tensor_data(values)
    writer.close()


def random_values(parameters: Sequence[torch.Tensor]) -> Iterator[np.ndarray]:
    """Yield norms in fp32 and matrices as blocks of Q8_0: a scale in fp16, then 32 values of 8 bits."""
    random = np.random.default_rng(0)
    for parameter in parameters:
        if parameter.ndim == 1:
            yield np.ones(parameter.shape, dtype=np.float32)
            continue
        blocks = random.integers(0, 256, (parameter.numel() // 32, 34), dtype=np.uint8)
        blocks[:, :2] = np.frombuffer(np.float16(0.0003).tobytes(), np.uint8)
        yield blocks.reshape(parameter.shape[0], -1)


def memory(key: str) -> int:
    """Return a figure of `/proc/self/status` in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(key + ":"))


def load(case: str, base: Path, layers: LayerRange) -> object:
    """Do what the case says with the model in the folder `base`; return what is kept."""
    form, _, extent = case.partition(" ")
    path = base / "model.gguf"
    if case == "gguf whole":
        return AutoModelForCausalLM.from_pretrained(
            base, gguf_file=path.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
        )
    folder = base / "folder" if form == "safetensors" else resolve_base_model(str(path), cache=base / "cache")
    lora = LoraSpec(r=16, alpha=32.0)
    return load_shard(folder, LoadSpec(lora=lora) if extent else LoadSpec(lora=lora, layers=layers, ends=False))


def measure(case: str, scratch: Path, layers: LayerRange) -> None:
    """Print peak and kept bytes of a case; in a process of its own."""
    torch.set_num_threads(1)
    load(case, scratch / "tiny", LayerRange(0, 1))
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak until here
    kept = load(case, scratch / "large", layers)
    print(json.dumps({"peak": memory("VmHWM") - before, "kept": memory("VmRSS") - before}))
    del kept


def run(arguments: Sequence[str]) -> str:
    """Run this file in a process of its own and return the last line that it prints."""
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip().rpartition("\n")[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a model of a quarter of the size")
    parser.add_argument("--first", type=int, default=4)
    parser.add_argument("--stop", type=int, default=12)
    parser.add_argument("--case", choices=(*CASES, "write"), help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    shape, layers = QUICK if options.quick else LARGE, LayerRange(options.first, options.stop)
    if options.case == "write":
        for name, made in (("large", shape), ("tiny", TINY)):
            write_folder(options.scratch / name / "folder", made)
            write_gguf(options.scratch / name / "model.gguf", made)
        return
    if options.case:
        measure(options.case, options.scratch, layers)
        return
    layer = sum(p.numel() for name, p in outline(shape).named_parameters() if name.startswith("model.layers.0."))
    bound = 1.1 * (len(layers) * layer * NF4_BYTES + 2 * layer * 2)
    with tempfile.TemporaryDirectory() as scratch:
        run([*sys.argv[1:], "--case", "write", "--scratch", scratch])
        found = {case: json.loads(run([*sys.argv[1:], "--case", case, "--scratch", scratch])) for case in CASES}
    print(f"layers {layers.start} to {layers.stop} of {shape['num_hidden_layers']}; bound {bound / MIB:.0f} MiB")
    print(f"{'case':20} {'peak MiB':>9} {'kept MiB':>9} {'peak / bound':>13} {'whole / peak':>13}")
    for case, figures in found.items():
        baseline = found[f"{case.partition(' ')[0]} whole"]["peak"]
        ratios = "" if "whole" in case else f"{figures['peak'] / bound:13.2f} {baseline / figures['peak']:13.2f}"
        print(f"{case:20} {figures['peak'] / MIB:9.0f} {figures['kept'] / MIB:9.0f} {ratios}")
    print(json.dumps({"benchmark": "shard_loading", "bound": bound, "cases": found}))


if __name__ == "__main__":
    main()
