"""What only this machine's owner decides: device, threads, addresses, name. No swarm can set these.

They stand in `config.toml` in the platform's configuration folder; flags go over them.
"""

from __future__ import annotations

import platform
import tomllib
from pathlib import Path
from typing import Annotated, Literal

import platformdirs
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from node.config.recipe import first_problem
from node.core.errors import ConfigError
from node.core.text import brief

MAX_BYTES = 1 << 20
Multiaddr = Annotated[str, Field(max_length=500, pattern=r"^/[\x21-\x7e]+$")]


def _host_name() -> str:
    name = "".join(c for c in platform.node().split(".")[0] if c.isalnum() or c in "_-")
    return name[:40] or "node"


class LocalSettings(BaseModel):
    """The settings of one machine."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d{1,2})?)$")] = "auto"
    """`auto` (the first GPU, else the CPU), `cpu`, `cuda`, or one GPU as `cuda:1`."""
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """CPU threads for training; the machine's default when unset."""
    stages: Annotated[str, Field(pattern=r"^(auto|all|none|\d{1,4}(-\d{1,4})?)$")] = "auto"
    """Parts of the model to hold, where the run cuts it: `auto` (what the swarm lacks most and this machine can
    hold), `all`, `none` (only train through others), one as `2`, or several as `0-3`, the last one included."""
    max_memory_gb: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """Memory of the device that may be used, in GB; what is free there when unset."""
    listen: Annotated[tuple[Multiaddr, ...], Field(max_length=16)] = ("/ip4/0.0.0.0/tcp/0",)
    """Multiaddresses to listen on."""
    announce: Annotated[tuple[Multiaddr, ...], Field(max_length=16)] = ()
    """Multiaddresses that others should dial; those listened on when empty."""
    bootstrap: Annotated[tuple[Multiaddr, ...], Field(max_length=4)] = ()
    """Public meeting points, which relay for this node if nobody can dial it."""
    coordinator: Annotated[str, Field(max_length=600, pattern=r"^(none|coordinator(\+insecure)?://.+)$")] | None = None
    """Address of a coordinator that helps peers to find each other; `none` for no more of one used before."""
    lan: bool = True
    """Whether the local network is told by multicast DNS what is trained here, so that others need no address."""
    name: Annotated[str, Field(min_length=1, max_length=40, pattern=r"^[\w .-]+$")] = Field(default_factory=_host_name)
    """This node's name on the others' screens."""
    metrics: Annotated[str, Field(max_length=300, pattern=r"^([\w.-]*:|\[[0-9A-Fa-f:.]+\]:)?\d{1,5}$")] | None = None
    """Where Prometheus may read metrics, as `HOST:PORT`; nowhere when unset."""
    track: Annotated[tuple[Literal["tensorboard", "wandb", "trackio"], ...], Field(max_length=3)] = ()
    """Trackers that get this node's figures; none when unset."""

    @field_validator("listen", "announce", "bootstrap", "track", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value


def default_path() -> Path:
    """Return where the owner's settings are looked for."""
    return Path(platformdirs.user_config_dir("potluck", appauthor=False)) / "config.toml"


def load_local(path: Path | None = None, **flags: object) -> LocalSettings:
    """Read the owner's settings; a missing file is an empty one.

    Args:
        path: Another file than `default_path()`; this one must exist.
        flags: Fields of `LocalSettings` from the command line; None and empty sequences are unset.

    Raises:
        ConfigError: The file cannot be read, or a value is not allowed.
    """
    file = path or default_path()
    values: dict[str, object] = {}
    if path or file.exists():
        values = _read(file)
    given = {name: value for name, value in flags.items() if value is not None and value not in ((), [])}
    for source, origin in ((values, str(file)), ({**values, **given}, "command line")):
        try:
            settings = LocalSettings.model_validate(source)
        except ValidationError as error:
            raise ConfigError(
                f"{origin}: {first_problem(error)}", hint=f"allowed are {', '.join(LocalSettings.model_fields)}"
            ) from error
    return settings


def _read(file: Path) -> dict[str, object]:
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{file} is larger than {MAX_BYTES} bytes, so these are no settings")
    try:
        return tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{file}: not valid TOML: {brief(error)}") from error
