"""Forwards a segmentation request to the lane that answers it, and the lane's answer to the client.

The way of a request: its body is read (`bodies.py`), the body's `type` and `checkpoint_url` choose
a family of lanes (`weights.py`), and the lane of the mode gets the body. A picture that the
workers know is replaced by its digest (`known_pictures.py`); the rest of the body is unchanged.

A worker's answer reaches the client as it is. The refusals of TorchServe itself (no such lane,
queue full, worker gone) are put into the one error shape.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Mapping
from contextlib import AsyncExitStack
from typing import Any, Protocol, TypeVar

import aiohttp
import orjson
from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from samserve.errors import Busy, TooLarge, UnknownImage
from samserve.serving import headers, strictness
from samserve.serving.lanes import Mode, lane_of, model_type_of
from samserve.serving.requests import AutomaskRequest, PromptRequest, RoutedRequest

from .bodies import Body, is_strict, read_body
from .compression import compressed
from .heavy_pictures import HeavyPictures
from .jobs import Jobs, while_client_waits
from .keyring import client_of
from .known_pictures import KnownPictures
from .queues import LaneQueues, too_late
from .refusals import log_detail, torchserve_failure
from .retries import Retries
from .routed_bodies import RoutedBody, body_headers, headers_for_lane, stand_in_headers
from .settings import Settings
from .streams import StreamPlace
from .torchserve import TorchServe
from .torchserve_answers import (
    Answer,
    TorchServeError,
    died_with_worker,
    is_heavy,
    is_queue_full,
    is_workers,
    message_of,
    read,
)
from .uploads import read_picture
from .weights import Weights

EVENTS = "application/x-ndjson"
"""The media type of a stream of events."""

_FORWARDED = (
    "Content-Type",
    "Server-Timing",
    headers.IMAGE_PAGES,
    headers.OBJECTS,
    headers.QUALITY,
)
"""Headers of a worker's answer that the client gets."""


class _Response(Protocol):
    @property
    def status(self) -> int: ...


_R = TypeVar("_R", bound=_Response)


