"""Tiny random models of every supported family, saved once a session, and a microbatch for them."""

from array import array
from pathlib import Path

import pytest
import torch
from tiny_models import FAMILIES, save_tiny

from node.core.types import Document, Microbatch


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Return the folder of a tiny model of the family named."""
    made: dict[str, Path] = {}

    def folder_of(family: str) -> Path:
        if family not in made:
            made[family] = save_tiny(tmp_path_factory.mktemp("models") / family, **FAMILIES[family])
        return made[family]

    return folder_of


@pytest.fixture(scope="session")
def documents() -> list[Document]:
    """Four documents of random tokens with labels on a random half of them."""
    generator = torch.Generator().manual_seed(5)
    made = []
    for length in (33, 7, 1, 24):
        ids = torch.randint(3, 160, (length,), generator=generator)
        labels = torch.where(torch.rand(length, generator=generator) < 0.5, ids, -100)
        labels[0] = -100
        made.append(Document(array("i", ids.tolist()), array("i", labels.tolist())))
    return made


@pytest.fixture(scope="session")
def batch(documents) -> Microbatch:
    """The four documents as one microbatch."""
    return Microbatch.of(0, documents)
