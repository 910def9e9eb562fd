"""A Row is one request of TorchServe's batch, from its bytes to its answer.

It is the only code that reads and writes TorchServe's context for a single request.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal, NamedTuple

import orjson
import pybase64
from pydantic_core import from_json

from samserve.answers import formats
from samserve.answers.images import PNG
from samserve.errors import (
    InvalidField,
    InvalidRequest,
    TimedOut,
    TooLarge,
    UnsupportedEncoding,
    quoted,
)
from samserve.pictures.digests import reference_to
from samserve.progress import Job
from samserve.prompts import Prompt
from samserve.segmenter import EmbeddedPicture

from . import forms, logs, strictness
from .headers import (
    DEADLINE,
    MODE,
    OBJECTS,
    PREFER,
    PREFERENCE_APPLIED,
    QUALITY,
    REQUEST_ID,
    STAND_IN,
    STREAM,
)
from .jobs import JobFolder, JobProgress
from .json_text import to_utf8
from .lanes import Mode
from .model_settings import ModelSettings
from .requests import AutomaskRequest, EmbedRequest, PromptRequest
from .timing import ServerTiming

JSON = "application/json"

MAX_QUALITIES = 100
"""Most objects whose predicted IoUs stand in a header. TorchServe takes headers of some KiB."""


class Answer(NamedTuple):
    """The HTTP status, the media type and the body of an answer."""

    status: int
    media_type: str
    body: bytes


class Row:
    """One request of a batch.

    Args:
        index: its place in the batch.
        content: what TorchServe made of its body: `{"body": bytes}`, or a form's parts.
        context: TorchServe's context of the batch.

    Attributes:
        request: the checked request; set by `read`.
        image: base64 text or the bytes of the image file, as sent; set by `read`.
        answer: set once it is known.
    """

    request: PromptRequest | AutomaskRequest | EmbedRequest
    image: str | bytes
    answer: Answer

    def __init__(self, index: int, content: dict[str, Any], context: Any) -> None:
        self._index = index
        self._content = content
        self._context = context

    @property
    def segmentation(self) -> PromptRequest | AutomaskRequest:
        """The request, if it asks for objects."""
        if isinstance(self.request, EmbedRequest):
            raise TypeError("nobody asks for objects")
        return self.request

    @property
    def lane(self) -> str:
        return str(self._context.model_name)

    @property
    def torchserve_id(self) -> str:
        """The id by which TorchServe's own log lines name the request."""
        return str(self._context.get_request_id(self._index))

    @property
    def request_id(self) -> str:
        """The client's id of the request if it is a valid one, else TorchServe's."""
        value = self.header(REQUEST_ID)
        return value if value and logs.is_request_id(value) else self.torchserve_id

    @property
    def asks_for_description(self) -> bool:
        """Whether TorchServe's management API asks for the description of this worker."""
        return bool(self._context.get_request_header(self._index, "describe") == "True")

    @property
    def streams(self) -> bool:
        """Whether the answer is a stream of events.

        Only in a batch of one: TorchServe sends a part of an answer to all requests of a batch.
        """
        return self.header(STREAM) == "true" and len(self._context.request_ids) == 1

    def header(self, name: str) -> str | None:
        """Return a header of the request. Letter case does not matter."""
        headers: Mapping[str, Any] = self._context.get_all_request_header(self._index)
        # The parts of a form stand among the headers, as dictionaries.
        values = (
            value
            for key, value in headers.items()
            if key.lower() == name.lower() and isinstance(value, str)
        )
        return next(values, None)

    def set_header(self, name: str, value: str) -> None:
        """Set a header of the answer."""
        self._context.set_response_header(self._index, name, value)

    @property
    def _is_strict(self) -> bool:
        """Whether a header asks that fields that are not known are refused."""
        return strictness.prefers_strict(self.header(PREFER))

    def describe_objects(self, qualities: Sequence[float]) -> None:
        """Set the headers of the answer that say what an image cannot."""
        self.set_header(OBJECTS, str(len(qualities)))
        if 0 < len(qualities) <= MAX_QUALITIES:
            self.set_header(QUALITY, ",".join(f"{quality:.4f}" for quality in qualities))

    def check_deadline(self) -> None:
        """Refuse the request if nobody waits for its answer any more.

        Raises:
            TimedOut: its deadline has passed.
            InvalidRequest: its deadline is not a number.
        """
        text = self.header(DEADLINE)
        if text is None:
            return
        try:
            deadline = float(text)
        except ValueError:
            deadline = math.nan
        if not math.isfinite(deadline):
            raise InvalidRequest(f"{DEADLINE} must be seconds since 1970, not {quoted(text)}.")
        late = time.time() - deadline
        if late > 0:
            raise TimedOut(f"The deadline of the request passed {late:.1f} s ago.")

    def _mode(self, lane: Mode) -> Mode | Literal["embed"]:
        """Return the mode in which a lane of this mode answers the request."""
        mode = self.header(MODE)
        if mode in (None, lane):
            return lane
        if mode == "prompt" or mode == "embed":
            return mode  # type: ignore[return-value]
        raise InvalidRequest(
            f"{MODE} must be prompt, embed or absent, not {quoted(str(mode))}, in a lane for "
            f"{lane}s."
        )

    def read(self, mode: Mode, settings: ModelSettings, weights: Mapping[str, str]) -> None:
        """Parse and check the request, as far as that needs no image.

        Args:
            mode: the lane's mode.
            weights: the `name` and `url` of the worker's weights.

        Raises:
            SamserveError: something is wrong with the request.
        """
        self.check_deadline()
        asked = self._mode(mode)
        encoding = self.header("content-encoding")
        if encoding not in (None, "identity"):
            raise UnsupportedEncoding(
                f"Content-Encoding: {quoted(encoding)} is not read here, only by the gateway."
            )
        body, image = self._body(settings.limits.max_body_bytes)
        request: PromptRequest | AutomaskRequest | EmbedRequest
        if asked == "embed":
            request = EmbedRequest.parse(body)
        elif asked == "automask":
            request = AutomaskRequest.parse(body).with_defaults(settings.defaults)
            request.check_work(settings.limits.max_points, settings.limits.max_automask_s)
        else:
            request = PromptRequest.parse(body)
            request.each_prompt()  # raises an error if there is no prompt, before any work
        if self._is_strict or request.strict:
            strictness.check_known(from_json(bytes(to_utf8(body))), type(request))
        if self.header(STAND_IN) != "true":
            request.check_weights(settings.model_type, weights)
        if isinstance(request, PromptRequest | AutomaskRequest):
            self._check_format(request)
        self.request, self.image = request, request.b64img if image is None else image

    def _check_format(self, request: PromptRequest | AutomaskRequest) -> None:
        """Refuse a format that does not exist, or that cannot hold what the request asks for."""
        form = formats.chosen(request.output_format, self.header("accept"))
        if form.media_type != PNG:
            return
        if self.streams:
            raise InvalidField(
                f"output_format: a stream has Features, and no {form.name}.", "output_format"
            )
        if isinstance(request, PromptRequest) and request.return_logits:
            raise InvalidField(
                f"return_logits: {form.name} is an image, and has no place for logits.",
                "return_logits",
            )

    def _body(self, limit: int) -> tuple[bytes | bytearray, bytes | None]:
        """Return the JSON bytes, and the image file if a form has it as a part.

        Raises:
            InvalidRequest: the body is neither JSON nor multipart/form-data.
            TooLarge: it has more than `limit` bytes.
        """
        size = sum(len(part) for part in self._content.values())
        if size > limit:
            raise TooLarge(f"The body has {size} bytes; this server's limit is {limit}.")
        if (self.header("content-type") or "").lower().startswith("multipart/form-data"):
            return forms.to_json(self._content, self._is_strict)
        body = self._content.get("body")
        if not isinstance(body, (bytes, bytearray)):
            raise InvalidRequest(
                "Send the JSON as the request's body with Content-Type: application/json, "
                "or a form as multipart/form-data."
            )
        return body, None

    def send_part(self, part: bytes) -> None:
        """Send a part of a streamed answer at once."""
        # Imported here, so that the library needs no TorchServe.
        from ts.handler_utils.utils import send_intermediate_predict_response

        self._describe(200, formats.EVENTS)
        send_intermediate_predict_response(
            [part], self._context.request_ids, "Intermediate response", 200, self._context
        )

    def send(self) -> bytes:
        """Set the status and the media type of the answer, and return its body."""
        status, media_type, body = self.answer
        if self._is_strict:
            self.set_header(PREFERENCE_APPLIED, strictness.APPLIED)
        headers = self._context.get_response_headers(self._index)
        if status != 200 and headers.get("ts_stream_next") == "true":
            # The stream has begun with status 200, so the error becomes its last event.
            return formats.event("error", **orjson.loads(body))
        self._describe(status, media_type)
        return body

    def _describe(self, status: int, media_type: str) -> None:
        self._context.set_response_content_type(self._index, media_type)
        self._context.set_response_status(status, HTTPStatus(status).phrase, self._index)


