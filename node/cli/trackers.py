"""Which trackers there are: each is loaded only if it is asked for, since its library may not be there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def load_trackers(names: Sequence[str]) -> list[tuple[str, Any]]:
    """Return what opens each tracker, by name.

    Raises:
        ConfigError: one's library is missing, or it could not work.
    """
    from node.core.errors import ConfigError

    loaded = []
    for name in dict.fromkeys(names):
        try:
            loaded.append((name, _load(name)))
        except ImportError as error:
            raise ConfigError(
                f"--track {name}: its library is not installed here: {error}.",
                hint=f"Run `pip install 'potluck[{name}]'`, in a clone of the repository `pip install -e '.[{name}]'`.",
            ) from error
    return loaded


def _load(name: str) -> Any:
    if name == "tensorboard":
        from node.observe.track_tensorboard import TensorBoard

        return TensorBoard
    if name == "wandb":
        from node.observe.track_wandb import WeightsAndBiases, refuse_without_login

        refuse_without_login()
        return WeightsAndBiases
    assert name == "trackio", "the settings allow three names"
    from node.observe.track_trackio import Trackio

    return Trackio
