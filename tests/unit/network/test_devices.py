"""A worker uses its assigned device or does not start; a batch is halved if memory is short."""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from samserve import model as model_module
from samserve import prompts
from samserve.errors import OutOfMemory, SamserveError
from samserve.network.decoder import Decoder
from samserve.network.devices import DeviceError, assigned, in_halves
from samserve.network.encoder import Embedding, Encoder
from samserve.pictures.decoding import decode_page
from samserve.prompts import Prompt
from samserve.serving.prompts import prompts_of
from samserve.serving.requests import PromptRequest
from samserve.serving.rows import Prompted, Row
from samserve.serving.timing import ServerTiming
from tests.support.sample_pictures import picture
from tests.support.segmenters import segmenter_of
from tests.support.settings import SETTINGS


def gpus(monkeypatch: pytest.MonkeyPatch, cuda: int = 0, mps: bool = False) -> None:
    """Let PyTorch report these devices."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("gpu_id", "config", "cuda", "mps", "device"),
    [
        pytest.param(None, {}, 0, False, "cpu", id="a machine without"),
        pytest.param(None, {"deviceType": "cpu"}, 2, False, "cpu", id="kept off the GPUs"),
        pytest.param(1, {}, 2, False, "cuda:1", id="the one assigned"),
        pytest.param(1, {"deviceIds": [1, 3]}, 4, False, "cuda:1", id="one of those wanted"),
        pytest.param(0, {}, 0, True, "mps", id="Apple's"),
    ],
)
def test_the_device_assigned(
    monkeypatch: pytest.MonkeyPatch,
    gpu_id: int | None,
    config: dict[str, Any],
    cuda: int,
    mps: bool,
    device: str,
) -> None:
    gpus(monkeypatch, cuda, mps)
    assert str(assigned(gpu_id, config)) == device


@pytest.mark.parametrize(
    ("gpu_id", "config", "cuda", "reason"),
    [
        pytest.param(0, {}, 0, "which PyTorch .* cannot use: .*number_of_gpu=0", id="unusable"),
        pytest.param(3, {}, 2, "it finds 2 GPUs", id="not so many"),
        pytest.param(None, {"deviceType": "gpu"}, 0, "found none", id="a GPU wanted"),
        pytest.param(None, {"deviceIds": [0]}, 0, "found none", id="this GPU wanted"),
        pytest.param(0, {"deviceIds": [2]}, 2, "some are missing", id="another GPU wanted"),
    ],
)
def test_a_device_that_cannot_be_had_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
    gpu_id: int | None,
    config: dict[str, Any],
    cuda: int,
    reason: str,
) -> None:
    """TorchServe would take a RuntimeError that names CUDA for out of memory."""
    gpus(monkeypatch, cuda)
    with pytest.raises(DeviceError, match=reason) as refusal:
        assigned(gpu_id, config)
    assert not isinstance(refusal.value, RuntimeError)


def doubled(most: int, asked: list[int]) -> Any:
    """Return work that runs out of memory for more than `most` tasks at once."""

    def work(batch: Sequence[int]) -> list[int]:
        asked.append(len(batch))
        if len(batch) > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return [2 * task for task in batch]

    return work


@pytest.mark.parametrize(
    ("tasks", "most", "tried"),
    [(4, 4, [4]), (5, 3, [5, 3, 2]), (1, 1, [1])],
    ids=["fits", "halved", "one"],
)
def test_what_does_not_fit_is_halved(tasks: int, most: int, tried: list[int]) -> None:
    asked: list[int] = []
    assert in_halves(doubled(most, asked), range(tasks)) == [2 * n for n in range(tasks)]
    assert asked == tried


@pytest.mark.parametrize("tasks", [1, 5])
def test_halved_once_and_then_refused(tasks: int) -> None:
    asked: list[int] = []
    with pytest.raises(OutOfMemory) as refusal:
        in_halves(doubled(0, asked), range(tasks))
    assert asked == [tasks, -(-tasks // 2)]
    assert refusal.value.status == 503
    assert isinstance(refusal.value, SamserveError)
    assert "CUDA" not in str(refusal.value)


class Short:
    """A device whose memory is enough for `most` prompts at once; beyond, PyTorch raises."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
        self.most = most
        self.asked: list[int] = []
        decode = Decoder.decode

        def short(decoder: Decoder, image: Any, **given: Any) -> Any:
            n_prompts = len(given["points"][0] if given.get("points") else given["boxes"])
            self.asked.append(n_prompts)
            if n_prompts > self.most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return decode(decoder, image, **given)

        monkeypatch.setattr(Decoder, "decode", short)


