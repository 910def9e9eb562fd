"""TorchServe's entry: a batch of request bodies in, an answer and a status for each.

The archive is registered once for each lane. The lane's name says which mode it answers
(`samserve.serving.lanes`). This file knows the order of the steps; the steps themselves are in the
`samserve` package.

TorchServe imports this file by its bare name and accepts exactly one class in it. So the values
that travel with a request live in `samserve.serving.rows`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import orjson
import torch
from ts.metrics.caching_metric import CachingMetric
from ts.metrics.metric_type_enum import MetricTypes

from samserve import grids, parents, segmenter
from samserve.answers import formats
from samserve.answers.features import Allow
from samserve.archives.digests import check_loaded
from samserve.errors import (
    Cancelled,
    InvalidRequest,
    OutOfMemory,
    SamserveError,
    error_body,
)
from samserve.masks.mask import Compact, CompactPromptMask, ObjectMask
from samserve.model import load_model
from samserve.network import devices
from samserve.pictures.decoder_process import DecoderProcess
from samserve.pictures.decoding import Decode
from samserve.pictures.picture import Picture
from samserve.serving import budgets, logs, rows
from samserve.serving.budgets import DecodingBudget, OutlineBudget
from samserve.serving.headers import IMAGE_PAGES, JOB
from samserve.serving.jobs import JobFolder, is_job_id
from samserve.serving.lanes import mode_of
from samserve.serving.memory import Memory
from samserve.serving.metrics import METRICS, Emit, WorkerMetrics
from samserve.serving.model_settings import ModelSettings
from samserve.serving.prompts import prompts_of
from samserve.serving.pulse import Pulse
from samserve.serving.requests import AutomaskRequest, EmbedRequest
from samserve.serving.rows import JSON, Answer, Prompted, Row
from samserve.serving.timing import ServerTiming

logger = logging.getLogger(__name__)


class SamHandler:
    """One worker process of one lane."""

    def initialize(self, context: Any) -> None:
        """Load the model. TorchServe calls this once, before the worker is READY.

        Args:
            context: the `ts.context.Context` of this lane.
        """
        for handler in logging.getLogger().handlers:
            # TorchServe reads the metrics from the lines of its worker's log.
            handler.setFormatter(logs.JsonFormatter(verbatim="[METRICS]", lane=context.model_name))
        parents.end_with_parent()
        self.metrics = WorkerMetrics(context.model_name, _emit_to_torchserve())
        properties = context.system_properties
        model_dir = Path(properties["model_dir"])
        check_loaded(model_dir)
        self.settings = ModelSettings.from_yaml(context.model_yaml_config)
        self.mode = mode_of(context.model_name)
        lane = self.settings.automask if self.mode == "automask" else self.settings.prompt
        self.light = self.settings.light if self.mode == "prompt" else None
        os.nice(lane.nice)
        self.decoder = DecoderProcess()  # after nice, which it inherits
        torch.set_num_threads(lane.resolve_threads())
        cv2.setNumThreads(1)  # OpenCV runs inside our own threads; its pool would compete
        device = devices.assigned(properties.get("gpu_id"), context.model_yaml_config)
        devices.bound_memory(device, lane.gpu_memory)
        folder = os.environ.get("SAMSERVE_JOBS_DIRECTORY")
        self.jobs = JobFolder(Path(folder)) if folder else None
        self.weights = json.loads((model_dir / "weights.json").read_text())
        self.segmenter = segmenter.Segmenter(
            load_model(
                self.settings.model_type,
                model_dir / context.manifest["model"]["serializedFile"],
                device=device,
                precision=self.settings.precision_on(device.type),
                compiled_parts=model_dir if self.settings.cpu_runtime == "openvino" else None,
                gpu_compile=self.settings.gpu_compile,
                cache=self.settings.embedding_cache,
                sha256=self.weights["sha256"],
            )
        )
        self.memory = Memory()
        pulses = os.environ.get("SAMSERVE_PULSE_DIRECTORY")
        self.pulse = Pulse(Path(pulses) if pulses else None, self.settings.step_s)

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[bytes]:
        """Answer a batch. An error of one request does not touch the others."""
        with self.pulse.working():
            batch = [Row(index, content, context) for index, content in enumerate(data)]
            questions = [row for row in batch if not row.asks_for_description]
            for row in batch:
                if row.asks_for_description:
                    row.answer = Answer(200, JSON, orjson.dumps(self.describe()))
            for row in questions:
                with self.errors_as_answers([row]):
                    row.read(self.mode, self.settings, self.weights)
            self.segment(questions)
            self.log_and_count(questions)
            self.memory.give_back()
            return [row.send() for row in batch]

    def segment(self, questions: Sequence[Row]) -> None:
        """Answer the requests that were read: embed their images, make masks, outline them."""
        decode = DecodingBudget(self.decoder, self.settings.limits, self.light)
        prompted: list[Prompted] = []
        for same_image in rows.by_image(questions):
            with self.errors_as_answers(same_image):
                prompted += self.embed(self.still_awaited(same_image), decode)
        light = self.light_enough(prompted)
        predicted: list[tuple[Prompted, list[CompactPromptMask]]] = []
        for same_picture in rows.by_picture(light):
            with self.errors_as_answers([request.row for request in same_picture]):
                predicted += self.masks_of(same_picture)
        self.outline(
            predicted,
            OutlineBudget(
                self.settings.limits, self.light, sum(request.decoder_s for request in light)
            ),
        )

    def still_awaited(self, batch: Iterable[Row]) -> list[Row]:
        """Answer the requests whose deadlines have passed, and return the others."""
        awaited = []
        for row in batch:
            with self.errors_as_answers([row]):
                row.check_deadline()
                awaited.append(row)
        return awaited

    def embed(self, same_image: Sequence[Row], decode: Decode) -> list[Prompted]:
        """Embed the image of these requests, and answer the automasks among them.

        It returns the requests for prompts. Their masks are made later, for the whole batch.

        Raises:
            SamserveError: the image cannot be read, so none of the requests can be answered.
        """
        if not same_image:
            return []
        self.pulse.step()
        # One request may have only a digest and another the picture itself, which is longer.
        sent = max((row.image for row in same_image), key=len)
        field = "b64img" if isinstance(sent, str) else "image"
        limits, page = self.settings.limits, same_image[0].request.page
        decode_it = budgets.decode_for([row.request for row in same_image], decode, limits)
        picture = Picture(sent, limits.max_image_pixels, field, page, decode_it)
        timing = ServerTiming(self.metrics.step)
        with timing.step("embed") as notes:
            embedded = self.segmenter.embed_file(picture)
            notes.append(embedded.source)
        if picture.decoding_s is not None:  # decoding is a part of "embed"
            timing.add("decode", picture.decoding_s)
        prompted = []
        for row in same_image:
            row.set_header(IMAGE_PAGES, str(embedded.pages))
            with self.errors_as_answers([row]):
                request, embedding = row.request, embedded.image.embedding
                if isinstance(request, AutomaskRequest):
                    row.answer = self.find_objects(row, request, embedded, timing.copy())
                elif isinstance(request, EmbedRequest):
                    row.set_header("Server-Timing", str(timing))
                    row.answer = rows.described(row, embedded)
                else:
                    budgets.check_light(request, embedded.size, self.light)
                    seconds = budgets.seconds_of_masks(request, embedded.size)
                    decoder_s = budgets.seconds_of_prompts(request)
                    prompts = prompts_of(request, embedding, limits, decode)
                    prompted.append(Prompted(row, seconds, decoder_s, prompts, embedded, timing))
        return prompted

    def light_enough(self, prompted: Sequence[Prompted]) -> list[Prompted]:
        """Return the requests that this lane takes, cheap ones first; the others get 421."""
        if self.light is None:
            return list(prompted)
        light = []
        for request, refusal in budgets.light_ones(prompted, lambda p: p.seconds, self.light):
            with self.errors_as_answers([request.row]):
                if refusal is not None:
                    raise refusal
                light.append(request)
        return light

    def masks_of(
        self, same_picture: Sequence[Prompted]
    ) -> list[tuple[Prompted, list[CompactPromptMask]]]:
        """Make the masks of all requests for prompts on one picture.

        Raises:
            SamserveError: the masks cannot be made.
        """
        awaited = self.still_awaited(request.row for request in same_picture)
        requests = [request for request in same_picture if request.row in awaited]
        if not requests:
            return []
        self.pulse.step()
        with requests[0].timing.step("masks"):
            return self.predict(requests)

    def outline(
        self,
        predicted: Sequence[tuple[Prompted, Sequence[CompactPromptMask]]],
        budget: OutlineBudget,
    ) -> None:
        """Write the answers to requests for prompts. Those with the least work come first."""
        by_work = sorted(predicted, key=lambda pair: sum(map(budgets.seconds_of_mask, pair[1])))
        for request, masks in by_work:
            row, embedded = request.row, request.embedded
            with self.errors_as_answers([row]), budget.request(masks) as allow:
                row.answer = self.write(row, masks, embedded, request.timing.copy(), allow)

    def predict(
        self, requests: Sequence[Prompted]
    ) -> list[tuple[Prompted, list[CompactPromptMask]]]:
        """Make the masks of these requests together; if memory runs out, one request at a time."""
        embedded = requests[0].embedded
        try:
            masks = self.segmenter.predict(embedded, [request.prompts for request in requests])
            return list(zip(requests, masks, strict=True))
        except OutOfMemory:
            pass  # retry outside the block: the traceback keeps the failed run's tensors alive
        predicted = []
        for request in requests:
            with self.errors_as_answers([request.row]):
                [made] = self.segmenter.predict(embedded, [request.prompts])
                predicted.append((request, made))
        return predicted

    def find_objects(
        self,
        row: Row,
        request: AutomaskRequest,
        embedded: segmenter.EmbeddedPicture,
        timing: ServerTiming,
    ) -> Answer:
        """Run automask as a job, which its client may watch, cancel, or read as a stream.

        Raises:
            SamserveError: automask cannot run, or its client is gone.
        """
        grids.check_points(request, embedded.size, self.settings.limits.max_points)
        job_id = row.header(JOB)
        if job_id is not None and not is_job_id(job_id):
            raise InvalidRequest(f"{JOB} must be 32 hexadecimal digits.")
        deadline_s = request.timeout_s or self.settings.limits.max_automask_s
        job = rows.job_of(row, self.jobs, job_id, self.pulse.step, deadline_s)
        try:
            with timing.step("masks"):
                objects = self.segmenter.find_objects(embedded, request, job)
        finally:
            if job_id is not None and self.jobs is not None:
                self.jobs.forget(job_id)
        if job.stopped == "cancelled":
            raise Cancelled("Cancelled: nobody waits for this answer any more.")
        with OutlineBudget(self.settings.limits, self.light).request(objects) as allow:
            if row.streams:
                self.metrics.masks(len(objects))
                content = self.content(row, objects, embedded, allow)
                return rows.end_of_stream(formats.lines(content), job, embedded.pages)
            answer = self.write(row, objects, embedded, timing, allow)
        return answer if job.stopped is None else rows.partial(answer, job)

    def write(
        self,
        row: Row,
        masks: Sequence[Compact],
        embedded: segmenter.EmbeddedPicture,
        timing: ServerTiming,
        allow: Allow,
    ) -> Answer:
        """Write the masks in the format that the client chose, with the timing in a header."""
        form = formats.chosen(row.segmentation.output_format, row.header("accept"))
        with timing.step("outline"):
            body, qualities = form.write(self.content(row, masks, embedded, allow))
        if qualities is not None:
            row.describe_objects(qualities)
        self.metrics.masks(len(masks))
        row.set_header("Server-Timing", str(timing))
        return Answer(200, form.media_type, body)

    def content(
        self,
        row: Row,
        masks: Sequence[Compact],
        embedded: segmenter.EmbeddedPicture,
        allow: Allow,
    ) -> formats.Content:
        """Return the content of an answer, before it is written in a format."""

        def one_by_one() -> Iterator[ObjectMask]:
            for mask in masks:
                row.check_deadline()
                self.pulse.step()
                allow(0, budgets.seconds_of_mask(mask))
                yield mask.unpacked()

        return formats.Content(
            masks=one_by_one(),
            size=embedded.size,
            sam_model=self.settings.model_type,
            simplify=row.segmentation.simplify,
            pages=embedded.pages,
            max_bytes=self.settings.limits.max_answer_bytes,
            allow=allow,
        )

    @contextlib.contextmanager
    def errors_as_answers(self, batch: Collection[Row]) -> Iterator[None]:
        """Turn an error in the block into the answer of these requests."""
        try:
            with logs.about(*(row.request_id for row in batch)):
                yield
        except (SamserveError, torch.OutOfMemoryError) as exc:
            error = exc if isinstance(exc, SamserveError) else devices.out_of_memory()
            for row in batch:
                row.answer = Answer(error.status, JSON, orjson.dumps(error.body()))
        except Exception:  # a bug of ours must not fail the rest of the batch
            for row in batch:
                with logs.about(row.request_id):
                    logger.exception("The request failed.")
                message = (
                    f"The server failed on this request; its log says why under {row.request_id}."
                )
                body = orjson.dumps(error_body("internal_error", message))
                row.answer = Answer(500, JSON, body)

    def log_and_count(self, batch: Collection[Row]) -> None:
        """Update the metrics for a batch, and log a line for each of its requests."""
        if batch:
            self.metrics.batch(len(batch))
        for row in batch:
            status, _, body = row.answer
            code = "ok" if status < 300 else orjson.loads(body)["error"]["code"]
            self.metrics.answered(status, code)
            # TorchServe's own log lines name the request by its job id.
            fields = {"status": status, "code": code, "job": row.torchserve_id}
            with logs.about(row.request_id):
                logger.info("Answered.", extra={"fields": fields})
        embeddings = self.segmenter.model.embeddings
        self.metrics.embeddings(embeddings.found, embeddings.redis_outcomes)
        device = self.segmenter.model.device
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
            self.metrics.gpu(device.index or 0, total - free, total)

    def describe(self) -> dict[str, Any]:
        """Return the worker's answer to `GET /models/{lane}?customized=true`."""
        model = self.segmenter.model
        return {
            "type": self.settings.model_type,
            "mode": self.mode,
            "device": str(model.device),
            "threads": torch.get_num_threads(),
            "runtime": model.runtime,
            "embeddings": dict(model.embeddings.found),
            "redis": dict(model.embeddings.redis_outcomes),
            "weights": self.weights,
            "limits": self.settings.limits.model_dump(),
            "light": self.settings.light.model_dump(),
        }


def _emit_to_torchserve() -> Emit:
    """Return a function that writes our metrics where TorchServe reads them: the worker's log."""
    by_metric = {
        metric: CachingMetric(
            metric.name, metric.unit, list(metric.labels), MetricTypes(metric.kind)
        )
        for metric in METRICS
    }
    return lambda metric, value, labels: by_metric[metric].add_or_update(value, list(labels))
