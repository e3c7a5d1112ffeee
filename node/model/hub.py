"""Models on the Hugging Face hub: what is cached is never asked for again, and no file is taken that is not needed."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from node.core.errors import WeightsMissing
from node.core.text import brief
from node.model.weights import named_files, weight_files
from node.trust.manifest import SMALL_FILES

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_SMALL = [*sorted(SMALL_FILES), _INDEX]


def cached_model(name: str, revision: str | None) -> Path | None:
    """Return the folder of a hub model if all of it is in the hub's cache; never touches the network."""
    try:
        # What is cached must not touch the network, so the cache is tried for completeness.
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=_SMALL, local_files_only=True))
        weight_files(folder)
    except (LocalEntryNotFoundError, WeightsMissing, HFValidationError):
        return None
    return folder


def download_model(name: str, revision: str | None) -> Path:
    """Return the folder of a hub model, downloading what of it is not cached.

    Raises:
        WeightsMissing: The hub does not have it, does not give it out, or cannot be reached.
    """
    folder = download_small_files(name, revision)
    files = {file.name for file in named_files(folder).values()} if _is_indexed(folder) else {_SINGLE}
    return _with_files(name, folder, files)


def download_small_files(name: str, revision: str | None) -> Path:
    """Return the folder of a hub model with configuration, tokenizer and index, and perhaps without weights.

    Raises:
        WeightsMissing: As `download_model`.
    """
    return cached_model(name, revision) or _download(name, revision, _SMALL)


def download_tensors(name: str, revision: str | None, tensors: Collection[str]) -> Path:
    """Return the folder of a hub model with the files that hold `tensors`, and perhaps without the others.

    Raises:
        WeightsMissing: As `download_model`, or the model has no such tensors.
    """
    folder = download_small_files(name, revision)
    if not _is_indexed(folder):
        return _with_files(name, folder, {_SINGLE})
    by_name = named_files(folder)
    if absent := sorted(set(tensors) - set(by_name)):
        raise WeightsMissing(f"The index of {name} does not name the tensor {absent[0]}.", hint="Check the revision.")
    return _with_files(name, folder, {by_name[tensor].name for tensor in tensors})


def _is_indexed(folder: Path) -> bool:
    return (folder / _INDEX).is_file()


def _with_files(name: str, folder: Path, files: set[str]) -> Path:
    if all((folder / file).is_file() for file in files):
        return folder
    # The folder is named by its commit: all files must be of the same one, even if the branch moves on meanwhile.
    return _download(name, folder.name, sorted(files))


def _download(name: str, revision: str | None, patterns: list[str]) -> Path:
    where = f"{name} (revision {revision})" if revision else name
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise WeightsMissing(
            f"The hub does not give out {where}: {type(error).__name__}.",
            hint="Check the name; if the model asks you to accept its terms, do so and run `hf auth login`.",
        ) from error
    except (OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
        raise WeightsMissing(
            f"{where} is neither a local path nor in the hub's cache, and the hub cannot be reached.",
            hint="Check the network (and HF_HUB_OFFLINE), or give a local folder or a .gguf file as `base_model`.",
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError, json.JSONDecodeError) as error:
        raise WeightsMissing(
            f"Cannot download {where}: {brief(error)}", hint="Check the name and the network."
        ) from error
