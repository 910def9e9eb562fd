"""TorchServe's entry: bytes from a lane's queue in, GeoJSON bytes out, a status each.

The archive is registered once per lane; the lane's name says which mode it answers
(`vit_t` prompts, `vit_t-automask` automask). All it knows of segmentation is the order
of the steps; the steps are the `samserve` package beside it.

TorchServe imports this file by bare name and wants exactly one class in it.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import cv2
import orjson
import torch

from samserve import automask, prompts, segmenter
from samserve.errors import InvalidRequest, SamserveError, TooLarge, error_body
from samserve.features import ObjectMask, dumps, features
from samserve.images import Picture
from samserve.requests import AutomaskRequest, PromptRequest
from samserve.settings import ModelSettings, mode_of
from samserve.timing import ServerTiming

logger = logging.getLogger(__name__)

# Both by the request's place in its batch.
Requests = dict[int, PromptRequest | AutomaskRequest]
Answers = dict[int, tuple[int, bytes]]  # HTTP status, JSON


class SamHandler:
    """One worker of one lane."""

    def initialize(self, context: Any) -> None:
        """Load the model; called once, before the worker is READY.

        Args:
            context: `ts.context.Context` of this lane.
        """
        properties = context.system_properties
        model_dir = Path(properties["model_dir"])
        self.settings = ModelSettings.from_yaml(context.model_yaml_config)
        self.mode = mode_of(context.model_name)
        lane = self.settings.automask if self.mode == "automask" else self.settings.prompt
        os.nice(lane.nice)
        torch.set_num_threads(lane.resolve_threads())
        cv2.setNumThreads(1)  # its work is small, and done in threads already
        gpu_id = properties.get("gpu_id")
        self.weights = json.loads((model_dir / "weights.json").read_text())
        self.segmenter = segmenter.load(
            self.settings.model_type,
            model_dir / context.manifest["model"]["serializedFile"],
            device=torch.device("cpu" if gpu_id is None else f"cuda:{gpu_id}"),
            compiled_parts=model_dir if self.settings.cpu_runtime == "openvino" else None,
            cache=self.settings.embedding_cache,
        )

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[bytes]:
        """Answer a batch: one body and one status per request, whatever its neighbours did."""
        answers: Answers = {}
        requests: Requests = {}
        for index, row in enumerate(data):
            if context.get_request_header(index, "describe") == "True":
                answers[index] = 200, orjson.dumps(self.describe())
                continue
            with self.errors_as_answers([index], answers, context):
                requests[index] = self.parse(row)
        for same_image in _by_image(requests):
            with self.errors_as_answers(same_image, answers, context):
                self.segment(same_image, answers, context)
        for index, (status, _) in answers.items():
            context.set_response_content_type(index, "application/json")
            context.set_response_status(status, HTTPStatus(status).phrase, index)
        return [answers[index][1] for index in range(len(data))]

    def parse(self, row: dict[str, Any]) -> PromptRequest | AutomaskRequest:
        """The request, checked as far as that goes without its image.

        Raises:
            SamserveError: whatever is wrong with it.
        """
        body = self.body(row)
        request: PromptRequest | AutomaskRequest
        if self.mode == "automask":
            request = AutomaskRequest.parse(body)
            request.check_work(self.settings.limits.max_points)
        else:
            request = PromptRequest.parse(body)
        request.check_weights(self.settings.model_type, self.weights)
        return request

    def segment(self, requests: Requests, answers: Answers, context: Any) -> None:
        """The way of all requests of one image: embed it, make masks, outline them.

        Raises:
            SamserveError: the image cannot be read, so none of them can be answered.
        """
        text = next(iter(requests.values())).b64img
        picture = Picture(text, self.settings.limits.max_image_pixels)
        timing = ServerTiming()
        with timing.step("embed") as described:
            found = self.segmenter.embeddings.of_picture(picture)
            described.append(found.source)
        prompted: dict[int, PromptRequest] = {}
        for index, request in requests.items():
            with self.errors_as_answers([index], answers, context):
                if isinstance(request, PromptRequest):
                    request.boxes(*found.image.embedding.original_size)  # refuses one outside
                    prompted[index] = request
                else:
                    own = timing.copy()
                    with own.step("masks"):
                        objects = automask.generate(self.segmenter, found.image, picture, request)
                    answers[index] = self.outline(objects, own, index, context)
        with timing.step("masks"):
            per_request = prompts.predict(self.segmenter, found.image, list(prompted.values()))
        for index, masks in zip(prompted, per_request, strict=True):
            with self.errors_as_answers([index], answers, context):
                answers[index] = self.outline(masks, timing.copy(), index, context)

    def outline(
        self, masks: Sequence[ObjectMask], timing: ServerTiming, index: int, context: Any
    ) -> tuple[int, bytes]:
        """The answer that these masks make, with its timing in a header."""
        with timing.step("outline"):
            body = dumps(features(masks, self.settings.model_type))
        context.set_response_header(index, "Server-Timing", str(timing))
        return 200, body

    @contextmanager
    def errors_as_answers(
        self, indices: Iterable[int], answers: Answers, context: Any
    ) -> Iterator[None]:
        """Whatever goes wrong in the block is the answer to these requests, not to others."""
        try:
            yield
        except SamserveError as error:
            failed = error.status, orjson.dumps(error.body())
            answers.update(dict.fromkeys(indices, failed))
        except Exception:  # ours to mend, and no reason to fail the rest of the batch
            for index in indices:
                request_id = context.get_request_id(index)
                logger.exception("Request %s failed.", request_id)
                message = f"The server failed on this request; its log says why under {request_id}."
                answers[index] = 500, orjson.dumps(error_body("internal_error", message))

    def body(self, row: dict[str, Any]) -> bytes | bytearray:
        """The JSON bytes of one request.

        Raises:
            InvalidRequest: sent as a form, so that TorchServe took it apart.
            TooLarge: over `max_body_bytes`.
        """
        body = row.get("body")
        if not isinstance(body, (bytes, bytearray)):
            raise InvalidRequest(
                "Send the JSON as the request's body with Content-Type: application/json."
            )
        if len(body) > self.settings.limits.max_body_bytes:
            raise TooLarge(
                f"The body has {len(body)} bytes; "
                f"this server's limit is {self.settings.limits.max_body_bytes}."
            )
        return body

    def describe(self) -> dict[str, Any]:
        """What `GET /models/{lane}?customized=true` tells of this worker."""
        return {
            "type": self.settings.model_type,
            "mode": self.mode,
            "device": str(self.segmenter.device),
            "threads": torch.get_num_threads(),
            "runtime": self.segmenter.runtime,
            "embeddings": dict(self.segmenter.embeddings.found),
            "weights": self.weights,
            "limits": self.settings.limits.model_dump(),
        }


def _by_image(requests: Requests) -> list[Requests]:
    """The requests of each image together, in the order in which the images came."""
    groups: dict[str, Requests] = {}
    for index, request in requests.items():
        groups.setdefault(request.b64img, {})[index] = request
    return list(groups.values())
