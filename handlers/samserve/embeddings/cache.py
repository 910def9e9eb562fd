"""Where an image's embedding comes from: memory, this machine, other machines, or the encoder.

An image is known by its content: by the digest of the base64 text and the page first, which costs
next to nothing, and by the digest of its pixels second, so that the same picture in another file
format is known too. Embeddings are kept per model, weights and precision; what a text decodes to,
per version of the rules of decoding, for it outlives an upgrade in the folder and in Redis.

Four places, asked in this order:

    memory   decoded images' embeddings with what the decoder makes of them; this process
    machine  embeddings in a folder (`store.py`) that the workers of all lanes share
    redis    embeddings that the machines share (`redis_store.py`), where they do
    encoder  one process at a time for one image; the others wait and find it stored

Losing any of it costs time, never an answer.
"""

from __future__ import annotations

import hashlib
import re
import struct
import threading
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from samserve.network.decoder import Decoder, Image
from samserve.network.encoder import Embedding, Encoder
from samserve.pictures.picture import DECODING_RULES, Picture

from .folder_store import EmbeddingStore

if TYPE_CHECKING:  # it imports Redis's client, which most have no use for
    from .redis_store import RedisStore

ENCODING_TIMEOUT_S = 300.0
"""How long to wait for another worker that is encoding the same image: vit_h on two cores."""

_SIZES = struct.Struct("<4I")  # input height, width; original height, width
_FEATURES = (1, 256, 64, 64)
_ALIAS = re.compile(rb"([0-9a-f]{64}) ([1-9][0-9]{0,9})")

Source = Literal["memory", "machine", "redis", "encoder"]


@dataclass(frozen=True)
class Found:
    """An image ready for prompts.

    Attributes:
        image: ready for prompts.
        source: the place that had it.
        pages: how many the picture has, of which this is one.
    """

    image: Image
    source: Source
    pages: int = 1


@dataclass(frozen=True)
class _Alias:
    """What a page of a text or file decodes to.

    Attributes:
        pixels_digest: of its pixels, as `digest_of`.
        pages: how many the file has.
    """

    pixels_digest: str
    pages: int

    def to_bytes(self) -> bytes:
        return f"{self.pixels_digest} {self.pages}".encode()

    @classmethod
    def from_bytes(cls, stored: bytes) -> _Alias | None:
        """None where these are not the bytes of an alias."""
        found = _ALIAS.fullmatch(stored)
        return None if found is None else cls(found[1].decode(), int(found[2]))


