"""This module returns the embedding of an image: from memory, a folder, Redis, or the encoder.

The key of an embedding is the digest of the image's pixels, with the model type, weights and
precision. An *alias* maps the digest of a base64 text or image file, and a page, to the digest of
the pixels. So a known text need not be decoded, and the same picture in another file format has the
same embedding. Aliases outlive an upgrade in the folder and in Redis, so their names have the
version of the decoding rules.

An image is looked up in this order:

    memory   this process: embeddings with the part of decoding that all prompts share
    machine  a folder that the workers of all lanes on this machine share (`folder_store.py`)
    redis    a Redis that several machines share (`redis_store.py`), if there is one
    encoder  one process at a time encodes an image; the others wait, and then find it stored

If any of them loses an entry, the next request takes longer, but its answer is the same.
"""

from __future__ import annotations

import hashlib
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from samserve.network.decoder import Decoder, Image
from samserve.network.encoder import Embedding, Encoder
from samserve.pictures.decoding import DECODING_RULES
from samserve.pictures.picture import Picture

from .folder_store import FolderStore
from .memory import MemoryCache
from .payloads import Alias, embedding_from_bytes, embedding_to_bytes

if TYPE_CHECKING:  # its import of the redis package is needed only with a shared Redis
    from .redis_store import RedisStore

ENCODING_TIMEOUT_S = 300.0
"""How long to wait for another worker that encodes the same image. It is enough for vit_h on two
cores."""

Source = Literal["memory", "machine", "redis", "encoder"]


@dataclass(frozen=True)
class EmbeddedImage:
    """An image that is ready for prompts.

    Attributes:
        image: the embedding, and the part of decoding that all prompts share.
        source: where the embedding came from.
        pages: the number of pages of the picture's file.
    """

    image: Image
    source: Source
    pages: int = 1


class EmbeddingCache:
    """The embeddings of one model by the content of images, in four places.

    Args:
        encoder, decoder: the model's encoder and decoder.
        identity: the part of the keys that stands for model type, weights and precision.
        memory_bytes: the memory for images of this process; 0 to keep none.
        store: the folder that the workers on this machine share, or None.
        shared: the Redis that machines share, or None.

    Attributes:
        found: the number of images by source. `encoder` counts encoded images.
    """

    def __init__(
        self,
        encoder: Encoder,
        decoder: Decoder,
        *,
        identity: str,
        memory_bytes: int,
        store: FolderStore | None,
        shared: RedisStore | None = None,
    ) -> None:
        self._encoder = encoder
        self._decoder = decoder
        self._identity = identity
        self._memory = MemoryCache(memory_bytes)
        self._store = store
        self._shared = shared
        self.found: Counter[str] = Counter()

    @property
    def redis_outcomes(self) -> Mapping[str, int]:
        """The number of operations on Redis by `redis_store.Outcome`."""
        return {} if self._shared is None else self._shared.outcomes

    def of_picture(self, picture: Picture) -> EmbeddedImage:
        """Return the image of a picture, encoded if it is not known.

        Raises:
            SamserveError: the picture cannot be decoded, or is too thin to encode.
        """
        name = _alias_name(picture)
        alias = self._alias(name)
        entry = None if alias is None else self._known(self._key(alias.pixels_digest))
        if alias is None or entry is None or _pixel_count(entry.image) > picture.max_pixels:
            alias = Alias(digest_of(picture.pixels), picture.pages)
            key = self._key(alias.pixels_digest)
            entry = self._known(key) or self._encode(picture.pixels, key)
            self._save(name, alias.to_bytes())
        self._memory.keep_alias(name, alias)
        self.found[entry.source] += 1
        return replace(entry, pages=alias.pages)

    def of_pixels(self, pixels: NDArray[np.uint8]) -> EmbeddedImage:
        """Return the image with these H×W×3 uint8 RGB pixels, encoded if it is not known.

        Raises:
            InvalidImage: the image is too thin to encode.
        """
        key = self._key(digest_of(pixels))
        entry = self._known(key) or self._encode(pixels, key)
        self.found[entry.source] += 1
        return entry

    def of_tile(self, pixels: NDArray[np.uint8]) -> Image:
        """Encode a tile of a large picture, H×W×3 uint8 RGB.

        It is not kept, because the tiles of one picture would displace all other images.

        Raises:
            InvalidImage: the tile is too thin to encode.
        """
        self.found["encoder"] += 1
        return self._decoder.prepare(self._encoder.encode(np.ascontiguousarray(pixels)))

    def _alias(self, name: str) -> Alias | None:
        """Return the alias that is stored under a page's name, if there is one."""
        alias = self._memory.alias(name)
        if alias is not None:
            return alias
        for place in (self._store, self._shared):
            stored = None if place is None else place.load(name)
            # Bytes that are not an alias are a miss.
            alias = None if stored is None else Alias.from_bytes(stored)
            if alias is not None:
                return alias
        return None

    def _known(self, key: str) -> EmbeddedImage | None:
        return self._known_here(key) or self._known_elsewhere(key)

    def _known_here(self, key: str) -> EmbeddedImage | None:
        image = self._memory.image(key)
        if image is not None:
            return EmbeddedImage(image, "memory")
        stored = None if self._store is None else self._store.load(key)
        return None if stored is None else self._stored(stored, key, "machine")

    def _known_elsewhere(self, key: str) -> EmbeddedImage | None:
        stored = None if self._shared is None else self._shared.load(key)
        if stored is None:
            return None
        entry = self._stored(stored, key, "redis")
        if entry is not None and self._store is not None:
            self._store.save(key, stored)  # for the other workers on this machine
        return entry

    def _stored(self, stored: bytes, key: str, source: Source) -> EmbeddedImage | None:
        embedding = embedding_from_bytes(stored, self._encoder.family, self._encoder.device)
        return None if embedding is None else EmbeddedImage(self._prepared(embedding, key), source)

    def _encode(self, pixels: NDArray[np.uint8], key: str) -> EmbeddedImage:
        if self._store is None:
            return self._encoded(pixels, key)
        with self._store.lock(key, ENCODING_TIMEOUT_S):
            # Another worker may have stored it while we waited.
            return self._known_here(key) or self._encoded(pixels, key)

    def _encoded(self, pixels: NDArray[np.uint8], key: str) -> EmbeddedImage:
        embedding = self._encoder.encode(pixels)
        if self._store is not None or self._shared is not None:
            self._save(key, embedding_to_bytes(embedding))
        return EmbeddedImage(self._prepared(embedding, key), "encoder")

    def _save(self, key: str, payload: bytes) -> None:
        for place in (self._store, self._shared):
            if place is not None:
                place.save(key, payload)

    def _prepared(self, embedding: Embedding, key: str) -> Image:
        image = self._decoder.prepare(embedding)
        self._memory.keep_image(key, image)
        return image

    def _key(self, pixels_digest: str) -> str:
        return f"{pixels_digest}-{self._identity}"


def digest_of(pixels: NDArray[np.uint8]) -> str:
    """Return the SHA-256, in hex, of an H×W×3 image: of its size and its pixels."""
    content = hashlib.sha256(struct.pack("<2I", *pixels.shape[:2]))
    content.update(np.ascontiguousarray(pixels).data)
    return content.hexdigest()


def _alias_name(picture: Picture) -> str:
    """Return the name of a page's alias, in every place."""
    return f"text-{picture.digest}-rules-{DECODING_RULES}-page-{picture.page}"


def _pixel_count(image: Image) -> int:
    height, width = image.embedding.original_size
    return height * width
