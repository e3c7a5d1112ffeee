"""Find a base model, wherever it lies, and say which one it is.

A base model is a local folder, a GGUF file or a name on the Hugging Face hub; after `resolve_base_model` it is a local
folder in Hugging Face's layout. What is cached is never asked for again over the network, no code of a model is ever
run, and weights come from safetensors or GGUF files only.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from node.core.errors import OutOfDisk, UnsupportedModel, WeightsMissing
from node.core.text import brief
from node.model.facts import is_hex, manifest_of, remembered
from node.model.families import read_config
from node.model.gguf_folder import convert_gguf, is_intact, leftovers, remove_leftovers
from node.model.hub import cached_model, download_model
from node.model.weights import tensor_digests, weight_files
from node.trust.manifest import digest_of

__all__ = [
    "digest_of",
    "load_tokenizer",
    "local_base_model",
    "maths_of",
    "model_digest",
    "resolve_base_model",
    "tensor_digests",
]

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")

_MATHS = frozenset(
    {
        "attention_bias",
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "head_dim",
        "hidden_act",
        "hidden_activation",
        "hidden_size",
        "intermediate_size",
        "layer_types",
        "max_position_embeddings",
        "max_window_layers",
        "mlp_bias",
        "model_type",
        "no_rope_layer_interval",
        "no_rope_layers",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "original_max_position_embeddings",
        "partial_rotary_factor",
        "query_pre_attn_scalar",
        "rms_norm_eps",
        "rope_local_base_freq",
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
        "sliding_window",
        "sliding_window_pattern",
        "tie_word_embeddings",
        "use_bidirectional_attention",
        "use_sliding_window",
        "vocab_size",
    }
)
"""The keys of `config.json` that change what a model of a supported family computes."""


def resolve_base_model(name: str, *, cache: Path, revision: str | None = None) -> Path:
    """Return a local folder (Hugging Face layout, safetensors) that holds the base model `name`.

    Args:
        name: A folder, a `.gguf` file, or a name on the hub such as `HuggingFaceTB/SmolLM2-135M`.
        cache: Where converted GGUF files are kept, one folder for each content.
        revision: A branch, tag or commit on the hub; of no meaning for local models.

    Raises:
        WeightsMissing: There is no such model, or it is incomplete.
        UnsupportedModel: The family is not supported, or the weights are in a format that is not read.
    """
    folder = local_base_model(name, cache=cache, revision=revision)
    if folder is None:
        path = Path(name).expanduser()
        if not is_hub_name(name):
            raise WeightsMissing(f"There is no model at {path}.", hint="Check the path in `base_model`.")
        folder = download_model(name, revision)
    read_config(folder)
    weight_files(folder)
    return folder


def local_base_model(name: str, *, cache: Path, revision: str | None = None) -> Path | None:
    """Return the folder of the base model `name` if it is on this machine; never touches the network.

    A folder is returned as it is, be it complete or not; a hub model only if all of it is cached.

    Raises:
        UnsupportedModel: `name` is a file of another kind than GGUF, or cannot be read.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise UnsupportedModel(
                f"{path} is a file, but not a .gguf file.", hint="Give a model's folder, a .gguf file, or a hub name."
            )
        return _converted(path, cache)
    return cached_model(name, revision) if is_hub_name(name) else None


def is_hub_name(name: str) -> bool:
    """Whether `name` can be that of a model on the hub."""
    return _HUB_NAME.fullmatch(name) is not None and not name.lower().endswith(".gguf")


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of the model in `folder`; never touches the network.

    Raises:
        WeightsMissing: The folder holds no tokenizer that can be read.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise WeightsMissing(
            f"Cannot load the tokenizer of {folder}: {brief(error)}",
            hint="The folder must hold tokenizer.json and tokenizer_config.json of the model.",
        ) from error
    return tokenizer


def model_digest(folder: Path, *, cache: Path) -> str:
    """Return what identifies the base model: a hex digest over its configuration and all its tensors.

    Two folders have the same digest if they compute the same; names, file layout and metadata do not count. The
    digest of unchanged files (path, sizes, times) is remembered under `cache`, so that a warm start costs nothing.

    Raises:
        WeightsMissing: The model is incomplete.
        UnsupportedModel: Its family is not supported.
    """
    return manifest_of(folder, cache=cache).model_digest(maths_of(read_config(folder)))


def maths_of(config: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a `config.json` that changes what the model computes."""
    return {key: value for key, value in config.items() if key in _MATHS and value is not None}


def _converted(gguf: Path, cache: Path) -> Path:
    """Return the folder with the converted GGUF file, converting it if this was not done before."""
    with _writing_to(cache):
        cache.mkdir(parents=True, exist_ok=True)
    folder = cache / remembered(cache, [gguf], "sha256", lambda: _sha256(gguf), is_hex)
    if leftovers(folder) or not _is_whole(folder, cache):
        # Two nodes of one machine may start together: one converts, the other waits for it.
        with _writing_to(cache), FileLock(folder.with_suffix(".lock")):
            if _is_whole(folder, cache):
                remove_leftovers(folder)
            else:
                convert_gguf(gguf, folder)
    return folder


@contextlib.contextmanager
def _writing_to(cache: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutOfDisk(
            f"Cannot write to {cache}: {error.strerror or error}.",
            hint="Make room there.",
        ) from error


def _is_whole(folder: Path, cache: Path) -> bool:
    """Return whether a conversion is there and undamaged; unchanged files are not read again."""
    if not (folder / "config.json").is_file():
        return False
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return remembered(cache, files, "intact", lambda: str(is_intact(folder)), lambda text: text == "True") == "True"


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
