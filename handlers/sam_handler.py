"""TorchServe's entry: bytes from a lane's queue in, GeoJSON bytes out, a status each.

The archive is registered once per lane; the lane's name says which mode it answers
(`samserve.lanes`). All it knows of segmentation is the order of the steps; the steps are
the `samserve` package beside it.

TorchServe imports this file by bare name and wants exactly one class in it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Collection, Iterator, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

import cv2
import orjson
import torch
from ts.handler_utils.utils import send_intermediate_predict_response
from ts.metrics.caching_metric import CachingMetric
from ts.metrics.metric_type_enum import MetricTypes

from samserve import automask, prompts, segmenter
from samserve.answers import formats
from samserve.answers.features import ObjectMask, PromptMask
from samserve.embeddings.cache import EmbeddedImage
from samserve.errors import (
    Cancelled,
    InvalidRequest,
    OutOfMemory,
    SamserveError,
    TimedOut,
    TooLarge,
    UnsupportedEncoding,
    error_body,
)
from samserve.network import devices
from samserve.network.decoder import Image
from samserve.pictures.picture import Picture
from samserve.progress import Job
from samserve.serving import forms, logs
from samserve.serving.jobs import JobFolder, JobProgress, is_job_id
from samserve.serving.lanes import mode_of
from samserve.serving.metrics import METRICS, Tell, WorkerMetrics
from samserve.serving.model_settings import ModelSettings
from samserve.serving.requests import AutomaskRequest, PromptRequest
from samserve.serving.timing import ServerTiming

logger = logging.getLogger(__name__)

Asked = tuple[PromptRequest | AutomaskRequest, str | bytes]  # the request, its image as sent

# Each by the request's place in its batch.
Requests = dict[int, Asked]
Answer = tuple[int, str, bytes]  # HTTP status, media type, body
Answers = dict[int, Answer]

JSON = "application/json"

# Sent by the gateway, in lower case. What the client calls the request, for the logs.
REQUEST_ID_HEADER = "x-request-id"
# An automask's run: to be known by, and to be cancelled by.
JOB_HEADER = "samserve-job"
# `true`: the answer is a stream of events, the run's progress among them.
STREAM_HEADER = "samserve-stream"
# `true`: the gateway has chosen this worker in place of a type that is not loaded, so the body's
# `type` and `checkpoint_url` are not this worker's.
STAND_IN_HEADER = "samserve-stand-in"

# In the answer: how many pages the picture has.
PAGES_HEADER = "X-Image-Pages"


class SamHandler:
    """One worker of one lane."""

    def initialize(self, context: Any) -> None:
        """Load the model; called once, before the worker is READY.

        Args:
            context: `ts.context.Context` of this lane.
        """
        for handler in logging.getLogger().handlers:
            # TorchServe reads the metrics between the lines of its worker's log.
            handler.setFormatter(logs.JsonFormatter(verbatim="[METRICS]", lane=context.model_name))
        self.metrics = WorkerMetrics(context.model_name, _told_to_torchserve())
        properties = context.system_properties
        model_dir = Path(properties["model_dir"])
        self.settings = ModelSettings.from_yaml(context.model_yaml_config)
        self.mode = mode_of(context.model_name)
        lane = self.settings.automask if self.mode == "automask" else self.settings.prompt
        os.nice(lane.nice)
        torch.set_num_threads(lane.resolve_threads())
        cv2.setNumThreads(1)  # its work is small, and done in threads already
        device = devices.assigned(properties.get("gpu_id"), context.model_yaml_config)
        devices.bound_memory(device, lane.gpu_memory)
        folder = os.environ.get("SAMSERVE_JOBS_DIRECTORY")
        self.jobs = JobFolder(Path(folder)) if folder else None
        self.weights = json.loads((model_dir / "weights.json").read_text())
        self.segmenter = segmenter.load(
            self.settings.model_type,
            model_dir / context.manifest["model"]["serializedFile"],
            device=device,
            precision=self.settings.precision_on(device.type),
            compiled_parts=model_dir if self.settings.cpu_runtime == "openvino" else None,
            gpu_compile=self.settings.gpu_compile,
            cache=self.settings.embedding_cache,
            sha256=self.weights["sha256"],
        )

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[bytes]:
        """Answer a batch: one body and one status per request, whatever its neighbours did."""
        answers: Answers = {}
        requests: Requests = {}
        asked = [index for index in range(len(data)) if not _asks_for_description(index, context)]
        for index, row in enumerate(data):
            if index not in asked:
                answers[index] = 200, JSON, orjson.dumps(self.describe())
                continue
            with self.errors_as_answers([index], answers, context):
                requests[index] = self.parse(row, index, context)
        for same_image in _by_image(requests):
            with self.errors_as_answers(same_image, answers, context):
                self.segment(same_image, answers, context)
        self.tell({index: answers[index] for index in asked}, context)
        for index, (status, media_type, body) in answers.items():
            if _has_begun(index, context) and status != 200:
                # Its status is said already; the error is one more event.
                answers[index] = 200, formats.EVENTS, formats.event("error", **orjson.loads(body))
                continue
            context.set_response_content_type(index, media_type)
            context.set_response_status(status, HTTPStatus(status).phrase, index)
        return [answers[index][2] for index in range(len(data))]

    def parse(self, row: dict[str, Any], index: int, context: Any) -> Asked:
        """The request, checked as far as that goes without its image, and the image as sent.

        Raises:
            SamserveError: whatever is wrong with it.
        """
        encoding = _header(context, index, "content-encoding")
        if encoding not in (None, "identity"):
            raise UnsupportedEncoding(
                f"Content-Encoding: {encoding} is not read here, only by the gateway."
            )
        body, image = self.body(row, _header(context, index, "content-type"))
        request: PromptRequest | AutomaskRequest
        if self.mode == "automask":
            request = AutomaskRequest.parse(body).with_defaults(self.settings.defaults)
            limits = self.settings.limits
            request.check_work(limits.max_points, limits.max_automask_s)
        else:
            request = PromptRequest.parse(body)
            request.each_prompt()  # refuses what prompts nothing, before any work
        if _header(context, index, STAND_IN_HEADER) != "true":
            request.check_weights(self.settings.model_type, self.weights)
        formats.chosen(request.output_format, None)  # refuses one that there is not
        return request, request.b64img if image is None else image

    def segment(self, requests: Requests, answers: Answers, context: Any) -> None:
        """The way of all requests of one image: embed it, make masks, outline them.

        Raises:
            SamserveError: the image cannot be read, so none of them can be answered.
        """
        # One may have sent a reference and another the picture itself, which is longer.
        sent = max((sent for _, sent in requests.values()), key=len)
        [page] = {request.page for request, _ in requests.values()}
        field = "b64img" if isinstance(sent, str) else "image"
        picture = Picture(sent, self.settings.limits.max_image_pixels, field, page=page)
        timing = ServerTiming(self.metrics.step)
        with timing.step("embed") as described:
            found = self.segmenter.embeddings.of_picture(picture)
            described.append(found.source)
        for index in requests:
            context.set_response_header(index, PAGES_HEADER, str(found.pages))
        if picture.decoding_s is not None:  # as a part of embedding it
            timing.add("decode", picture.decoding_s)
        prompted: dict[int, list[prompts.LocatedPrompt]] = {}
        for index, (request, _) in requests.items():
            with self.errors_as_answers([index], answers, context):
                if isinstance(request, PromptRequest):
                    prompted[index] = prompts.locate(
                        request, found.image.embedding, self.settings.limits.max_image_pixels
                    )
                else:
                    answers[index] = self.every_object(
                        request, found, picture, timing.copy(), index, context
                    )
        if not prompted:
            return
        with timing.step("masks"):
            predicted = self.predicted(prompted, found.image, answers, context)
        for index, masks in predicted.items():
            with self.errors_as_answers([index], answers, context):
                request, _ = requests[index]
                own = timing.copy()
                answers[index] = self.written(masks, request, found, own, index, context)

    def predicted(
        self,
        prompted: dict[int, list[prompts.LocatedPrompt]],
        image: Image,
        answers: Answers,
        context: Any,
    ) -> dict[int, list[PromptMask]]:
        """The masks of these requests, made together; each for itself where memory is short."""
        try:
            masks = prompts.predict(self.segmenter, image, list(prompted.values()))
            return dict(zip(prompted, masks, strict=True))
        except OutOfMemory:
            pass
        predicted = {}
        for index, of_one in prompted.items():
            with self.errors_as_answers([index], answers, context):
                [predicted[index]] = prompts.predict(self.segmenter, image, [of_one])
        return predicted

    def every_object(
        self,
        request: AutomaskRequest,
        found: EmbeddedImage,
        picture: Picture,
        timing: ServerTiming,
        index: int,
        context: Any,
    ) -> Answer:
        """Automask, watched by whoever gave the run an id or wants it as a stream of events.

        Raises:
            SamserveError: it cannot be done, took too long before anything was found, or
                nobody wants it any more.
        """
        image, size = found.image, found.image.embedding.original_size
        automask.check_tiles(request, size, self.settings.limits.max_points)
        job_id = _header(context, index, JOB_HEADER)
        if job_id is not None and not is_job_id(job_id):
            raise InvalidRequest(f"{JOB_HEADER} must be 32 hexadecimal digits.")
        # A part of an answer goes to every request of a batch.
        streams = _header(context, index, STREAM_HEADER) == "true" and len(context.request_ids) == 1
        started = time.time()

        def report(done: int, total: int) -> None:
            if job_id is not None and self.jobs is not None:
                self.jobs.write(job_id, JobProgress(context.model_name, done, total, started))
            if streams:
                _send(formats.event("progress", done=done, total=total), context)

        job = Job(
            deadline_s=request.timeout_s or self.settings.limits.max_automask_s,
            cancelled=lambda: bool(job_id and self.jobs and self.jobs.is_cancelled(job_id)),
            report=report,
        )
        try:
            with timing.step("masks"):
                objects = automask.generate(self.segmenter, image, picture, request, job)
        finally:
            if job_id is not None and self.jobs is not None:
                self.jobs.forget(job_id)
        if job.stopped == "cancelled":
            raise Cancelled("Cancelled: nobody waits for this answer any more.")
        late = job.stopped == "timeout"
        done = {"done": job.done, "total": job.total}
        error = TimedOut(f"Stopped after {job.done} of {job.total} points: the time was over.")
        if streams:
            self.metrics.masks(len(objects))
            answered = self.answered(objects, request, found)
            last = formats.event("error", **error.body(), **done)
            if not late:
                last = formats.event("done", pages=found.pages)
            return 200, formats.EVENTS, formats.lines(answered) + last
        answer = self.written(objects, request, found, timing, index, context)
        if late:
            partial = {**error.body(), **done, "found": orjson.Fragment(answer[2])}
            return TimedOut.status, JSON, orjson.dumps(partial)
        return answer

    def written(
        self,
        masks: Sequence[ObjectMask],
        request: PromptRequest | AutomaskRequest,
        found: EmbeddedImage,
        timing: ServerTiming,
        index: int,
        context: Any,
    ) -> Answer:
        """The answer that these masks make, in the form asked for, its timing in a header."""
        form = formats.chosen(request.output_format, _header(context, index, "accept"))
        with timing.step("outline"):
            body = form.dumps(self.answered(masks, request, found))
        self.metrics.masks(len(masks))
        context.set_response_header(index, "Server-Timing", str(timing))
        return 200, form.media_type, body

    def answered(
        self,
        masks: Sequence[ObjectMask],
        request: PromptRequest | AutomaskRequest,
        found: EmbeddedImage,
    ) -> formats.Answered:
        """What there is to write."""
        size, pages = found.image.embedding.original_size, found.pages
        return formats.Answered(masks, size, self.settings.model_type, request.simplify, pages)

    @contextlib.contextmanager
    def errors_as_answers(
        self, indices: Collection[int], answers: Answers, context: Any
    ) -> Iterator[None]:
        """Whatever goes wrong in the block is the answer to these requests, not to others."""
        try:
            with logs.about(*(_request_id(index, context) for index in indices)):
                yield
        except (SamserveError, torch.OutOfMemoryError) as exc:
            error = exc if isinstance(exc, SamserveError) else devices.out_of_memory()
            failed = error.status, JSON, orjson.dumps(error.body())
            answers.update(dict.fromkeys(indices, failed))
        except Exception:  # ours to mend, and no reason to fail the rest of the batch
            for index in indices:
                request_id = _request_id(index, context)
                with logs.about(request_id):
                    logger.exception("The request failed.")
                message = f"The server failed on this request; its log says why under {request_id}."
                answers[index] = 500, JSON, orjson.dumps(error_body("internal_error", message))

    def tell(self, answers: Answers, context: Any) -> None:
        """The metrics of a batch, and a line in the log for each of its requests."""
        if answers:
            self.metrics.batch(len(answers))
        for index, (status, _, body) in answers.items():
            code = "ok" if status == 200 else orjson.loads(body)["error"]["code"]
            self.metrics.answered(status, code)
            # TorchServe's own lines know it as a job.
            told = {"status": status, "code": code, "job": context.get_request_id(index)}
            with logs.about(_request_id(index, context)):
                logger.info("Answered.", extra={"fields": told})
        embeddings = self.segmenter.embeddings
        self.metrics.embeddings(embeddings.found, embeddings.redis_outcomes)
        device = self.segmenter.device
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
            self.metrics.gpu(device.index or 0, total - free, total)

    def body(
        self, row: dict[str, Any], content_type: str | None
    ) -> tuple[bytes | bytearray, bytes | None]:
        """The JSON bytes of one request, and the image's file if that came as a part of a form.

        Raises:
            InvalidRequest: neither JSON nor multipart/form-data.
            TooLarge: over `max_body_bytes`.
        """
        limit = self.settings.limits.max_body_bytes
        size = sum(len(part) for part in row.values())
        if size > limit:
            raise TooLarge(f"The body has {size} bytes; this server's limit is {limit}.")
        if (content_type or "").lower().startswith("multipart/form-data"):
            return forms.to_json(row)
        if not isinstance(row.get("body"), (bytes, bytearray)):
            raise InvalidRequest(
                "Send the JSON as the request's body with Content-Type: application/json, "
                "or a form as multipart/form-data."
            )
        return row["body"], None

    def describe(self) -> dict[str, Any]:
        """What `GET /models/{lane}?customized=true` tells of this worker."""
        return {
            "type": self.settings.model_type,
            "mode": self.mode,
            "device": str(self.segmenter.device),
            "threads": torch.get_num_threads(),
            "runtime": self.segmenter.runtime,
            "embeddings": dict(self.segmenter.embeddings.found),
            "redis": dict(self.segmenter.embeddings.redis_outcomes),
            "weights": self.weights,
            "limits": self.settings.limits.model_dump(),
        }


def _by_image(requests: Requests) -> list[Requests]:
    """The requests of each page of an image together, in the order in which these came."""
    groups: dict[tuple[str, int], Requests] = {}
    for index, asked in requests.items():
        groups.setdefault((asked[0].b64img, asked[0].page), {})[index] = asked
    return list(groups.values())


def _told_to_torchserve() -> Tell:
    """Our metrics as TorchServe's, which reads them in the worker's log."""
    named = {
        metric: CachingMetric(
            metric.name, metric.unit, list(metric.labels), MetricTypes(metric.kind)
        )
        for metric in METRICS
    }
    return lambda metric, value, labels: named[metric].add_or_update(value, list(labels))


def _asks_for_description(index: int, context: Any) -> bool:
    """Whether TorchServe's management wants to know of the worker itself."""
    return bool(context.get_request_header(index, "describe") == "True")


def _request_id(index: int, context: Any) -> str:
    """The client's, if it gave a sane one, or TorchServe's."""
    given = _header(context, index, REQUEST_ID_HEADER)
    return given if given and logs.is_request_id(given) else str(context.get_request_id(index))


def _send(part: bytes, context: Any) -> None:
    """A part of the answer to the one request of this batch, on its way at once."""
    context.set_response_content_type(0, formats.EVENTS)
    context.set_response_status(200, HTTPStatus.OK.phrase, 0)
    send_intermediate_predict_response(
        [part], context.request_ids, "Intermediate response", 200, context
    )


def _has_begun(index: int, context: Any) -> bool:
    """Whether a part of the answer has been sent."""
    return bool(context.get_response_headers(index).get("ts_stream_next") == "true")


def _header(context: Any, index: int, name: str) -> str | None:
    """A header of a request, by its name in lower case: clients spell them as they like."""
    headers: dict[str, Any] = context.get_all_request_header(index)
    # Parts of a form stand among them, each with the headers of its own.
    values = (v for k, v in headers.items() if k.lower() == name and isinstance(v, str))
    return next(values, None)
