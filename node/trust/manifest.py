"""What the base model of a run consists of: every tensor and every small file, with its digest.

The founder signs the manifest's digest in the run's seal, so that a peer which has nothing of the model can take it
piece by piece from peers it need not trust. The manifest itself is too large for the seal (a model of 70 B parameters
has 723 tensors, about 150 kB) and travels on its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator

from node.core.errors import ProtocolViolation
from node.core.text import brief
from node.core.types import PeerId
from node.trust.seal import ModelIdentity

MAX_MANIFEST_BYTES = 8 << 20
MAX_SMALL_FILE_BYTES = 64 << 20
"""The largest tokenizers have about 35 MB."""
MAX_TENSOR_BYTES = 64 << 30

SMALL_FILES = frozenset(
    {
        "added_tokens.json",
        "chat_template.jinja",
        "chat_template.json",
        "config.json",
        "generation_config.json",
        "merges.txt",
        "sentencepiece.bpe.model",
        "special_tokens_map.json",
        "spiece.model",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "vocab.json",
        "vocab.txt",
    }
)
"""The only names under which files beside the weights are handed on and taken."""

_Name = Annotated[str, StringConstraints(min_length=1, max_length=300, pattern=r"^[\w.\-]+$")]
_Hex = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class TensorFacts(BaseModel):
    """One tensor of the checkpoint, as it is stored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: str = Field(pattern=r"^[A-Z0-9_]{1,16}$")
    """As safetensors spells it, such as `BF16`."""
    shape: tuple[Annotated[int, Field(ge=0, le=1 << 40)], ...] = Field(max_length=8)
    num_bytes: int = Field(ge=0, le=MAX_TENSOR_BYTES)
    digest: _Hex
    """BLAKE2b-256 over dtype, shape and bytes (`tensor_hash`)."""


class FileFacts(BaseModel):
    """One small file beside the weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_bytes: int = Field(ge=0, le=MAX_SMALL_FILE_BYTES)
    sha256: _Hex


class Manifest(BaseModel):
    """All tensors and small files of a base model, by name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tensors: dict[_Name, TensorFacts] = Field(max_length=50_000)
    files: dict[str, FileFacts] = Field(max_length=len(SMALL_FILES))

    @field_validator("files")
    @classmethod
    def _only_known_names(cls, files: dict[str, FileFacts]) -> dict[str, FileFacts]:
        if unknown := sorted(files.keys() - SMALL_FILES):
            raise ValueError(f"a file that no model needs: {unknown[0]!r}")
        return files

    @property
    def names(self) -> list[str]:
        """The tensors' names in the order in which peers count them."""
        return sorted(self.tensors)

    def to_bytes(self) -> bytes:
        """Return the canonical encoding, which `digest` is over."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":")).encode()

    @property
    def digest(self) -> str:
        """SHA-256 in hex, for the seal."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def model_digest(self, maths: Mapping[str, Any]) -> str:
        """Return the digest of the model with these tensors and the configuration `maths`."""
        return digest_of(maths, {name: facts.digest for name, facts in self.tensors.items()})


def digest_of(maths: Mapping[str, Any], tensors: Mapping[str, str]) -> str:
    """Return the model's digest from its configuration's maths and the digests of its tensors."""
    canonical = json.dumps({"config": dict(maths), "tensors": dict(tensors)}, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=32).hexdigest()


def tensor_hash(dtype: str, shape: tuple[int, ...]) -> hashlib.blake2b:
    """Return the hash of a tensor, begun: its bytes are still to be fed in."""
    return hashlib.blake2b(f"{dtype}:{list(shape)}:".encode(), digest_size=32)


def open_manifest(data: bytes, model: ModelIdentity, *, sender: PeerId) -> Manifest:
    """Read the manifest of the run's base model, from `sender` or from a file.

    Raises:
        ProtocolViolation: it is not the one that the founder signed.
    """
    if len(data) > MAX_MANIFEST_BYTES or hashlib.sha256(data).hexdigest() != model.manifest:
        raise ProtocolViolation(f"{sender} sent a list of weights that is not the founder's.", peer_id=sender)
    try:
        manifest = Manifest.model_validate_json(data)
    except (ValidationError, RecursionError) as error:
        raise ProtocolViolation(
            f"The founder's list of weights cannot be read: {brief(error)}.", peer_id=sender
        ) from error
    if manifest.model_digest(model.config) != model.digest:
        raise ProtocolViolation("The founder's list of weights is not that of its base model.", peer_id=sender)
    return manifest
