"""An image is encoded once, whoever asks, in whatever file it comes, and never confused."""

from __future__ import annotations

import base64
import hashlib
import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image as PillowImage

from samserve.embeddings.cache import EmbeddingCache
from samserve.embeddings.folder_store import EmbeddingStore
from samserve.embeddings.redis_store import RedisStore
from samserve.errors import InvalidField, InvalidImage, TooLarge, UnknownImage
from samserve.network.decoder import Decoder
from samserve.network.encoder import Embedding, Encoder
from samserve.pictures.picture import DECODING_RULES, Picture
from tests.support.redis import RedisServer, running_redis
from tests.support.sample_pictures import base64_png, picture

LIMIT = 10**7
COINS = base64_png(picture("coins"))


@pytest.fixture(scope="module")
def parts(model: Any) -> tuple[Encoder, Decoder]:
    return Encoder(model), Decoder(model)


@pytest.fixture
def store(tmp_path: Path) -> EmbeddingStore:
    return EmbeddingStore(tmp_path / "embeddings", 2**26)


def cache(
    parts: tuple[Encoder, Decoder],
    store: EmbeddingStore | None,
    memory_bytes: int = 2**27,
    identity: str = "vit_t",
    shared: RedisStore | None = None,
) -> EmbeddingCache:
    """One worker's; several on one store are the workers of one machine."""
    return EmbeddingCache(
        *parts, identity=identity, memory_bytes=memory_bytes, store=store, shared=shared
    )


def sent(text: str = COINS) -> Picture:
    return Picture(text, LIMIT)


def as_file(pixels: NDArray[np.uint8], kind: str) -> str:
    file = io.BytesIO()
    PillowImage.fromarray(pixels).save(file, kind)
    return base64.b64encode(file.getvalue()).decode()


def test_memory_then_machine_then_encoder(parts: Any, store: EmbeddingStore) -> None:
    first, second = cache(parts, store), cache(parts, store)
    sources = [worker.of_picture(sent()).source for worker in (first, first, second, second)]
    assert sources == ["encoder", "memory", "machine", "memory"]
    assert first.found == {"encoder": 1, "memory": 1}
    assert second.found == {"machine": 1, "memory": 1}


def test_what_is_kept_is_what_was_encoded(parts: Any, store: EmbeddingStore) -> None:
    fresh = cache(parts, None).of_picture(sent()).image.embedding
    cache(parts, store).of_picture(sent())
    found = cache(parts, store).of_picture(sent())
    assert found.source == "machine"
    kept = found.image.embedding
    assert torch.equal(kept.features, fresh.features)
    assert (kept.input_size, kept.original_size) == (fresh.input_size, fresh.original_size)


def test_a_reference_stands_for_a_text_that_was_sent(parts: Any, store: EmbeddingStore) -> None:
    reference = f"sha256:{hashlib.sha256(COINS.encode()).hexdigest()}"
    worker = cache(parts, store)
    with pytest.raises(UnknownImage):
        worker.of_picture(sent(reference))
    whole = worker.of_picture(sent())
    assert worker.of_picture(sent(reference)).image is whole.image
    assert cache(parts, store).of_picture(sent(reference)).source == "machine"
    # Nobody gets by it what is over the limit; in full it would be refused for its size.
    with pytest.raises(UnknownImage):
        worker.of_picture(Picture(reference, max_pixels=1000))


def stack(*names: str) -> bytes:
    """A TIFF of these pictures."""
    file = io.BytesIO()
    first, *others = [PillowImage.fromarray(picture(name)) for name in names]
    first.save(file, "TIFF", save_all=True, append_images=others)
    return file.getvalue()


def page_of(sent: str | bytes, page: int) -> Picture:
    return Picture(sent, LIMIT, page=page)


def reference_to(file: bytes) -> str:
    return f"sha256:{hashlib.sha256(file).hexdigest()}"