def test_prompts_that_do_not_fit_together_are_halved(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = segmenter_of(model)
    image = alone.model.embeddings.of_pixels(picture("coins")).image
    boxes = [{"bbox": [20 + n, 30, 70 + n, 78]} for n in range(8)]
    located = _prompts(image.embedding, prompts=boxes)
    expected = prompts.predict(alone.model, image, [located])
    device = Short(monkeypatch, most=2)
    found = prompts.predict(alone.model, image, [located])
    assert device.asked.count(2) == 4
    assert 4 in device.asked
    for ours, theirs in zip(found[0], expected[0], strict=True):
        assert ours.prompt_idx == theirs.prompt_idx
        assert np.array_equal(ours.unpacked().mask, theirs.unpacked().mask)


def test_the_number_that_fits_is_tried_out(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, decoder = _quick_encoder(model), Decoder(model)
    decoder.prompts_at_once = 64
    Short(monkeypatch, most=20)
    assert model_module.prompts_that_fit(encoder, decoder, reserved=1000) == 16


def test_a_device_that_is_too_small_says_so_at_the_start(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, decoder = _quick_encoder(model), Decoder(model)
    decoder.prompts_at_once = 64
    Short(monkeypatch, most=model_module.FEWEST_PROMPTS - 1)
    with pytest.raises(DeviceError, match=r"too little for the model.*gpu_memory"):
        model_module.prompts_that_fit(encoder, decoder, reserved=1000)


def imported(module: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # TorchServe does not close a file
        return importlib.import_module(module)


@pytest.fixture
def handler() -> Any:
    """The handler that TorchServe creates, without a model."""
    return imported("handlers.sam_handler").SamHandler()


@pytest.fixture
def context() -> Any:
    """TorchServe's context for a batch of six requests."""
    torchserves = imported("ts.context")
    context = torchserves.Context("vit_t", "", {}, 6, None, "0.12.0")
    context.request_ids = {index: str(index) for index in range(6)}
    context.request_processor = {index: torchserves.RequestProcessor({}) for index in range(6)}
    return context


def test_a_request_that_is_too_large_for_the_memory_fails_alone(
    model: Any, handler: Any, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two requests on one picture: one prompt, and eight, for which the memory is too small."""
    handler.segmenter = segmenter_of(model)
    embedded = handler.segmenter.embed(picture("coins"))
    boxes = [{"bbox": [20 + n, 30, 70 + n, 78]} for n in range(8)]
    large, small = Row(3, {}, context), Row(5, {}, context)
    embedding = embedded.image.embedding
    prompted = [
        Prompted(row, 0.1, 0.1, _prompts(embedding, **fields), embedded, ServerTiming())
        for row, fields in ((large, {"prompts": boxes}), (small, {"bbox": [20, 30, 70, 78]}))
    ]
    Short(monkeypatch, most=1)
    [(answered, [mask])] = handler.predict(prompted)
    assert answered.row is small
    assert mask.unpacked().area > 1000
    assert large.answer.status == 503
    assert json.loads(large.answer.body)["error"]["code"] == "out_of_memory"


def test_memory_that_runs_out_elsewhere_gives_the_same_error(handler: Any, context: Any) -> None:
    """For example in the encoder, whose work cannot be halved."""
    rows = [Row(index, {}, context) for index in (0, 2)]
    with handler.errors_as_answers(rows):
        raise torch.OutOfMemoryError("CUDA out of memory.")
    assert [row.answer.status for row in rows] == [503, 503]


def _quick_encoder(model: Any) -> Encoder:
    return Encoder(model, lambda pixels: torch.zeros(1, 256, 64, 64))


def _prompts(embedding: Embedding, **fields: Any) -> list[Prompt]:
    request = PromptRequest.parse(_body(**fields))
    return prompts_of(request, embedding, SETTINGS.limits, decode_page)


def _body(**fields: Any) -> bytes:
    return json.dumps({"type": "vit_t", "b64img": "", **fields}).encode()
