"""Which model families this program trains, and what it takes to train one.

A family is supported when its decoder layers pass the tests of `tests/model`: packed documents give the same numbers
as each document alone, and a shard gives the same numbers as the whole model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from node.core.errors import UnsupportedModel, WeightsMissing
from node.core.text import brief

SUPPORTED = ("gemma2", "gemma3_text", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "smollm3")
"""Values of `model_type` in a model's `config.json`."""

MAX_CONFIG_BYTES = 4 << 20
"""A `config.json` has some kB; a larger one is not a configuration."""

_QUANTISED_HINT = "Use the unquantised model (bf16 or fp32 safetensors); it is quantised to NF4 while it is loaded."


def read_config(folder: Path) -> dict[str, Any]:
    """Return the model's `config.json` after checking that the family is supported.

    Raises:
        WeightsMissing: There is no readable `config.json`.
        UnsupportedModel: The family is not supported, or the weights are stored quantised.
    """
    path = folder / "config.json"
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise WeightsMissing(
                f"{path} is {path.stat().st_size} bytes long, more than a configuration can be.",
                hint="Download the model again.",
            )
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsMissing(
            f"{folder} holds no config.json, so it is not a model folder.",
            hint="Give a folder in Hugging Face's layout, a .gguf file, or a name on the hub.",
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsMissing(f"Cannot read {path}: {brief(error)}.", hint="Download the model again.") from error
    if not isinstance(config, dict):
        raise WeightsMissing(f"{path} is not a JSON object.", hint="Download the model again.")
    check_supported(config)
    return config


def check_supported(config: dict[str, Any]) -> None:
    """Raise UnsupportedModel if this program cannot train a model with this configuration."""
    family = config.get("model_type")
    if family == "gemma3":
        raise UnsupportedModel(
            "This Gemma 3 model also reads images (model_type gemma3), and only text models are supported.",
            hint="Use a text-only one: google/gemma-3-1b-it or google/gemma-3-270m-it.",
        )
    if family not in SUPPORTED:
        raise UnsupportedModel(
            f"Models of the type {brief(repr(family), 60)} are not supported.",
            hint=f"Supported types: {', '.join(SUPPORTED)}.",
        )
    if config.get("quantization_config"):
        raise UnsupportedModel("The model's weights are already quantised.", hint=_QUANTISED_HINT)
    if config.get("auto_map"):
        raise UnsupportedModel(
            "The model brings its own Python code (auto_map in config.json), and code from a model is never run.",
            hint="Use a copy of the model without custom code; its type is supported as it stands.",
        )
