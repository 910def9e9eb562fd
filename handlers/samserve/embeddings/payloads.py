"""This module converts embeddings and aliases to the bytes that are stored, and back.

Stored bytes outlive an upgrade, so these layouts do not change.
"""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass

import numpy as np
import torch

from samserve.network.encoder import Embedding
from samserve.network.families import Family

_SIZES = struct.Struct("<4I")  # input height, width; original height, width
_FEATURES = (1, 256, 64, 64)
_ALIAS = re.compile(rb"([0-9a-f]{64}) ([1-9][0-9]{0,9})")


@dataclass(frozen=True)
class Alias:
    """The pixels that a page of a base64 text or an image file decodes to.

    Attributes:
        pixels_digest: the digest of the page's pixels, see `cache.digest_of`.
        pages: the number of pages in the file.
    """

    pixels_digest: str
    pages: int

    def to_bytes(self) -> bytes:
        """Return the bytes that are stored."""
        return f"{self.pixels_digest} {self.pages}".encode()

    @classmethod
    def from_bytes(cls, stored: bytes) -> Alias | None:
        """Return the alias with these bytes; None if they are not an alias."""
        match = _ALIAS.fullmatch(stored)
        return None if match is None else cls(match[1].decode(), int(match[2]))


def embedding_to_bytes(embedding: Embedding) -> bytes:
    """Return the bytes of an embedding that are stored: four sizes, the features, and the maps.

    The features and the maps are in float32.
    """
    sizes = _SIZES.pack(*embedding.input_size, *embedding.original_size)
    parts = (embedding.features, *embedding.maps)
    return sizes + b"".join(part.cpu().numpy().tobytes() for part in parts)


def embedding_from_bytes(stored: bytes, family: Family, device: torch.device) -> Embedding | None:
    """Return the embedding with these bytes, on `device`; None if they are not an embedding.

    Args:
        family: the architecture of the network that reads it.
    """
    shapes = (_FEATURES, *family.map_shapes)
    if len(stored) != _SIZES.size + 4 * sum(map(math.prod, shapes)):
        return None
    in_h, in_w, height, width = _SIZES.unpack_from(stored)
    parts, offset = [], _SIZES.size
    for shape in shapes:
        numbers = np.frombuffer(stored, np.float32, math.prod(shape), offset).reshape(shape)
        # torch.tensor copies: PyTorch warns about memory that is read-only.
        parts.append(torch.tensor(numbers, device=device))
        offset += numbers.nbytes
    features, *maps = parts
    return Embedding(features, (in_h, in_w), (height, width), family, tuple(maps))