def test_each_page_has_an_embedding_of_its_own(parts: Any, store: EmbeddingStore) -> None:
    file = stack("coins", "coffee", "coins")
    worker = cache(parts, store)
    found = [worker.of_picture(page_of(file, page)) for page in range(3)]
    # The third is the first again.
    assert [one.source for one in found] == ["encoder", "encoder", "memory"]
    assert [one.pages for one in found] == [3, 3, 3]
    sizes = [one.image.embedding.original_size for one in found]
    assert sizes == [picture(name).shape[:2] for name in ("coins", "coffee", "coins")]
    # The alone picture is the page's; and it has one page.
    alone = worker.of_picture(sent())
    assert (alone.source, alone.pages) == ("memory", 1)
    # Another worker knows pages and their number by the reference.
    other = cache(parts, store)
    for page in range(3):
        known = other.of_picture(page_of(reference_to(file), page))
        assert (known.source, known.pages) == ("memory" if page == 2 else "machine", 3)
        assert torch.equal(known.image.embedding.features, found[page].image.embedding.features)


def test_a_page_that_was_not_seen_is_not_known(parts: Any, store: EmbeddingStore) -> None:
    file = stack("coins", "coffee")
    worker = cache(parts, store)
    worker.of_picture(page_of(file, 0))
    for page in (1, 2, 10):
        with pytest.raises(UnknownImage):
            worker.of_picture(page_of(reference_to(file), page))
    with pytest.raises(InvalidField, match="has 2 pages"):
        worker.of_picture(page_of(file, 2))
    with pytest.raises(UnknownImage):
        worker.of_picture(page_of(reference_to(file), 2))