class EmbeddingCache:
    """Embeddings by content.

    Args:
        encoder, decoder: the model's.
        identity: what else an embedding depends on: model type, weights, precision.
        memory_bytes: how much this process keeps; 0 for nothing.
        store: the machine's folder, or None for none.
        shared: what the machines share, or None for nothing.
    """

    def __init__(
        self,
        encoder: Encoder,
        decoder: Decoder,
        *,
        identity: str,
        memory_bytes: int,
        store: EmbeddingStore | None,
        shared: RedisStore | None = None,
    ) -> None:
        self._encoder = encoder
        self._decoder = decoder
        self._identity = identity
        self._memory = _Memory(memory_bytes)
        self._store = store
        self._shared = shared
        self.found: Counter[str] = Counter()
        """How often each place had what was asked for; `encoder` counts encodings."""

    @property
    def redis_outcomes(self) -> Mapping[str, int]:
        """How the dealings with Redis went, by `redis_store.Outcome`."""
        return {} if self._shared is None else self._shared.outcomes

    def of_picture(self, picture: Picture) -> Found:
        """The image that was sent.

        Raises:
            SamserveError: it cannot be decoded, or is too thin to encode.
        """
        name = _alias_name(picture)
        alias = self._alias(name)
        found = None if alias is None else self._known(self._key(alias.pixels_digest))
        if alias is None or found is None or _pixels(found.image) > picture.max_pixels:
            alias = _Alias(digest_of(picture.pixels), picture.pages)
            key = self._key(alias.pixels_digest)
            found = self._known(key) or self._encode(picture.pixels, key)
            self._save(name, alias.to_bytes())
        self._memory.remember_alias(name, alias)
        self.found[found.source] += 1
        return replace(found, pages=alias.pages)

    def of_pixels(self, pixels: NDArray[np.uint8]) -> Found:
        """H×W×3 uint8 RGB.

        Raises:
            InvalidImage: too thin to encode.
        """
        key = self._key(digest_of(pixels))
        found = self._known(key) or self._encode(pixels, key)
        self.found[found.source] += 1
        return found

    def of_tile(self, pixels: NDArray[np.uint8]) -> Image:
        """H×W×3 uint8 RGB, one of many of a large picture: encoded and not kept, for together
        they would drive out everybody else's images.

        Raises:
            InvalidImage: too thin to encode.
        """
        self.found["encoder"] += 1
        return self._decoder.prepare(self._encoder.encode(np.ascontiguousarray(pixels)))

    def _alias(self, name: str) -> _Alias | None:
        """What is remembered under this name of a page, if it was seen."""
        known = self._memory.alias(name)
        if known is not None:
            return known
        for place in (self._store, self._shared):
            stored = None if place is None else place.load(name)
            # Whatever else lies there is nobody's alias.
            alias = None if stored is None else _Alias.from_bytes(stored)
            if alias is not None:
                return alias
        return None

    def _known(self, key: str) -> Found | None:
        return self._known_here(key) or self._known_elsewhere(key)

    def _known_here(self, key: str) -> Found | None:
        image = self._memory.get(key)
        if image is not None:
            return Found(image, "memory")
        stored = None if self._store is None else self._store.load(key)
        return None if stored is None else self._stored(stored, key, "machine")

    def _known_elsewhere(self, key: str) -> Found | None:
        stored = None if self._shared is None else self._shared.load(key)
        if stored is None:
            return None
        found = self._stored(stored, key, "redis")
        if found is not None and self._store is not None:
            self._store.save(key, stored)  # for the others here
        return found

    def _stored(self, stored: bytes, key: str, source: Source) -> Found | None:
        embedding = _from_bytes(stored, self._encoder.device)
        return None if embedding is None else Found(self._prepared(embedding, key), source)

    def _encode(self, pixels: NDArray[np.uint8], key: str) -> Found:
        if self._store is None:
            return self._encoded(pixels, key)
        with self._store.lock(key, ENCODING_TIMEOUT_S):
            # Another worker may have stored it while we waited.
            return self._known_here(key) or self._encoded(pixels, key)

    def _encoded(self, pixels: NDArray[np.uint8], key: str) -> Found:
        embedding = self._encoder.encode(pixels)
        if self._store is not None or self._shared is not None:
            self._save(key, _to_bytes(embedding))
        return Found(self._prepared(embedding, key), "encoder")

    def _save(self, key: str, payload: bytes) -> None:
        for place in (self._store, self._shared):
            if place is not None:
                place.save(key, payload)

    def _prepared(self, embedding: Embedding, key: str) -> Image:
        image = self._decoder.prepare(embedding)
        self._memory.put(key, image)
        return image

    def _key(self, pixels_digest: str) -> str:
        return f"{pixels_digest}-{self._identity}"


class _Memory:
    """The images used last, within a number of bytes; safe between threads."""

    _MAX_ALIASES = 4096

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._images: OrderedDict[str, Image] = OrderedDict()
        self._aliases: OrderedDict[str, _Alias] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str) -> Image | None:
        with self._lock:
            if key in self._images:
                self._images.move_to_end(key)
            return self._images.get(key)

    def put(self, key: str, image: Image) -> None:
        with self._lock:
            self._images[key] = image
            self._images.move_to_end(key)
            while sum(image.nbytes for image in self._images.values()) > self._max_bytes:
                self._images.popitem(last=False)

    def alias(self, name: str) -> _Alias | None:
        with self._lock:
            return self._aliases.get(name)

    def remember_alias(self, name: str, alias: _Alias) -> None:
        with self._lock:
            self._aliases[name] = alias
            self._aliases.move_to_end(name)
            while len(self._aliases) > self._MAX_ALIASES:
                self._aliases.popitem(last=False)


def digest_of(pixels: NDArray[np.uint8]) -> str:
    """SHA-256 of an H×W×3 image: of its size and its pixels."""
    content = hashlib.sha256(struct.pack("<2I", *pixels.shape[:2]))
    content.update(np.ascontiguousarray(pixels).data)
    return content.hexdigest()


def _alias_name(picture: Picture) -> str:
    """Under what a page of a sent text or file is remembered, in every place."""
    return f"text-{picture.digest}-rules-{DECODING_RULES}-page-{picture.page}"


def _pixels(image: Image) -> int:
    height, width = image.embedding.original_size
    return height * width


def _to_bytes(embedding: Embedding) -> bytes:
    sizes = _SIZES.pack(*embedding.input_size, *embedding.original_size)
    return sizes + embedding.features.cpu().numpy().tobytes()


def _from_bytes(stored: bytes, device: torch.device) -> Embedding | None:
    """None where these are not the bytes of an embedding."""
    if len(stored) != _SIZES.size + 4 * np.prod(_FEATURES):
        return None
    in_h, in_w, height, width = _SIZES.unpack_from(stored)
    features = np.frombuffer(stored, np.float32, offset=_SIZES.size).reshape(_FEATURES)
    # A copy: PyTorch wants memory that may be written.
    return Embedding(torch.tensor(features, device=device), (in_h, in_w), (height, width))
