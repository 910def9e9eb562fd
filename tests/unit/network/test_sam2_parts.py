"""The parts of SAM 2's network: preprocessing, encoder, OpenVINO, precision, memory."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from samserve.network import openvino_parts
from samserve.network.checkpoints import model_from
from samserve.network.decoder import Decoder, Image, decode_plain
from samserve.network.encoder import Embedding, Encoder
from samserve.network.families import SAM2, family_of
from samserve.network.hiera import as_maps
from tests.support import random_weights
from tests.support.sam2_reference import PICTURES, reference_network, reference_predictor

pytestmark = pytest.mark.slow

IMAGE = PICTURES["wide"]


@pytest.fixture(scope="module")
def network() -> Any:
    return model_from("sam2_t", random_weights.lively("sam2_t"), "random")


@pytest.fixture(scope="module")
def reference() -> Any:
    return reference_predictor(reference_network("sam2_t", random_weights.lively("sam2_t")))


@pytest.fixture(scope="module")
def embedding(network: Any) -> Embedding:
    return Encoder(network).encode(IMAGE)


@pytest.mark.parametrize("size", [(97, 301), (1024, 1024), (9, 9), (1, 1), (2000, 3), (1500, 1000)])
def test_preprocessing(network: Any, reference: Any, size: tuple[int, int]) -> None:
    random = np.random.default_rng(sum(size))
    image = random.integers(0, 256, (*size, 3), dtype=np.uint8)
    theirs = reference._transforms(image)[None]
    ours = SAM2.preprocess(image, network)
    assert ours.shape == (1, 3, 1024, 1024)
    assert (ours - theirs).abs().max() <= 1e-6
    assert SAM2.input_size(*size) == (1024, 1024)


def test_coordinates_are_the_references_to_the_bit(reference: Any) -> None:
    coords = np.random.default_rng(0).random((1000, 2)) * (301, 97)
    theirs = reference._transforms.transform_coords(
        torch.as_tensor(coords, dtype=torch.float), normalize=True, orig_hw=(97, 301)
    )
    ours = SAM2.to_input_frame(coords, (1024, 1024), (97, 301))
    np.testing.assert_array_equal(ours, theirs.numpy())


def test_the_embedding(reference: Any, embedding: Embedding) -> None:
    reference.set_image(IMAGE)
    seen = reference._features
    coarse, fine = as_maps(*embedding.maps)
    for theirs, ours in (
        (seen["image_embed"], embedding.features),
        (seen["high_res_feats"][1], coarse[None]),
        (seen["high_res_feats"][0], fine[None]),
    ):
        assert ours.shape == theirs.shape
        assert theirs.std() > 0.05
        assert (ours - theirs).abs().max() < 1e-4


def test_it_is_a_sam_2(network: Any, embedding: Embedding) -> None:
    assert family_of(network) is embedding.family is SAM2
    assert (embedding.input_size, embedding.original_size) == ((1024, 1024), (97, 301))
    assert tuple(part.shape for part in embedding.maps) == SAM2.map_shapes


BOXES = torch.tensor([[10.0, 20, 300, 400], [500, 500, 501, 502], [0, 0, 1024, 1024]])
POINTS = torch.tensor([[[300.0, 400], [10.5, 700]], [[1, 3], [9, 9]], [[600, 10], [5, 800]]])
LABELS = torch.tensor([[1, 0], [1, 1], [1, 0]])
PROMPTS: dict[str, dict[str, Any]] = {
    "boxes": {"boxes": BOXES},
    "points": {"points": (POINTS, LABELS)},
    "boxes and points": {"boxes": BOXES, "points": (POINTS, LABELS)},
}


@pytest.mark.parametrize("prompts", PROMPTS.values(), ids=PROMPTS.keys())
def test_the_exact_decoder_is_the_plain_one(
    network: Any, embedding: Embedding, prompts: dict[str, Any]
) -> None:
    decoder = Decoder(network)
    plain = decode_plain(network, embedding, **prompts)
    ours = decoder.decode(decoder.prepare(embedding), **prompts)
    assert (ours.iou_predictions - plain.iou_predictions).abs().max() < 1e-5
    together = ours.of_several([2, 0, 1], slice(0, 4))
    for place, prompt in enumerate([2, 0, 1]):
        masks = ours.low_res_masks(prompt, slice(0, 4))
        assert (masks - plain.masks[prompt]).abs().max() < 1e-3
        assert (together[place] - masks).abs().max() < 1e-4
        assert 0.01 < (masks > 0).float().mean() < 0.99


def test_openvino_computes_the_same(network: Any, embedding: Embedding, tmp_path: Path) -> None:
    openvino_parts.export(network, tmp_path)
    encoder, upscale = openvino_parts.load(tmp_path, threads=2)
    found = Encoder(network, encoder).encode(IMAGE)
    for ours, theirs in zip(
        (found.features, *found.maps), (embedding.features, *embedding.maps), strict=True
    ):
        assert (ours - theirs).abs().max() < 1e-4
    compiled, plain = Decoder(network, upscale), Decoder(network)
    for prompts in PROMPTS.values():
        fast = compiled.decode(compiled.prepare(found), **prompts)
        slow = plain.decode(plain.prepare(embedding), **prompts)
        assert np.array_equal(fast.channels(False), slow.channels(False))
        for channels in ([0], [1, 2, 3], [2, 0]):
            masks = [decoded.low_res_masks(1, channels) for decoded in (fast, slow)]
            assert (masks[0] - masks[1]).abs().max() < 2e-3


def bytes_held(image: Image) -> int:
    tensors = [image.embedding.features, *image.embedding.maps]
    for value in vars(image.prepared).values():
        tensors += value if isinstance(value, tuple) else (value,)
    held = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for t in tensors
        if isinstance(t, torch.Tensor)
    }
    return sum(held.values())


def test_the_images_part_is_measured(network: Any, embedding: Embedding) -> None:
    """The bytes that the cache counts are those in memory, with the maps, and not twice."""
    image = Decoder(network).prepare(embedding)
    assert image.nbytes == bytes_held(image)
    assert 30e6 < image.nbytes < 70e6


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_a_smaller_precision_moves_the_embedding_a_little(
    embedding: Embedding, precision: torch.dtype
) -> None:
    weights = random_weights.lively("sam2_t")
    network = model_from("sam2_t", weights, "random", precision=precision)
    found = Encoder(network, precision=precision).encode(IMAGE)
    for ours, theirs in zip(
        (found.features, *found.maps), (embedding.features, *embedding.maps), strict=True
    ):
        assert ours.dtype == torch.float32
        moved = (ours - theirs).abs().mean() / theirs.std()
        assert 0 < moved < 0.1


def masks_of(network: Any, embedding: Embedding) -> NDArray[np.bool_]:
    decoder = Decoder(network)
    decoded = decoder.decode(decoder.prepare(embedding), **PROMPTS["boxes and points"])
    logits = [decoded.low_res_masks(i, slice(0, 4)) for i in range(len(BOXES))]
    return np.asarray(torch.stack(logits).numpy() > 0)


def test_maps_in_half_precision_would_change_masks(network: Any, embedding: Embedding) -> None:
    """So they are stored in float32. About 15 pixels in a million differed."""
    halved = dataclasses.replace(
        embedding, maps=tuple(part.half().float() for part in embedding.maps)
    )
    differing = np.mean(masks_of(network, embedding) != masks_of(network, halved))
    assert 0 < differing < 1e-3
