"""OpenVINO computes the same as PyTorch, and a worker without OpenVINO's files uses PyTorch."""

from __future__ import annotations

import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from samserve.model import load_model
from samserve.model_types import COMPILED_FILES
from samserve.network import openvino_parts
from samserve.network.batch_norms import fold_batch_norms
from samserve.network.decoder import Decoder
from samserve.network.encoder import Encoder
from tests.support.paths import ROOT
from tests.support.sample_pictures import picture

WEIGHTS = ROOT / "weights" / "vit_t.pt"


@pytest.fixture(scope="module")
def folder(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compiled")
    openvino_parts.export(model, folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted(COMPILED_FILES)
    return folder


@pytest.fixture(scope="module")
def networks(folder: Path) -> tuple[openvino_parts.Compiled, openvino_parts.Compiled]:
    return openvino_parts.load(folder, threads=2)


def test_the_encoder_is_the_references(model: Any, networks: Any) -> None:
    image = picture("astronaut")
    ours = Encoder(model, networks[0]).encode(image).features
    theirs = Encoder(model, model.image_encoder).encode(image).features
    assert (ours - theirs).abs().max() < 1e-4


def test_folding_the_norms_changes_nothing(model: Any) -> None:
    pixels = torch.rand(1, 3, 1024, 1024, generator=torch.Generator().manual_seed(0))
    folded = fold_batch_norms(model.image_encoder)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in model.image_encoder.modules())
    with torch.inference_mode():
        assert (folded(pixels) - model.image_encoder(pixels)).abs().max() < 1e-4


def test_any_number_of_tokens_and_masks(model: Any, networks: Any) -> None:
    embedding = Encoder(model, networks[0]).encode(picture("coins"))
    plain, ours = Decoder(model), Decoder(model, networks[1])
    for n_points in (1, 4):
        points = torch.rand(2, n_points, 2, generator=torch.Generator().manual_seed(1)) * 700
        prompt = (points, torch.ones(2, n_points, dtype=torch.int))
        theirs = plain.decode(plain.prepare(embedding), points=prompt)
        found = ours.decode(ours.prepare(embedding), points=prompt)
        for channels in ([0], [1, 2, 3], [2], [0, 1, 2, 3]):
            masks = found.low_res_masks(1, channels)
            expected = theirs.low_res_masks(1, channels)
            assert masks.shape == expected.shape
            assert (masks - expected).abs().max() < 1e-3


def test_threads_do_not_get_into_each_others_way(model: Any, networks: Any) -> None:
    encoder = Encoder(model, networks[0])
    decoder = Decoder(model, networks[1])
    image = decoder.prepare(encoder.encode(picture("coins")))
    boxes = [torch.tensor([[10.0 * i, 10, 10.0 * i + 90, 120]]) for i in range(12)]

    def mask(box: torch.Tensor) -> Any:
        return decoder.decode(image, boxes=box).low_res_masks(0, [0]).numpy()

    alone = [mask(box) for box in boxes]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(mask, boxes))
    for one, other in zip(alone, together, strict=True):
        assert np.allclose(one, other, atol=1e-4)


@pytest.mark.weights
def test_without_its_files_it_runs_in_pytorch_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        loaded = load_model("vit_t", WEIGHTS, compiled_parts=tmp_path)
    assert loaded.runtime == "pytorch"
    assert "PyTorch runs everything, slower" in caplog.text
    assert loaded.embeddings.of_pixels(picture("coins")).source == "encoder"


def test_importing_it_reports_to_nobody() -> None:
    """OpenVINO's package reports imports over the internet if openvino_telemetry is there."""
    code = (
        "import sys; from samserve.network import openvino_parts; openvino_parts._openvino();"
        "print([m for m in sys.modules if m.startswith('openvino_telemetry') and sys.modules[m]])"
    )
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
