"""A segmenter in this process, without TorchServe."""

from __future__ import annotations

from typing import Any

from samserve.embeddings.cache import EmbeddingCache
from samserve.network.decoder import Decoder
from samserve.network.encoder import Encoder
from samserve.network.threads import Threads
from samserve.segmenter import Segmenter


def segmenter_of(model: Any) -> Segmenter:
    """Return a segmenter that answers with this model and caches no embedding."""
    encoder, decoder = Encoder(model), Decoder(model)
    embeddings = EmbeddingCache(encoder, decoder, identity="", memory_bytes=0, store=None)
    return Segmenter(embeddings, decoder, model.device, "pytorch", Threads(2))