@dataclass(frozen=True)
class Prompted:
    """A request for prompts, ready for the decoder.

    Attributes:
        seconds: an estimate of the time that its masks take, with simple outlines.
        decoder_s: how much of that the decoder takes.
        prompts: its prompts, checked against the picture.
        embedded: its picture. Requests on one picture have the same object.
        timing: the steps so far.
    """

    row: Row
    seconds: float
    decoder_s: float
    prompts: list[Prompt]
    embedded: EmbeddedPicture
    timing: ServerTiming


def described(row: Row, embedded: EmbeddedPicture) -> Answer:
    """Return the answer to a request that only embeds a picture."""
    height, width = embedded.size
    content = {
        "digest": reference_to(row.image),
        "width": width,
        "height": height,
        "pages": embedded.pages,
    }
    status = HTTPStatus.CREATED if embedded.source == "encoder" else HTTPStatus.OK
    return Answer(status, JSON, orjson.dumps(content))


def by_image(batch: Iterable[Row]) -> list[list[Row]]:
    """Group the rows that were read by the page of their image, in the order of the batch."""
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in batch:
        if hasattr(row, "request"):
            groups.setdefault((row.request.b64img, row.request.page), []).append(row)
    return list(groups.values())


def by_picture(prompted: Iterable[Prompted]) -> list[list[Prompted]]:
    """Group requests for prompts by their embedded picture, in their order."""
    groups: dict[int, list[Prompted]] = {}
    for request in prompted:
        groups.setdefault(id(request.embedded), []).append(request)
    return list(groups.values())


