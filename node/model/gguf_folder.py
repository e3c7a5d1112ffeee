"""Turn a GGUF file into a folder in Hugging Face's layout, once, and all or nothing."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

from node.core.errors import UnsupportedModel
from node.model.families import check_supported


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write the model in the file `gguf` to `folder` as bf16 safetensors, configuration and tokenizer.

    Parsing takes about 20 s for a small model, most of it for the vocabulary, hence once and cached. The folder
    appears complete or not at all; whoever calls holds a lock against a second process.

    Raises:
        UnsupportedModel: The file cannot be read, or its model's family is not supported.
    """
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name, "local_files_only": True}
    try:
        config = AutoConfig.from_pretrained(**source)
        check_supported({"model_type": config.model_type})
        model = AutoModelForCausalLM.from_pretrained(
            **source, config=config, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
        )
        tokenizer = AutoTokenizer.from_pretrained(**source)
    except (ValueError, KeyError, NotImplementedError, OSError, RuntimeError) as error:
        raise UnsupportedModel(
            f"Cannot read the model in {gguf}: {error}",
            hint="Use the model's folder with safetensors files instead of the GGUF file.",
        ) from error
    # transformers keeps the mark of the quantised file on the dequantised model and then refuses to save it.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        for file in temporary.iterdir():
            _sync(file)
        _sync(temporary)
        os.replace(temporary, folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
