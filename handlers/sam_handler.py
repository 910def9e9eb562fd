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
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

import orjson
import torch

from samserve import automask, prompts
from samserve.checkpoints import load_model
from samserve.errors import InvalidRequest, SamserveError, TooLarge, error_body
from samserve.features import ObjectMask, dumps, features
from samserve.images import decode_base64, decode_image
from samserve.requests import AutomaskRequest, PromptRequest
from samserve.settings import ModelSettings, mode_of

logger = logging.getLogger(__name__)


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
        gpu_id = properties.get("gpu_id")
        self.device = torch.device("cpu" if gpu_id is None else f"cuda:{gpu_id}")
        self.weights = json.loads((model_dir / "weights.json").read_text())
        self.model = load_model(
            self.settings.model_type,
            model_dir / context.manifest["model"]["serializedFile"],
            self.device,
        )

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[bytes]:
        """Answer a batch: one body and one status per request, whatever its neighbours did."""
        answers = []
        for index, row in enumerate(data):
            if context.get_request_header(index, "describe") == "True":
                status, answer = 200, orjson.dumps(self.describe())
            else:
                status, answer = self.answer(row, context.get_request_id(index))
            context.set_response_content_type(index, "application/json")
            context.set_response_status(status, HTTPStatus(status).phrase, index)
            answers.append(answer)
        return answers

    def answer(self, row: dict[str, Any], request_id: str) -> tuple[int, bytes]:
        """(HTTP status, JSON bytes) for one request. Does not raise."""
        try:
            return 200, self.segment(row)
        except SamserveError as error:
            return error.status, orjson.dumps(error.body())
        except Exception:  # ours to mend, and no reason to fail the rest of the batch
            logger.exception("Request %s failed.", request_id)
            message = f"The server failed on this request; its log says why under {request_id}."
            return 500, orjson.dumps(error_body("internal_error", message))

    def segment(self, row: dict[str, Any]) -> bytes:
        """The way of a request."""
        body = self.body(row)
        limits = self.settings.limits
        request: AutomaskRequest | PromptRequest
        if self.mode == "automask":
            request = AutomaskRequest.parse(body)
            request.check_work(limits.max_points)
        else:
            request = PromptRequest.parse(body)
        request.check_weights(self.settings.model_type, self.weights)
        image = decode_image(decode_base64(request.b64img), limits.max_image_pixels)
        masks: Sequence[ObjectMask]
        if isinstance(request, AutomaskRequest):
            masks = automask.generate(self.model, image, request)
        else:
            masks = prompts.predict(self.model, image, request)
        return dumps(features(masks, self.settings.model_type))

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
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "weights": self.weights,
            "limits": self.settings.limits.model_dump(),
        }
