"""A Model is a loaded network with everything that it needs to answer.

`segmenter.Segmenter` is the interface for callers; `prompts` and `automask` do the work.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from . import __version__
from .embeddings.cache import EmbeddingCache
from .embeddings.folder_store import FolderStore
from .embeddings.settings import CacheSettings
from .model_types import Precision, sha256_of
from .network import openvino_parts
from .network.checkpoints import load_network
from .network.decoder import Decoder, masks_at_once
from .network.devices import CPU, DeviceError
from .network.encoder import Encoder, compiled_by_inductor
from .network.threads import Threads

if TYPE_CHECKING:
    from .embeddings.redis_store import RedisStore

logger = logging.getLogger(__name__)

MEMORY_CACHE = CacheSettings(enabled=True, memory_bytes=2**28, machine_bytes=0, directory=None)
"""Embeddings are kept in this process's memory only."""

FEWEST_PROMPTS = 8
"""A device that cannot decode so many prompts at once is too small."""


@dataclass(frozen=True)
class Model:
    """A loaded network with its caches and threads.

    Attributes:
        model_type: a name in `MODEL_TYPES`.
        embeddings: gives an image's embedding, from a cache or from the encoder.
        decoder: gives masks for prompts.
        device: the device that PyTorch computes on.
        runtime: what runs the heavy parts: `openvino`, `pytorch` or `inductor`.
        threads: for several prompts of an image at once.
    """

    model_type: str
    embeddings: EmbeddingCache
    decoder: Decoder
    device: torch.device
    runtime: str
    threads: Threads


def load_model(
    model_type: str,
    weights: Path,
    *,
    device: torch.device = CPU,
    precision: Precision = "float32",
    compiled_parts: Path | None = None,
    gpu_compile: bool = False,
    cache: CacheSettings = MEMORY_CACHE,
    sha256: str | None = None,
) -> Model:
    """Load a model from its checkpoint.

    Args:
        weights: a checkpoint of this type.
        precision: the number format in which the image encoder computes.
        compiled_parts: the folder with this model's heavy parts as `openvino_parts.export` wrote
            them. On a CPU, OpenVINO then runs them.
        gpu_compile: on a GPU, compile the encoder before this function returns.
        sha256: the SHA-256 of the weights, under which embeddings are kept. None: compute it.

    Raises:
        CheckpointError: the checkpoint is unreadable, carries code, or is another network's.
        DeviceError: the model and its working memory do not fit the device.
    """
    dtype: torch.dtype = getattr(torch, precision)
    sam = load_network(model_type, weights, device, dtype)
    network = upscale = None
    if compiled_parts is not None and device.type == "cpu":
        try:
            network, upscale = openvino_parts.load(compiled_parts, torch.get_num_threads())
        except (ImportError, OSError, RuntimeError) as exc:
            logger.warning("OpenVINO cannot run here; PyTorch runs everything, slower: %s", exc)
    runtime = "pytorch" if network is None else "openvino"
    if gpu_compile and device.type == "cuda":
        network, runtime = compiled_by_inductor(sam, dtype), "inductor"
    encoder, decoder = Encoder(sam, network, dtype), Decoder(sam, upscale)
    memory_bytes = cache.memory_bytes if cache.enabled else 0
    if device.type == "cuda":
        decoder.prompts_at_once = prompts_that_fit(encoder, decoder, memory_bytes)
    embeddings = EmbeddingCache(
        encoder,
        decoder,
        identity=f"{model_type}-{sha256 or sha256_of(weights)}-{precision}-{__version__}",
        memory_bytes=memory_bytes,
        store=_folder(cache),
        shared=_redis(cache),
    )
    # On a GPU one thread with large batches is enough; a second one crops the masks meanwhile.
    threads = Threads(torch.get_num_threads() if device.type == "cpu" else 2)
    return Model(model_type, embeddings, decoder, device, runtime, threads)


def prompts_that_fit(encoder: Encoder, decoder: Decoder, reserved: int) -> int:
    """Return how many prompts the device can decode at once. It tries, and halves until they fit.

    It tries at the start, so that a device that is too small fails there and not at the hundredth
    request. Besides, the first run on a GPU is slow, and no request should wait for it.

    Args:
        reserved: bytes of the device's memory that the cached embeddings will take.

    Raises:
        DeviceError: not even `FEWEST_PROMPTS` fit.
    """
    n_prompts = decoder.prompts_at_once
    while n_prompts >= FEWEST_PROMPTS:
        try:
            _work_once(encoder, decoder, n_prompts, reserved)
        except torch.OutOfMemoryError:
            n_prompts //= 2
        else:
            return n_prompts
    raise DeviceError(
        f"The memory that a worker may take of {encoder.device} is too little for the model, "
        f"{reserved / 1e6:.0f} MB of embeddings, an image and {FEWEST_PROMPTS} prompts. In the "
        "model's YAML, allow more memory (gpu_memory), cache less (memory_bytes) or halve the "
        "weights (precision), or serve a smaller type."
    )


def _work_once(encoder: Encoder, decoder: Decoder, n_prompts: int, reserved: int) -> None:
    """Encode an image and decode prompts on it, while `reserved` bytes are taken."""
    taken = torch.empty(reserved, dtype=torch.uint8, device=encoder.device)
    image = decoder.prepare(encoder.encode(np.zeros((1024, 1024, 3), np.uint8)))
    points = torch.full((n_prompts, 1, 2), 512.0)
    decoded = decoder.decode(image, points=(points, torch.ones(n_prompts, 1, dtype=torch.int)))
    masks = list(range(masks_at_once(n_prompts)))
    decoded.of_several(masks, slice(0, 4)).cpu()  # waits until the GPU has finished
    del taken


def _folder(cache: CacheSettings) -> FolderStore | None:
    if not cache.enabled or not cache.machine_bytes:
        return None
    return FolderStore(cache.resolve_directory(), cache.machine_bytes)


def _redis(cache: CacheSettings) -> RedisStore | None:
    if not cache.enabled or cache.redis_url is None:
        return None
    # The Redis client takes a moment to import, and most servers do not use it.
    from .embeddings.redis_store import RedisStore

    return RedisStore(cache.redis_url)
