"""Data sets with a hub name, and folders written by `datasets`: the only file that knows the `datasets` library."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets

from node.config.sections import DatasetSpec
from node.core.errors import DataError
from node.core.text import brief
from node.data.rows import Row, Rows


def is_saved_folder(path: Path) -> bool:
    """Return whether `path` was written by `Dataset.save_to_disk`."""
    return (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file()


def read_saved(path: Path, split: str) -> Rows:
    """Yield the rows of a folder written by `save_to_disk`.

    Raises:
        DataError: It cannot be read, or has no such split.
    """
    try:
        data = datasets.load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable by datasets {datasets.__version__}: {brief(error)}") from error
    if isinstance(data, datasets.DatasetDict):
        if split not in data:
            raise DataError(f"{path}: there is no split '{split}'", hint=f"it has {', '.join(data)}")
        data = data[split]
    return _rows(str(path), data)


def read_hub(spec: DatasetSpec) -> Rows:
    """Yield the rows of a hub data set; `HF_HUB_OFFLINE=1` reads the cache alone.

    Raises:
        DataError: It cannot be had.
    """
    datasets.disable_progress_bars()
    try:
        data = datasets.load_dataset(
            spec.path,
            spec.name,
            split=spec.split,
            revision=spec.revision,
            data_files=list(spec.data_files) or None,
        )
    except Exception as error:  # fsspec, httpx, pyarrow and the hub each raise their own kinds
        reason = " ".join(str(error).split())[:300]
        raise DataError(
            f"cannot load the data set '{spec.path}': {reason}",
            hint="no file or folder has that name, so it was looked up on the hub: check the spelling and the network, "
            "or give a local file with --data",
        ) from error
    return _rows(spec.path, data)


def _rows(name: str, data: Any) -> Rows:
    for number, value in enumerate(data, 1):
        assert isinstance(value, Mapping)
        yield Row(f"{name}: row {number}", value)
