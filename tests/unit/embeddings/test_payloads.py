"""Embeddings as bytes: SAM 2's have two maps more, and no family reads another's."""

from __future__ import annotations

import math

import pytest
import torch

from samserve.embeddings.payloads import embedding_from_bytes, embedding_to_bytes
from samserve.network.encoder import Embedding
from samserve.network.families import SAM, SAM2, Family

CPU = torch.device("cpu")


def embedding(family: Family) -> Embedding:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 256, 64, 64, generator=generator)
    maps = tuple(torch.randn(shape, generator=generator) for shape in family.map_shapes)
    return Embedding(features, (1024, 500), (40, 800), family, maps)


@pytest.mark.parametrize("family", [SAM, SAM2], ids=lambda family: family.name)
def test_there_and_back(family: Family) -> None:
    original = embedding(family)
    stored = embedding_to_bytes(original)
    numbers = 256 * 64 * 64 + sum(map(math.prod, family.map_shapes))
    assert len(stored) == 16 + 4 * numbers
    again = embedding_from_bytes(stored, family, CPU)
    assert again is not None
    assert (again.input_size, again.original_size) == ((1024, 500), (40, 800))
    assert again.family is family
    assert torch.equal(again.features, original.features)
    assert len(again.maps) == len(original.maps)
    assert all(map(torch.equal, again.maps, original.maps))


def test_sam_2s_embedding_is_as_large_as_documented() -> None:
    assert len(embedding_to_bytes(embedding(SAM2))) == pytest.approx(16.8e6, rel=0.01)
    assert SAM.map_shapes == ()


@pytest.mark.parametrize(("writer", "reader"), [(SAM, SAM2), (SAM2, SAM)])
def test_another_familys_entry_is_none(writer: Family, reader: Family) -> None:
    assert embedding_from_bytes(embedding_to_bytes(embedding(writer)), reader, CPU) is None


@pytest.mark.parametrize("family", [SAM, SAM2], ids=lambda family: family.name)
def test_other_lengths_are_no_embedding(family: Family) -> None:
    stored = embedding_to_bytes(embedding(family))
    for other in (b"", stored[:-4], stored[:-1], stored + b"\0"):
        assert embedding_from_bytes(other, family, CPU) is None
