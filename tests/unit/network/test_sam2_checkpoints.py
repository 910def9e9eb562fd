"""SAM 2's checkpoints in every layout that they come in, and what is refused."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from samserve.network.checkpoints import CheckpointError, load_network, read
from samserve.network.sam2 import is_video_part
from tests.support import random_weights
from tests.support.checkpoints import Tensors, prefixed
from tests.support.sam2_reference import CONFIGS, reference_network

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights() -> Tensors:
    return random_weights.state_dict("sam2_t")


@pytest.fixture(scope="module", params=["2.1", "2.0"])
def published(request: pytest.FixtureRequest, weights: Tensors) -> Tensors:
    """All tensors of a network of `sam2`, with those that only videos need."""
    network = reference_network("sam2_t", weights, version=request.param)
    tensors: Tensors = network.state_dict()
    has_new_parts = any(name.startswith("obj_ptr_tpos_proj") for name in tensors)
    assert has_new_parts == ("no_obj_embed_spatial" in tensors) == (request.param == "2.1")
    return tensors


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "sam2_t.pt"
    yield path
    path.unlink(missing_ok=True)  # 150 MB, which pytest would not delete


@pytest.mark.parametrize("layout", ["as published", "bare", "of DataParallel", "compiled"])
def test_every_layout(published: Tensors, weights: Tensors, file: Path, layout: str) -> None:
    content: Any = {
        "as published": {"model": published},
        "bare": published,
        "of DataParallel": {"model": prefixed("module.", published), "epoch": 3},
        "compiled": prefixed("_orig_mod.", published),
    }[layout]
    torch.save(content, file)
    loaded = load_network("sam2_t", file, CPU).state_dict()
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items())


@pytest.mark.parametrize("model_type", CONFIGS)
def test_the_parts_for_images_are_all_those_of_the_network(model_type: str) -> None:
    """No other part of the reference is left out, and the shapes are the reference's."""
    weights = random_weights.state_dict(model_type)
    network = reference_network(model_type, weights)  # which refuses other shapes
    of_images = {name for name in network.state_dict() if not is_video_part(name)}
    assert of_images == set(weights)


def saved(content: Any, file: Path) -> Path:
    torch.save(content, file)
    return file


@pytest.mark.parametrize(
    "missing",
    [
        "no_mem_embed",
        "sam_mask_decoder.conv_s0.weight",
        "sam_mask_decoder.obj_score_token.weight",
        "image_encoder.trunk.blocks.3.attn.qkv.bias",
        "image_encoder.neck.convs.0.conv.weight",
        "sam_prompt_encoder.no_mask_embed.weight",
    ],
)
def test_a_missing_tensor_is_named(weights: Tensors, file: Path, missing: str) -> None:
    content = {name: tensor for name, tensor in weights.items() if name != missing}
    with pytest.raises(CheckpointError, match=missing.replace(".", r"\.")):
        load_network("sam2_t", saved({"model": content}, file), CPU)


def test_other_contents_are_refused(weights: Tensors, file: Path) -> None:
    name = "sam_mask_decoder.conv_s1.bias"
    with pytest.raises(CheckpointError, match=r"unknown_part\.weight"):
        load_network("sam2_t", saved({**weights, "unknown_part.weight": weights[name]}, file), CPU)
    nan = torch.full_like(weights[name], torch.nan)
    with pytest.raises(CheckpointError, match=r"conv_s1\.bias"):
        load_network("sam2_t", saved({"model": {**weights, name: nan}}, file), CPU)


@pytest.mark.parametrize(
    ("written", "read_as"),
    [("sam2_t", "vit_t"), ("vit_t", "sam2_t"), ("sam2_t", "sam2_s"), ("sam2_s", "sam2_t")],
)
def test_another_types_file_is_refused(file: Path, written: str, read_as: str) -> None:
    torch.save({"model": random_weights.state_dict(written)}, file)
    with pytest.raises(CheckpointError) as refused:
        load_network(read_as, file, CPU)
    message = str(refused.value)
    assert read_as in message
    assert str(file) in message
    assert len(message) < 1000


def test_what_is_left_out_is_not_reported_as_foreign(
    published: Tensors, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Every published file has the video's parts, so a warning would be noise."""
    with caplog.at_level(logging.WARNING):
        tensors = read(saved({"model": published}, file))
    assert not [record for record in caplog.records if "left out" in record.getMessage()]
    assert not any(map(is_video_part, tensors))


def test_a_sam_1_file_keeps_names_that_sound_like_a_videos() -> None:
    """Parts are left out of SAM 2's files only."""
    from samserve.network.checkpoint_layouts import weights_in

    content = {"mask_decoder.iou_token.weight": 1, "no_obj_ptr": 2}
    assert weights_in(content).tensors == content
