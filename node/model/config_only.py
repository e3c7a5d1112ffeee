"""A base model's configuration without its weights, for whoever only wants to know how large it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

from node.core.errors import WeightsMissing
from node.model.families import read_config
from node.model.source import resolve_base_model


def base_model_config(name: str, *, cache: Path, revision: str | None = None) -> dict[str, Any]:
    """Return the `config.json` of the base model `name`; of a hub model nothing else is fetched.

    Args:
        name: A folder, a `.gguf` file (converted once, as for training), or a name on the hub.
        cache: Where converted GGUF files are kept.
        revision: A branch, tag or commit on the hub.

    Raises:
        WeightsMissing: There is no such model, or its configuration cannot be fetched.
        UnsupportedModel: Its family is not supported.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return read_config(path)
    if path.exists() or path.suffix.lower() == ".gguf":
        return read_config(resolve_base_model(name, cache=cache))
    try:
        try:
            file = hf_hub_download(name, "config.json", revision=revision, local_files_only=True)
        except LocalEntryNotFoundError:
            file = hf_hub_download(name, "config.json", revision=revision)
    except HFValidationError as error:
        raise WeightsMissing(f"There is no model at {path}.", hint="Check the path in `base_model`.") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise WeightsMissing(
            f"The configuration of {name} is not in the hub's cache and cannot be fetched: {type(error).__name__}.",
            hint="Check the name and the network (and HF_HUB_OFFLINE), or give a folder that holds its config.json.",
        ) from error
    return read_config(Path(file).parent)
