"""A worker's handler in this process, called with TorchServe's own context."""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from samserve.pictures.decoder_process import DecoderProcess
from samserve.segmenter import Segmenter
from samserve.serving.lanes import mode_of
from samserve.serving.memory import Memory
from samserve.serving.metrics import WorkerMetrics
from samserve.serving.model_settings import ModelSettings
from samserve.serving.pulse import Pulse
from tests.support.settings import SETTINGS


@dataclass(frozen=True)
class Answered:
    """The answer to one request of a batch: JSON as it was parsed, and an image as bytes."""

    status: int
    body: Any
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def code(self) -> str:
        return str(self.body["error"]["code"])

    @property
    def message(self) -> str:
        return str(self.body["error"]["message"])


def imported(module: str) -> Any:
    """Import a module of TorchServe, or one that imports it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # TorchServe does not close a file
        return importlib.import_module(module)


def handler_of(
    segmenter: Segmenter,
    decoder: DecoderProcess,
    lane: str = "vit_t",
    settings: ModelSettings = SETTINGS,
) -> Any:
    """Return the handler of a lane as `initialize` leaves it, with this segmenter and decoder."""
    handler = imported("handlers.sam_handler").SamHandler()
    handler.settings, handler.mode = settings, mode_of(lane)
    handler.light = settings.light if handler.mode == "prompt" else None
    handler.segmenter, handler.decoder, handler.jobs = segmenter, decoder, None
    handler.metrics = WorkerMetrics(lane, lambda metric, value, labels: None)
    handler.weights = {"name": "default", "url": "file:vit_t.pt", "sha256": ""}
    handler.lane, handler.memory = lane, Memory()
    handler.pulse = Pulse(None, settings.step_s)
    return handler


def answers(
    handler: Any, bodies: Sequence[dict[str, Any]], headers: Sequence[dict[str, str]] = ()
) -> list[Answered]:
    """Let the handler answer these bodies as one batch. Headers belong to the bodies in order."""
    context_of = imported("ts.context")
    context = context_of.Context(handler.lane, "", {}, len(bodies), None, "0.12.0")
    context.request_ids = {index: str(index) for index in range(len(bodies))}
    context.request_processor = {
        index: context_of.RequestProcessor(dict(headers[index] if headers else {}))
        for index in range(len(bodies))
    }
    data = [{"body": json.dumps(body).encode()} for body in bodies]
    sent = handler.handle(data, context)
    return [
        Answered(
            context.get_response_status(index)[0],
            answer if answer.startswith(b"\x89PNG") else json.loads(answer),
            dict(context.get_response_headers(index)),
        )
        for index, answer in enumerate(sent)
    ]
