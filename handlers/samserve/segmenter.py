"""One model with all that it takes to answer: what a worker holds, and what Python users load.

    segmenter = load("vit_t", Path("weights/vit_t.pt"))
    found = segmenter.embeddings.of_picture(picture)
    masks = prompts.predict(segmenter, found.image, requests)

Only puts the parts together; the work is `prompts`' and `automask`'s.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from . import __version__, compiled
from .checkpoints import load_model
from .decoder import Decoder
from .embeddings import EmbeddingCache
from .encoder import Encoder
from .model_types import sha256_of
from .settings import CacheSettings
from .store import EmbeddingStore
from .threads import Threads

if TYPE_CHECKING:
    from .redis_store import RedisStore

logger = logging.getLogger(__name__)

DEFAULT_CACHE = CacheSettings(enabled=True, memory_bytes=2**28, machine_bytes=0, directory=None)
"""Embeddings in this process's memory only."""


@dataclass(frozen=True)
class Segmenter:
    """A loaded model.

    Attributes:
        runtime: what runs the heavy parts, `openvino` or `pytorch`.
        threads: for work on several prompts of an image at once.
    """

    embeddings: EmbeddingCache
    decoder: Decoder
    device: torch.device
    runtime: str
    threads: Threads


def load(
    model_type: str,
    weights: Path,
    *,
    device: torch.device | None = None,
    compiled_parts: Path | None = None,
    cache: CacheSettings = DEFAULT_CACHE,
) -> Segmenter:
    """A model from its checkpoint.

    Args:
        weights: a checkpoint of this type, as `make weights` fetches it.
        device: where to run; the CPU if not given.
        compiled_parts: the folder in which `compiled.export` put this model's heavy parts;
            on a CPU, OpenVINO then runs them.

    Raises:
        CheckpointError: the checkpoint is unreadable, carries code, or is another network's.
    """
    device = device or torch.device("cpu")
    model = load_model(model_type, weights, device)
    network = upscale = None
    if compiled_parts is not None and device.type == "cpu":
        try:
            network, upscale = compiled.load(compiled_parts, torch.get_num_threads())
        except (ImportError, OSError, RuntimeError) as exc:
            logger.warning("All runs in PyTorch, slower, for OpenVINO cannot: %s", exc)
    runtime = "pytorch" if network is None else "openvino"
    encoder, decoder = Encoder(model, network), Decoder(model, upscale)
    embeddings = EmbeddingCache(
        encoder,
        decoder,
        identity=f"{model_type}-{sha256_of(weights)}-float32-{__version__}",
        memory_bytes=cache.memory_bytes if cache.enabled else 0,
        store=(
            EmbeddingStore(cache.resolve_directory(), cache.machine_bytes)
            if cache.enabled and cache.machine_bytes
            else None
        ),
        shared=_shared(cache),
    )
    # A GPU is kept busy by one thread with large batches.
    threads = Threads(torch.get_num_threads() if device.type == "cpu" else 1)
    return Segmenter(embeddings, decoder, device, runtime, threads)


def _shared(cache: CacheSettings) -> RedisStore | None:
    if not cache.enabled or cache.redis_url is None:
        return None
    from .redis_store import RedisStore  # takes a moment, and most have no use for it

    return RedisStore(cache.redis_url)