def job_of(
    row: Row,
    folder: JobFolder | None,
    job_id: str | None,
    step: Callable[[], None],
    deadline_s: float,
) -> Job:
    """Return a job that reports to the job folder and to the stream, if there are any.

    Args:
        step: called between batches of points.
        deadline_s: seconds from now that the job may take.
    """
    started = time.time()

    def report(done: int, total: int) -> None:
        if folder is not None and job_id is not None:
            folder.write(job_id, JobProgress(row.lane, done, total, started))
        if row.streams:
            row.send_part(formats.event("progress", done=done, total=total))

    def cancelled() -> bool:
        step()
        return folder is not None and job_id is not None and folder.is_cancelled(job_id)

    return Job(deadline_s=deadline_s, cancelled=cancelled, report=report)


def end_of_stream(features: bytes, job: Job, pages: int) -> Answer:
    """Return the last part of a stream: the Features, and how the job ended."""
    last = formats.event("done", pages=pages)
    if job.stopped is not None:
        last = formats.event("error", **_timed_out(job).body(), done=job.done, total=job.total)
    return Answer(200, formats.EVENTS, features + last)


def partial(answer: Answer, job: Job) -> Answer:
    """Return the answer of a job that ran out of time: an error, with the objects found so far."""
    found: object = orjson.Fragment(answer.body)
    if answer.media_type == PNG:
        found = f"data:{PNG};base64,{pybase64.b64encode(answer.body).decode()}"
    body = {
        **_timed_out(job).body(),
        "done": job.done,
        "total": job.total,
        "found": found,
    }
    return Answer(TimedOut.status, JSON, orjson.dumps(body))


def _timed_out(job: Job) -> TimedOut:
    return TimedOut(f"Stopped after {job.done} of {job.total} points: the time was over.")
