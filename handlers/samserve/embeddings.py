"""Where an image's embedding comes from: this worker's memory, this machine, or the encoder.

An image is known by its content: by the digest of the base64 text first, which costs next to
nothing, and by the digest of its pixels second, so that the same picture in another file
format is known too. Embeddings are kept per model, weights and precision.

Three places, asked in this order:

    memory   decoded images' embeddings with what the decoder makes of them; this process
    machine  embeddings in a folder (`store.py`) that the workers of all lanes share
    encoder  one process at a time for one image; the others wait and find it stored

Losing any of it costs time, never an answer.
"""

from __future__ import annotations

import hashlib
import re
import struct
import threading
from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from .decoder import Decoder, Image
from .encoder import Embedding, Encoder
from .images import Picture
from .store import EmbeddingStore

ENCODING_TIMEOUT_S = 300.0
"""How long to wait for another worker that is encoding the same image: vit_h on two cores."""

_SIZES = struct.Struct("<4I")  # input height, width; original height, width
_FEATURES = (1, 256, 64, 64)
_DIGEST = re.compile(rb"[0-9a-f]{64}")

Source = Literal["memory", "machine", "encoder"]


@dataclass(frozen=True)
class Found:
    """An image ready for prompts, and which place had it."""

    image: Image
    source: Source


class EmbeddingCache:
    """Embeddings by content.

    Args:
        encoder, decoder: the model's.
        identity: what else an embedding depends on: model type, weights, precision.
        memory_bytes: how much this process keeps; 0 for nothing.
        store: the machine's folder, or None for none.
    """

    def __init__(
        self,
        encoder: Encoder,
        decoder: Decoder,
        *,
        identity: str,
        memory_bytes: int,
        store: EmbeddingStore | None,
    ) -> None:
        self._encoder = encoder
        self._decoder = decoder
        self._identity = identity
        self._memory = _Memory(memory_bytes)
        self._store = store
        self.found: Counter[Source] = Counter()
        """How often each place had what was asked for; `encoder` counts encodings."""

    def of_picture(self, picture: Picture) -> Found:
        """The image that was sent.

        Raises:
            SamserveError: it cannot be decoded, or is too thin to encode.
        """
        pixels_digest = self._digest_behind(picture.digest)
        found = None if pixels_digest is None else self._known(self._key(pixels_digest))
        if pixels_digest is None or found is None or _pixels(found.image) > picture.max_pixels:
            pixels_digest = digest_of(picture.pixels)
            found = self._known(self._key(pixels_digest))
            found = found or self._encode(picture.pixels, self._key(pixels_digest))
            if self._store is not None:
                self._store.save(_alias(picture.digest), pixels_digest.encode())
        self._memory.remember_alias(picture.digest, pixels_digest)
        self.found[found.source] += 1
        return found

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

    def _digest_behind(self, text_digest: str) -> str | None:
        """The digest of the pixels that a text of this digest decodes to, if it was seen."""
        known = self._memory.alias(text_digest)
        if known is not None or self._store is None:
            return known
        stored = self._store.load(_alias(text_digest))
        # Whatever else lies there is nobody's digest.
        return stored.decode() if stored and _DIGEST.fullmatch(stored) else None

    def _known(self, key: str) -> Found | None:
        image = self._memory.get(key)
        if image is not None:
            return Found(image, "memory")
        stored = None if self._store is None else self._store.load(key)
        embedding = None if stored is None else _from_bytes(stored, self._encoder.device)
        if embedding is None:
            return None
        return Found(self._prepared(embedding, key), "machine")

    def _encode(self, pixels: NDArray[np.uint8], key: str) -> Found:
        if self._store is None:
            return Found(self._prepared(self._encoder.encode(pixels), key), "encoder")
        with self._store.lock(key, ENCODING_TIMEOUT_S):
            found = self._known(key)  # another worker may have stored it while we waited
            if found is None:
                embedding = self._encoder.encode(pixels)
                self._store.save(key, _to_bytes(embedding))
                found = Found(self._prepared(embedding, key), "encoder")
            return found

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
        self._aliases: OrderedDict[str, str] = OrderedDict()
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

    def alias(self, text_digest: str) -> str | None:
        with self._lock:
            return self._aliases.get(text_digest)

    def remember_alias(self, text_digest: str, pixels_digest: str) -> None:
        with self._lock:
            self._aliases[text_digest] = pixels_digest
            self._aliases.move_to_end(text_digest)
            while len(self._aliases) > self._MAX_ALIASES:
                self._aliases.popitem(last=False)


def digest_of(pixels: NDArray[np.uint8]) -> str:
    """SHA-256 of an H×W×3 image: of its size and its pixels."""
    content = hashlib.sha256(struct.pack("<2I", *pixels.shape[:2]))
    content.update(np.ascontiguousarray(pixels).data)
    return content.hexdigest()


def _alias(text_digest: str) -> str:
    return f"text-{text_digest}"


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
