"""The bytes of entries, and the names under which they are stored, do not change.

Entries outlive an upgrade in the folder and in Redis. The expected bytes are written out here, as
the first version wrote them.
"""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from samserve.embeddings.cache import EmbeddingCache, digest_of
from samserve.embeddings.entry import FOLDER_FORMAT, REDIS_FORMAT, EntryFormat
from samserve.embeddings.folder_store import FolderStore
from samserve.embeddings.payloads import Alias, embedding_from_bytes, embedding_to_bytes
from samserve.embeddings.redis_store import RedisStore
from samserve.network.decoder import Decoder
from samserve.network.encoder import Embedding, Encoder
from samserve.network.families import SAM
from samserve.pictures.decoding import DECODING_RULES
from samserve.pictures.picture import Picture
from tests.support.redis import running_redis
from tests.support.sample_pictures import base64_png, picture

KEY = "0123456789abcdef-vit_t"
PAYLOAD = b"payload"
IN_FOLDER = bytes.fromhex("73616d7365727601000000000000000793a51467") + PAYLOAD
IN_REDIS = bytes.fromhex("73616d736572760193a51467") + PAYLOAD
FORMATS = pytest.mark.parametrize(
    ("form", "entry"), [(FOLDER_FORMAT, IN_FOLDER), (REDIS_FORMAT, IN_REDIS)], ids=["file", "redis"]
)


@FORMATS
def test_an_entry_has_the_bytes_of_the_first_version(form: EntryFormat, entry: bytes) -> None:
    assert form.seal(KEY, PAYLOAD) == entry
    assert form.unseal(KEY, entry) == PAYLOAD


@FORMATS
def test_an_entry_that_is_damaged_or_of_another_key_is_none(
    form: EntryFormat, entry: bytes
) -> None:
    assert form.unseal("other", entry) is None
    for at in range(len(entry)):
        damaged = bytearray(entry)
        damaged[at] ^= 1
        assert form.unseal(KEY, bytes(damaged)) is None
        assert form.unseal(KEY, entry[:at]) is None


def test_a_file_of_the_first_version_is_found(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "embeddings", 1 << 20)
    assert store.usable
    file = tmp_path / "embeddings" / f"{KEY}.embedding"
    file.write_bytes(IN_FOLDER)
    assert store.load(KEY) == PAYLOAD
    store.save(KEY, PAYLOAD)
    assert file.read_bytes() == IN_FOLDER


def test_a_redis_of_the_first_version_is_read() -> None:
    with running_redis() as server:
        server.client.set(f"samserve:{KEY}", IN_REDIS)
        assert RedisStore(server.url).load(KEY) == PAYLOAD


def test_an_embedding_is_four_sizes_and_float32_features() -> None:
    features = torch.rand(1, 256, 64, 64)
    embedding = Embedding(features, input_size=(768, 1024), original_size=(300, 400))
    stored = struct.pack("<4I", 768, 1024, 300, 400) + features.numpy().astype("<f4").tobytes()
    assert embedding_to_bytes(embedding) == stored
    loaded = embedding_from_bytes(stored, SAM, torch.device("cpu"))
    assert loaded is not None
    assert torch.equal(loaded.features, features)
    assert (loaded.input_size, loaded.original_size) == ((768, 1024), (300, 400))


def test_an_alias_is_a_digest_and_a_number() -> None:
    assert Alias("0a" * 32, 3).to_bytes() == b"0a" * 32 + b" 3"
    assert Alias.from_bytes(b"0a" * 32 + b" 3") == Alias("0a" * 32, 3)


def test_the_names_of_a_pictures_entries(model: torch.nn.Module, tmp_path: Path) -> None:
    pixels = picture("coins")
    text = base64_png(pixels)
    of_pixels = hashlib.sha256(struct.pack("<2I", *pixels.shape[:2]) + pixels.tobytes()).hexdigest()
    assert digest_of(np.asarray(pixels)) == of_pixels
    store = FolderStore(tmp_path / "embeddings", 1 << 26)
    cache = EmbeddingCache(
        Encoder(model, lambda pixels: torch.zeros(1, 256, 64, 64)),
        Decoder(model),
        identity="vit_t-x",
        memory_bytes=0,
        store=store,
    )
    cache.of_picture(Picture(text, 10**7))
    assert DECODING_RULES == 2  # a new version of the rules needs new names
    assert {path.name for path in store_files(tmp_path / "embeddings")} == {
        f"{of_pixels}-vit_t-x.embedding",
        f"text-{hashlib.sha256(text.encode()).hexdigest()}-rules-2-page-0.embedding",
    }


def store_files(folder: Path) -> list[Path]:
    """Return the files of a store, without its locks."""
    return [path for path in folder.iterdir() if not path.name.startswith(".")]
