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

import numpy as np
import torch

from samserve.embeddings.cache import EmbeddingCache
from samserve.embeddings.folder_store import FolderStore
from samserve.embeddings.settings import CacheSettings
from samserve.masks.on_gpu import masks_at_once
from samserve.model_types import Precision
from samserve.network import openvino_parts
from samserve.network.checkpoints import load_network
from samserve.network.decoder import Decoder
from samserve.network.devices import CPU, DeviceError
from samserve.network.encoder import Encoder, compiled_by_inductor
from samserve.network.threads import Threads

from . import __version__
from .model_types import sha256_of

if TYPE_CHECKING:
    from samserve.embeddings.redis_store import RedisStore

logger = logging.getLogger(__name__)

DEFAULT_CACHE = CacheSettings(enabled=True, memory_bytes=2**28, machine_bytes=0, directory=None)
"""Embeddings in this process's memory only."""


@dataclass(frozen=True)
class Segmenter:
    """A loaded model.

    Attributes:
        runtime: what runs the heavy parts, `openvino`, `pytorch` or `inductor`.
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
    device: torch.device = CPU,
    precision: Precision = "float32",
    compiled_parts: Path | None = None,
    gpu_compile: bool = False,
    cache: CacheSettings = DEFAULT_CACHE,
    sha256: str | None = None,
) -> Segmenter:
    """A model from its checkpoint.

    Args:
        weights: a checkpoint of this type, as `make weights` fetches it.
        precision: what the image encoder computes in.
        compiled_parts: the folder in which `openvino_parts.export` put this model's heavy parts;
            on a CPU, OpenVINO then runs them.
        gpu_compile: on a GPU, compile the encoder, before this returns.
        sha256: what these weights are known by to the embeddings that are kept; the file's
            own is computed if not given.

    Raises:
        CheckpointError: the checkpoint is unreadable, carries code, or is another network's.
        DeviceError: the model and what it works with do not fit the device.
    """
    dtype: torch.dtype = getattr(torch, precision)
    model = load_network(model_type, weights, device, dtype)
    network = upscale = None
    if compiled_parts is not None and device.type == "cpu":
        try:
            network, upscale = openvino_parts.load(compiled_parts, torch.get_num_threads())
        except (ImportError, OSError, RuntimeError) as exc:
            logger.warning("All runs in PyTorch, slower, for OpenVINO cannot: %s", exc)
    runtime = "pytorch" if network is None else "openvino"
    if gpu_compile and device.type == "cuda":
        network, runtime = compiled_by_inductor(model.image_encoder, dtype), "inductor"
    encoder, decoder = Encoder(model, network, dtype), Decoder(model, upscale)
    memory_bytes = cache.memory_bytes if cache.enabled else 0
    if device.type == "cuda":
        decoder.prompts_at_once = prompts_that_fit(encoder, decoder, memory_bytes)
    embeddings = EmbeddingCache(
        encoder,
        decoder,
        identity=f"{model_type}-{sha256 or sha256_of(weights)}-{precision}-{__version__}",
        memory_bytes=memory_bytes,
        store=(
            FolderStore(cache.resolve_directory(), cache.machine_bytes)
            if cache.enabled and cache.machine_bytes
            else None
        ),
        shared=_shared(cache),
    )
    # A GPU is kept busy by one thread with large batches, while a second crops their masks.
    threads = Threads(torch.get_num_threads() if device.type == "cpu" else 2)
    return Segmenter(embeddings, decoder, device, runtime, threads)


FEWEST_PROMPTS = 8
"""A device that cannot decode so many at once is too small."""


def prompts_that_fit(encoder: Encoder, decoder: Decoder, reserved: int) -> int:
    """How many prompts can be decoded at once, tried out: half of as many until they fit.

    Tried now, so that a device which is too small is found at the start and not by the hundredth
    request; what runs first on a GPU is slow besides, and no request should wait for that.

    Args:
        reserved: bytes of the device's memory that the embeddings kept will take.

    Raises:
        DeviceError: not even `FEWEST_PROMPTS`.
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
        "model's YAML, give it more (gpu_memory), keep less (memory_bytes) or halve the weights "
        "(precision), or serve a smaller type."
    )


def _work_once(encoder: Encoder, decoder: Decoder, n_prompts: int, reserved: int) -> None:
    """An image encoded and prompts on it decoded, beside memory that is taken."""
    taken = torch.empty(reserved, dtype=torch.uint8, device=encoder.device)
    image = decoder.prepare(encoder.encode(np.zeros((1024, 1024, 3), np.uint8)))
    points = torch.full((n_prompts, 1, 2), 512.0)
    decoded = decoder.decode(image, points=(points, torch.ones(n_prompts, 1, dtype=torch.int)))
    masks = list(range(masks_at_once(n_prompts)))
    decoded.of_several(masks, slice(0, 4)).cpu()  # waits for all of it
    del taken


def _shared(cache: CacheSettings) -> RedisStore | None:
    if not cache.enabled or cache.redis_url is None:
        return None
    from samserve.embeddings.redis_store import (
        RedisStore,  # takes a moment, and most have no use for it
    )

    return RedisStore(cache.redis_url)
