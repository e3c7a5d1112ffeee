import json
import subprocess

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from node.core.errors import ConfigError, OutOfDisk
from node.export.peft import AdapterCard, write_adapter
from node.model.spec import LoraSpec

CARD = AdapterCard(name="my run", rounds=120, tokens=1_234_567, contributors=3, base_loss=3.087, adapter_loss=2.559)
ALL = ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")
TENSORS = {"model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(2, 8)}
SPECS = {
    "lora": LoraSpec(r=4, alpha=8),
    "fraction": LoraSpec(r=4, alpha=6.5, dropout=0.05),
    "rslora": LoraSpec(r=4, alpha=8, use_rslora=True),
    "dora": LoraSpec(r=4, alpha=8, use_dora=True),
    "some": LoraSpec(r=2, alpha=4, targets=("q_proj", "v_proj")),
}


def tiny_model(family: str) -> torch.nn.Module:
    sizes = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    config = {
        "llama": transformers.LlamaConfig,
        "qwen3": transformers.Qwen3Config,
        "gemma3": transformers.Gemma3TextConfig,
    }[family](**sizes)
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).float().eval()


def random_adapter(model: torch.nn.Module, spec: LoraSpec) -> dict[str, torch.Tensor]:
    """Tensors as training leaves them, under the names of the decoder's linear layers."""
    random = torch.Generator().manual_seed(1)
    tensors = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name.rpartition(".")[2] in (spec.targets or ALL):
            outputs, inputs = module.weight.shape
            tensors[f"{name}.lora_A.weight"] = torch.randn(spec.r, inputs, generator=random) * 0.2
            tensors[f"{name}.lora_B.weight"] = torch.randn(outputs, spec.r, generator=random) * 0.2
            if spec.use_dora:
                norms = torch.linalg.vector_norm(module.weight.detach(), dim=1)
                tensors[f"{name}.lora_magnitude_vector"] = norms * (1 + 0.3 * torch.rand(outputs, generator=random))
    return tensors


def apply_by_hand(model: torch.nn.Module, tensors: dict[str, torch.Tensor], spec: LoraSpec) -> None:
    for name, module in model.named_modules():
        if f"{name}.lora_A.weight" in tensors:
            delta = tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
            weight = module.weight.data + spec.scaling * delta
            if spec.use_dora:
                norms = torch.linalg.vector_norm(weight, dim=1)
                weight = weight * (tensors[f"{name}.lora_magnitude_vector"] / norms)[:, None]
            module.weight.data = weight


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
@pytest.mark.parametrize("kind", list(SPECS))
def test_peft_loads_the_folder_and_computes_what_was_trained(tmp_path, family, kind):
    spec = SPECS[kind]
    by_hand = tiny_model(family)
    tensors = random_adapter(by_hand, spec)
    ids = torch.arange(40).view(2, 20)
    with torch.no_grad():
        untouched = by_hand(ids).logits
        apply_by_hand(by_hand, tensors, spec)
        expected = by_hand(ids).logits

    size = write_adapter(tmp_path / "adapter", tensors, spec, base_model="maker/model", card=CARD)
    loaded = peft.PeftModel.from_pretrained(tiny_model(family), tmp_path / "adapter")
    with torch.no_grad():
        found = loaded(ids).logits

    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)
    assert (untouched - expected).abs().max() > 0.1
    assert size == sum(path.stat().st_size for path in (tmp_path / "adapter").iterdir())
    saved = peft.get_peft_model_state_dict(loaded)
    assert {f"base_model.model.{name}" for name in tensors} == set(saved)


def test_configuration_names_modules_and_settings(tmp_path):
    spec = SPECS["some"]

    write_adapter(tmp_path / "a", random_adapter(tiny_model("llama"), spec), spec, base_model="maker/model", card=CARD)

    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert sorted(config["target_modules"]) == ["q_proj", "v_proj"]
    assert (config["r"], config["lora_alpha"], config["task_type"]) == (2, 4, "CAUSAL_LM")
    assert config["base_model_name_or_path"] == "maker/model"
    assert config["peft_type"] == "LORA"