class Forwarder:
    """Forwards prompts and automasks to TorchServe.

    Args:
        torchserve: streams the events of an automask.
        retries: sends all other requests.
        queues: say when it is a request's turn.
    """

    def __init__(
        self,
        torchserve: TorchServe,
        retries: Retries,
        queues: LaneQueues,
        weights: Weights,
        known_pictures: KnownPictures,
        jobs: Jobs,
        settings: Settings,
    ) -> None:
        self._torchserve = torchserve
        self._retries = retries
        self._queues = queues
        self._heavy = HeavyPictures()
        self._weights = weights
        self._known_pictures = known_pictures
        self._jobs = jobs
        self._settings = settings

    async def prompt(self, request: Request) -> Response:
        """Return the answer of the prompt lane, or of the automask lane if it takes much work.

        Raises:
            ClientDisconnect: the client has gone.
            SamserveError: the client got the request wrong, or the queue is full.
            TorchServeError: TorchServe gave no worker's answer.
        """
        routed = await self.route(request, PromptRequest)
        lane_headers = headers_for_lane(request, routed)
        work = self._predict_prompt(client_of(request.scope).name, routed, lane_headers)
        answer = await while_client_waits(request, work)
        return await self._response(request, routed.family, answer)

    async def embed(self, request: Request, chosen: Mapping[str, Any]) -> Response:
        """Return the digest and the size of a picture, which a worker has embedded.

        Args:
            chosen: the fields that the request's address has.

        Raises: as `prompt`.
        """
        body, choice = await read_picture(request, self._settings.max_body_bytes, chosen)
        routed = await self.routed(body, choice)
        lane_headers = {**stand_in_headers(routed), headers.MODE: "embed"}
        work = self._predict_prompt(client_of(request.scope).name, routed, lane_headers)
        answer = await while_client_waits(request, work)
        return await self._response(request, routed.family, answer)

    async def automask(self, request: Request) -> Response:
        """Return the answer of the automask lane. If the client goes, the job is cancelled.

        Raises:
            ClientDisconnect: the client has gone.
            SamserveError, TorchServeError: as `prompt`.
        """
        routed = await self.route(request, AutomaskRequest)
        lane, timeout_s = lane_of(routed.family, "automask"), self._settings.automask_timeout_s
        client = client_of(request.scope).name
        with self._jobs.job(client) as job_headers:
            lane_headers = {**headers_for_lane(request, routed), **job_headers}
            work = self._predict_automask(client, lane, routed, lane_headers, timeout_s)
            answer = await while_client_waits(request, work)
        return await self._response(request, routed.family, answer)

    async def stream_automask(self, request: Request) -> Response:
        """Return the automask lane's events as they come. If the client goes, the job is cancelled.

        A worker that refuses the request before the first event gives an ordinary answer. An error
        after that is an event.

        Raises: as `automask`.
        """
        routed = await self.route(request, AutomaskRequest)
        lane, timeout_s = lane_of(routed.family, "automask"), self._settings.automask_timeout_s
        client = client_of(request.scope).name
        queue = self._queues.of(lane)
        async with AsyncExitStack() as stack:
            stack.enter_context(self._retries.watched(lane))
            turn = await while_client_waits(request, queue.enter(client, timeout_s))
            place = await stack.enter_async_context(StreamPlace(queue, turn))
            job_headers = stack.enter_context(self._jobs.job(client))
            lane_headers = {
                **job_headers,
                headers.STREAM: "true",
                **stand_in_headers(routed),
                **self._deadline(timeout_s),
            }

            async def send(
                content: bytes, content_headers: dict[str, str]
            ) -> aiohttp.ClientResponse:
                sent = {**lane_headers, **content_headers}
                return await place.open(self._torchserve.stream(lane, content, sent, timeout_s))

            response = await while_client_waits(request, self._send_picture(routed, send))
            if response.headers.get("Content-Type") == EVENTS:
                name = headers.IMAGE_PAGES
                pages = {name: response.headers[name]} if name in response.headers else {}
                events = self._events(routed, response, stack.pop_all())
                sent_headers = {**pages, **_applied(request)}
                return StreamingResponse(events, headers=sent_headers, media_type=EVENTS)
            answer = await read(response)
        return await self._response(request, routed.family, answer)

    async def route(self, request: Request, model: type[RoutedRequest]) -> RoutedBody:
        """Read the request's body, and choose the family of lanes that answers it.

        Args:
            model: has all fields that the body may have, for the strict mode.

        Raises:
            SamserveError: the body cannot be read, or there are no such lanes.
            TorchServeError: TorchServe does not tell which lanes there are.
        """
        body, choice = await read_body(request, self._settings.max_body_bytes, model)
        return await self.routed(body, choice)

    async def routed(self, body: Body, choice: RoutedRequest) -> RoutedBody:
        """Choose the family of lanes that answers a body. Raises: as `route`."""
        model_type = await self._weights.answering(choice.type)
        family = await self._weights.family(model_type, choice.checkpoint_url, choice.type)
        return RoutedBody(body, family, stands_in=model_type != choice.type)

    async def _predict_prompt(
        self, client: str, routed: RoutedBody, lane_headers: dict[str, str]
    ) -> Answer:
        """Return the answer to a prompt. Its time begins now, and is for all attempts together."""
        family, body = routed.family, routed.body
        timeout_s = self._settings.prompt_timeout_s
        ends = time.monotonic() + timeout_s
        lane_headers = {**lane_headers, **self._deadline(timeout_s)}

        async def ask(mode: Mode, content: bytes, sent: dict[str, str], late: str) -> Answer:
            lane, quick = lane_of(family, mode), mode == "prompt"
            picture = (body.reference or object()) if body.has_picture(content) else None
            return await self._ask(
                client, lane, content, sent, ends, quick=quick, late=late, picture=picture
            )

        async def send(content: bytes, content_headers: dict[str, str]) -> Answer:
            sent = {**lane_headers, **content_headers}
            if not self._heavy.is_heavy(family, body, content):
                late = (
                    f"Not answered within {timeout_s:g} s: many requests wait. "
                    "Try again in a minute."
                )
                answer = await ask("prompt", content, sent, late)
                if not is_heavy(answer):
                    return answer
                self._heavy.remember(family, body, content)
            late = (
                f"Not answered within {timeout_s:g} s: this request takes much work, and other "
                "large work was under way. Try again in a minute."
            )
            return await ask("automask", content, {headers.MODE: "prompt", **sent}, late)

        return await self._answer_of(routed, send)

    async def _predict_automask(
        self,
        client: str,
        lane: str,
        routed: RoutedBody,
        lane_headers: dict[str, str],
        timeout_s: float,
    ) -> Answer:
        """Return the answer to an automask."""
        lane_headers = {**lane_headers, **self._deadline(timeout_s)}
        ends = time.monotonic() + timeout_s

        async def send(content: bytes, content_headers: dict[str, str]) -> Answer:
            sent = {**lane_headers, **content_headers}
            late = too_late(timeout_s)
            return await self._ask(client, lane, content, sent, ends, quick=False, late=late)

        return await self._answer_of(routed, send)

    async def _ask(
        self,
        client: str,
        lane: str,
        content: bytes,
        sent: dict[str, str],
        ends: float,
        *,
        quick: bool,
        late: str,
        picture: Hashable | None = None,
    ) -> Answer:
        """Wait for the client's turn in the lane's queue, and return TorchServe's answer.

        Args:
            ends: when the request's time is over, in seconds of `time.monotonic`.
            quick: see `Retries.ask`.
            late, picture: see `LaneQueue.enter`.
        """

        def left_s() -> float:
            return max(ends - time.monotonic(), 0.001)

        with self._retries.watched(lane):
            return await self._queues.of(lane).run(
                client,
                left_s(),
                lambda: self._retries.ask(lane, content, sent, left_s(), quick=quick),
                picture=picture,
                late=late,
            )

    async def _answer_of(
        self, routed: RoutedBody, send: Callable[[bytes, dict[str, str]], Awaitable[Answer]]
    ) -> Answer:
        """Send the body, and remember its picture if the worker has read it."""
        answer = await self._send_picture(routed, send)
        if answer.status < 300:
            self._known_pictures.remember(routed.family, routed.body)
        return answer

    def _deadline(self, timeout_s: float) -> dict[str, str]:
        """Return the header after whose time a worker drops the request.

        Without it on several machines: a worker whose clock is wrong would drop all requests.
        """
        if self._settings.torchserve_tokens == "off":
            return {}
        return {headers.DEADLINE: f"{time.time() + timeout_s:.3f}"}

    async def _send_picture(
        self, routed: RoutedBody, send: Callable[[bytes, dict[str, str]], Awaitable[_R]]
    ) -> _R:
        """Send a known picture as its digest, and whole if the worker does not know it.

        Args:
            send: sends a body and its headers, and returns the response.
        """
        contents = self._known_pictures.contents(routed.family, routed.body)
        for content, content_type in contents:
            content_headers = {**body_headers(routed.body), "Content-Type": content_type}
            response = await send(content, content_headers)
            if response.status != UnknownImage.status:
                break
        return response

    async def _events(
        self, routed: RoutedBody, response: aiohttp.ClientResponse, resources: AsyncExitStack
    ) -> AsyncIterator[bytes]:
        """Yield the response's content as it comes, and an `error` event if it breaks off.

        Args:
            resources: the open response and the job. Closing them with an exception, as when the
                client goes, cancels the job.
        """
        try:
            async with resources:
                async for part in response.content.iter_any():
                    yield part
                self._known_pictures.remember(routed.family, routed.body)
        except TorchServeError as error:
            log_detail(error)
            _, content = torchserve_failure(error)
            yield orjson.dumps({"event": "error", **content}) + b"\n"

    async def _response(self, request: Request, family: str, answer: Answer) -> Response:
        """Return TorchServe's answer as the client's.

        Raises:
            NotFound: the family has no lanes any more.
            Busy: TorchServe's own queue is full.
            TooLarge: TorchServe does not accept so long a body.
            TorchServeError: TorchServe refused the request, or the worker ended.
        """
        if answer.status == 404 and not is_workers(answer):
            self._weights.forget(family)
            raise await self._weights.not_loaded(model_type_of(family))
        if answer.status == 413 and not is_workers(answer):
            raise TooLarge("The body is larger than TorchServe's max_request_size.")
        if is_heavy(answer) or (answer.status >= 400 and not is_workers(answer)):
            raise _refused_by_torchserve(answer)
        forwarded = {name: answer.headers[name] for name in _FORWARDED if name in answer.headers}
        forwarded["Vary"] = "Accept, Accept-Encoding"
        forwarded.update(_applied(request))
        accept_encoding = request.headers.get("accept-encoding", "")
        if forwarded.get("Content-Type", "").startswith("image/"):
            accept_encoding = ""  # it is compressed already
        content, encoding = await compressed(answer.content, accept_encoding)
        if encoding is not None:
            forwarded["Content-Encoding"] = encoding
        return Response(content, answer.status, forwarded)


def _applied(request: Request) -> dict[str, str]:
    """Return the header that confirms the strict mode to a client that asked for it by header."""
    return {headers.PREFERENCE_APPLIED: strictness.APPLIED} if is_strict(request) else {}


def _refused_by_torchserve(answer: Answer) -> Exception:
    """Return what a client is told if TorchServe or a balancer refused its request."""
    if is_queue_full(answer):
        return Busy("The queue is full. Try again in a second.", 1)
    if died_with_worker(answer):
        return TorchServeError("The worker that had this request has ended.", 503)
    message = (
        f"TorchServe, or a balancer in front of it, refused this request (HTTP {answer.status})."
    )
    return TorchServeError(message, answer.status, f"HTTP {answer.status}: {message_of(answer)}")