def test_other_rules_of_decoding_know_nothing(
    parts: Any, store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither of the rules before, nor of what was stored before there were versions."""
    cache(parts, store).of_picture(sent())
    store.save(f"text-{sent().digest}", b"0" * 64)
    assert cache(parts, store).of_picture(sent()).source == "machine"
    monkeypatch.setattr("samserve.embeddings.cache.DECODING_RULES", 10_000)
    again = sent()
    assert cache(parts, store).of_picture(again).source == "machine"
    assert again.decoding_s is not None
    reference = f"sha256:{sent().digest}"
    assert cache(parts, store).of_picture(sent(reference)).source == "machine"
    monkeypatch.setattr("samserve.embeddings.cache.DECODING_RULES", 10_001)
    with pytest.raises(UnknownImage):
        cache(parts, store).of_picture(sent(reference))


@pytest.mark.parametrize(
    "payload",
    [b"0" * 64, b"0" * 64 + b" 0", b"0" * 64 + b" -1", b"0" * 64 + b" 1 ", b"0" * 64 + b" x"],
)
def test_what_is_no_alias_is_a_miss(parts: Any, store: EmbeddingStore, payload: bytes) -> None:
    cache(parts, store).of_picture(sent())
    store.save(f"text-{sent().digest}-rules-{DECODING_RULES}-page-0", payload)
    again = sent()
    assert cache(parts, store).of_picture(again).source == "machine"
    assert again.decoding_s is not None


@pytest.mark.parametrize(
    "text",
    ["sha256:", "sha256:" + "A" * 64, "sha256:" + "0" * 63, "sha256:../" + "0" * 61, "md5:0"],
)
def test_nothing_else_is_a_reference(parts: Any, store: EmbeddingStore, text: str) -> None:
    with pytest.raises(InvalidField, match="not base64"):
        cache(parts, store).of_picture(sent(text))


def test_a_known_image_is_not_even_decoded(parts: Any, store: EmbeddingStore) -> None:
    cache(parts, store).of_picture(sent())
    again = sent()
    cache(parts, store).of_picture(again)
    assert again.decoding_s is None


@pytest.mark.parametrize("kind", ["TIFF", "BMP", "WEBP"])
def test_the_same_picture_in_another_file(parts: Any, store: EmbeddingStore, kind: str) -> None:
    worker = cache(parts, store)
    worker.of_picture(sent())
    pixels = picture("coins")
    file = io.BytesIO()
    PillowImage.fromarray(pixels).save(file, kind, lossless=True)
    text = base64.b64encode(file.getvalue()).decode()
    other = sent(text)
    assert np.array_equal(other.pixels, pixels)
    assert worker.of_picture(other).source == "memory"
    assert worker.of_picture(sent("data:image/png;base64," + COINS)).source == "memory"
    assert worker.found["encoder"] == 1


def test_other_pictures_are_others(parts: Any, store: EmbeddingStore) -> None:
    worker = cache(parts, store)
    pixels = picture("coins")
    changed = pixels.copy()
    changed[150, 200, 1] ^= 1
    reshaped = pixels.reshape(pixels.shape[1], pixels.shape[0], 3)  # the very same bytes
    for image in (pixels, changed, reshaped):
        assert worker.of_picture(sent(base64_png(image))).source == "encoder"


def test_other_models_do_not_share(parts: Any, store: EmbeddingStore) -> None:
    cache(parts, store, identity="vit_t").of_picture(sent())
    assert cache(parts, store, identity="vit_b").of_picture(sent()).source == "encoder"


def test_crops_are_known_too(parts: Any, store: EmbeddingStore) -> None:
    crop = picture("coins")[20:200, 30:300]
    assert cache(parts, store).of_pixels(crop).source == "encoder"
    assert cache(parts, store).of_pixels(crop.copy()).source == "machine"
    assert cache(parts, store).of_picture(sent(base64_png(crop))).source == "machine"


def test_one_encodes_while_the_others_wait(parts: Any, store: EmbeddingStore) -> None:
    workers = [cache(parts, store) for _ in range(4)]
    ready = threading.Barrier(len(workers))
    sources = []

    def ask(worker: EmbeddingCache) -> None:
        ready.wait()
        sources.append(worker.of_picture(sent()).source)

    threads = [threading.Thread(target=ask, args=(worker,)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(sources) == ["encoder", "machine", "machine", "machine"]


def test_memory_is_bounded(parts: Any) -> None:
    worker = cache(parts, None, memory_bytes=50_000_000)  # one image's worth
    texts = [base64_png(picture(name)) for name in ("coins", "coffee")]
    sources = [worker.of_picture(sent(text)).source for text in (texts[0], *texts, texts[0])]
    assert sources == ["encoder", "memory", "encoder", "encoder"]


def test_off(parts: Any) -> None:
    worker = cache(parts, None, memory_bytes=0)
    assert [worker.of_picture(sent()).source for _ in range(2)] == ["encoder", "encoder"]


def files(store_folder: Path) -> list[Path]:
    return [path for path in store_folder.iterdir() if not path.name.startswith(".")]


@pytest.mark.parametrize(
    "garbage", [b"", b"garbage", b"\0" * 5_000_000], ids=["none", "some", "much"]
)
def test_garbage_is_a_miss(
    parts: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, garbage: bytes
) -> None:
    folder = tmp_path / "embeddings"
    store = EmbeddingStore(folder, 2**26)
    expected = cache(parts, store).of_picture(sent()).image.embedding
    for path in files(folder):
        path.write_bytes(garbage)
    found = cache(parts, store).of_picture(sent())
    assert found.source == "encoder"
    assert torch.equal(found.image.embedding.features, expected.features)
    assert "Stored embeddings" in caplog.text
    assert cache(parts, store).of_picture(sent()).source == "machine"


@pytest.mark.parametrize("payload", [b"", b"x" * 17, b"\xff" * 64, b"../" * 22], ids=repr)
def test_what_is_no_embedding_is_a_miss(parts: Any, tmp_path: Path, payload: bytes) -> None:
    """Whole entries, as far as the store can tell, of something else."""
    folder = tmp_path / "embeddings"
    store = EmbeddingStore(folder, 2**26)
    cache(parts, store).of_picture(sent())
    for path in files(folder):
        store.save(path.name.removesuffix(".embedding"), payload)
    assert cache(parts, store).of_picture(sent()).source == "encoder"
    assert cache(parts, store).of_picture(sent()).source == "machine"


def test_no_folder_no_harm(parts: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    worker = cache(parts, EmbeddingStore(tmp_path / "file" / "embeddings", 2**26))
    assert [worker.of_picture(sent()).source for _ in range(2)] == ["encoder", "memory"]
    assert caplog.text.count("Stored embeddings: cannot use") == 1


def test_a_known_image_is_still_held_to_the_limit(parts: Any, store: EmbeddingStore) -> None:
    cache(parts, store).of_picture(sent())
    with pytest.raises(TooLarge):
        cache(parts, store).of_picture(Picture(COINS, max_pixels=1000))


def test_a_picture_that_cannot_be_read_leaves_nothing(parts: Any, tmp_path: Path) -> None:
    folder = tmp_path / "embeddings"
    worker = cache(parts, EmbeddingStore(folder, 2**26))
    for _ in range(2):
        with pytest.raises(InvalidImage):
            worker.of_picture(sent(base64.b64encode(b"no picture").decode()))
    assert not folder.exists() or not files(folder)
    assert not worker.found


def test_sizes_are_those_of_the_picture(parts: Any, store: EmbeddingStore) -> None:
    cache(parts, store).of_picture(sent())
    kept: Embedding = cache(parts, store).of_picture(sent()).image.embedding
    assert kept.original_size == picture("coins").shape[:2]


class TestMachinesThatShare:
    @pytest.fixture
    def redis(self) -> Iterator[RedisServer]:
        with running_redis() as server:
            yield server

    def worker(self, parts: Any, machine: Path, redis: RedisServer) -> EmbeddingCache:
        store = EmbeddingStore(machine / "embeddings", 2**26)
        return cache(parts, store, shared=RedisStore(redis.url))

    def saved(self, worker: EmbeddingCache, count: int) -> None:
        """Returns once Redis has so much of this worker."""
        deadline = time.monotonic() + 30
        while worker.redis_outcomes.get("saved", 0) < count:
            assert time.monotonic() < deadline, worker.redis_outcomes
            time.sleep(0.01)

    def test_one_finds_what_another_encoded(
        self, parts: Any, redis: RedisServer, tmp_path: Path
    ) -> None:
        here, there = tmp_path / "here", tmp_path / "there"
        first = self.worker(parts, here, redis)
        fresh = first.of_picture(sent()).image.embedding
        self.saved(first, 2)  # the embedding, and which text it is of
        reference = sent(f"sha256:{hashlib.sha256(COINS.encode()).hexdigest()}")
        second = self.worker(parts, there, redis)
        found = second.of_picture(reference)
        assert found.source == "redis"
        kept = found.image.embedding
        assert torch.equal(kept.features, fresh.features)
        assert (kept.input_size, kept.original_size) == (fresh.input_size, fresh.original_size)
        assert second.of_picture(reference).source == "memory"
        # A page of it, too, and how many there are.
        file = stack("coffee", "coins")
        assert first.of_picture(page_of(file, 1)).source == "memory"
        self.saved(first, 3)
        fourth = self.worker(parts, tmp_path / "fourth", redis)
        with pytest.raises(UnknownImage):
            fourth.of_picture(page_of(reference_to(file), 0))
        of_page = fourth.of_picture(page_of(reference_to(file), 1))
        assert (of_page.source, of_page.pages) == ("redis", 2)
        # And now its whole machine has it, without asking.
        third = self.worker(parts, there, redis)
        assert third.of_picture(sent()).source == "machine"
        assert self.worker(parts, tmp_path / "third", redis).of_picture(sent()).source == "redis"

    def test_whatever_lies_there(self, parts: Any, redis: RedisServer, tmp_path: Path) -> None:
        first = self.worker(parts, tmp_path / "here", redis)
        fresh = first.of_picture(sent()).image.embedding
        self.saved(first, 2)
        names = redis.names()
        others = RedisStore(redis.url)
        for name in names:  # whole entries, of something else
            others.save(name.removeprefix("samserve:"), b"\xff" * 64)
        deadline = time.monotonic() + 30
        while others.outcomes["saved"] < len(names):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        second = self.worker(parts, tmp_path / "there", redis)
        found = second.of_picture(sent())
        assert found.source == "encoder"
        assert torch.equal(found.image.embedding.features, fresh.features)
        self.saved(second, 2)
        third = self.worker(parts, tmp_path / "third", redis)
        assert third.of_picture(sent()).source == "redis"

    def test_gone(self, parts: Any, tmp_path: Path) -> None:
        with running_redis() as redis:
            pass
        worker = self.worker(parts, tmp_path, redis)
        assert [worker.of_picture(sent()).source for _ in range(2)] == ["encoder", "memory"]
        assert worker.redis_outcomes["load_failed"] > 0