def test_weights_are_those_given(tmp_path):
    write_adapter(tmp_path / "a", TENSORS, SPECS["lora"], base_model="m/m", card=CARD)

    (loaded,) = load_file(tmp_path / "a" / "adapter_model.safetensors").values()

    assert torch.equal(loaded, torch.ones(2, 8))


def test_card_tells_of_the_run_and_its_header_is_yaml(tmp_path):
    from ruamel.yaml import YAML

    write_adapter(tmp_path / "a", TENSORS, SPECS["rslora"], base_model="maker/model", card=CARD)

    text = (tmp_path / "a" / "README.md").read_text()
    header = YAML(typ="safe").load(text.split("---")[1])
    assert header["base_model"] == "maker/model"
    assert header["library_name"] == "peft"
    for part in ("# my run", "1,234,567", "| Rounds | 120 |", "| Contributors | 3 |", "rsLoRA", "3.0870", "12.92"):
        assert part in text, part


def test_no_path_of_this_machine_is_written(tmp_path):
    local = tmp_path / "somebody" / "SmolLM2"
    local.mkdir(parents=True)

    write_adapter(tmp_path / "a", TENSORS, SPECS["lora"], base_model=str(local), card=CARD)

    for path in (tmp_path / "a").iterdir():
        data = path.read_bytes()
        assert str(tmp_path).encode() not in data, path.name
        assert b"somebody" not in data, path.name
    assert "base_model:" not in (tmp_path / "a" / "README.md").read_text()
    assert "SmolLM2" in (tmp_path / "a" / "README.md").read_text()


def test_names_from_outside_are_harmless_in_the_card(tmp_path):
    card = AdapterCard(name='x\n---\n<script>alert("a")</script> | [y](z)', rounds=0, tokens=0, contributors=1)

    write_adapter(tmp_path / "a", TENSORS, SPECS["lora"], base_model='e"vil<b>/`x', card=card)

    text = (tmp_path / "a" / "README.md").read_text()
    assert "<script>" not in text
    assert text.count("\n---\n") == 1
    assert not any(line.startswith("# ") and "\n" in line for line in text.splitlines())


def test_an_earlier_export_is_replaced(tmp_path):
    folder = tmp_path / "deep" / "a"
    for value in (1.0, 2.0):
        tensors = {name: torch.full_like(t, value) for name, t in TENSORS.items()}
        write_adapter(folder, tensors, SPECS["lora"], base_model="m/m", card=CARD)

    (loaded,) = load_file(folder / "adapter_model.safetensors").values()
    assert bool((loaded == 2.0).all())
    assert [p.name for p in folder.parent.iterdir()] == ["a"]


@pytest.mark.parametrize("extra", ["thesis.txt", "adapter_model.safetensors", "tokenizer.json"])
def test_what_is_not_ours_is_not_replaced(tmp_path, extra):
    folder = tmp_path / "a"
    if extra == "tokenizer.json":
        write_adapter(folder, TENSORS, SPECS["lora"], base_model="m/m", card=CARD)
    folder.mkdir(exist_ok=True)
    (folder / extra).write_text("mine")

    with pytest.raises(ConfigError, match="not an adapter that Potluck wrote") as caught:
        write_adapter(folder, TENSORS, SPECS["lora"], base_model="m/m", card=CARD)

    assert "--force" in caught.value.hint
    assert (folder / extra).read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_force_moves_aside_what_was_there(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")

    write_adapter(folder, TENSORS, SPECS["lora"], base_model="m/m", card=CARD, force=True)

    assert (folder / "adapter_config.json").exists()
    (kept,) = tmp_path.glob("a.replaced-*")
    assert (kept / "thesis.txt").read_text() == "mine"


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("x")

    with pytest.raises(ConfigError, match="Cannot export"):
        write_adapter(tmp_path / "file" / "a", TENSORS, SPECS["lora"], base_model="m/m", card=CARD)


def test_a_full_disk_leaves_nothing_behind(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root and CAP_SYS_ADMIN")
    try:
        tensors = {"model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(64, 8192)}
        with pytest.raises(OutOfDisk, match=r"needs 2\.0 MiB"):
            write_adapter(disk / "a", tensors, SPECS["lora"], base_model="m/m", card=CARD)
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
