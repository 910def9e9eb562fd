"""This module caches prepared images in the memory of one process."""

from __future__ import annotations

import threading
from collections import OrderedDict

from samserve.network.decoder import Image

from .payloads import Alias

_MAX_ALIASES = 4096


class MemoryCache:
    """The most recently used images and aliases of one process; safe between threads.

    Args:
        max_bytes: the memory that the images may take; 0 to keep none.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._images: OrderedDict[str, Image] = OrderedDict()
        self._aliases: OrderedDict[str, Alias] = OrderedDict()
        self._lock = threading.Lock()

    def image(self, key: str) -> Image | None:
        """Return the image under a key, and mark it as used."""
        with self._lock:
            if key in self._images:
                self._images.move_to_end(key)
            return self._images.get(key)

    def keep_image(self, key: str, image: Image) -> None:
        """Keep an image, and drop the least recently used ones beyond the limit."""
        with self._lock:
            self._images[key] = image
            self._images.move_to_end(key)
            while sum(image.nbytes for image in self._images.values()) > self._max_bytes:
                self._images.popitem(last=False)

    def alias(self, name: str) -> Alias | None:
        """Return the alias under a name."""
        with self._lock:
            return self._aliases.get(name)

    def keep_alias(self, name: str, alias: Alias) -> None:
        """Keep an alias, and drop the oldest ones beyond the limit."""
        with self._lock:
            self._aliases[name] = alias
            self._aliases.move_to_end(name)
            while len(self._aliases) > _MAX_ALIASES:
                self._aliases.popitem(last=False)
