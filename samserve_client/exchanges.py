"""The protocol of a client, without input or output: calls go out, answers come in.

Each function is an `Exchange` (wire.py). The synchronous and the asynchronous client drive the same
ones.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import urlencode

import orjson

from samserve.errors import NotFound, SamserveError, TimedOut, UnknownImage
from samserve.masks.low_res_logits import to_json
from samserve.model_types import MODEL_TYPES
from samserve.objects.collection import Objects
from samserve.objects.frame import Frame
from samserve.objects.prompting import PlainPrompt
from samserve.objects.segmented import SegmentedObject
from samserve.parameters import AutomaskParameters
from samserve.pictures.digests import is_reference, reference_to

from .errors import BrokenOff, NotReady, UnexpectedAnswer, UnsupportedByServer, error_from
from .retries import answered
from .wire import EVENTS, Answer, Call, Exchange

Report = Callable[[int, int], object]

PROMPTS_AT_ONCE = 1024
"""The server's limit of prompts in one request."""

PROMPTS_WITH_LOGITS = 64
"""The server's limit of prompts whose logits it returns."""

NEW_FIELDS = frozenset({"return_logits", "region", "min_area", "max_area"})
"""Fields that older servers ignore in silence."""

STRICT = {"Prefer": "handling=strict"}
"""A server that knows this header refuses fields that it does not know."""


@dataclass
class ServerState:
    """What a client knows of its server. Threads may share it.

    Attributes:
        where: the server's address, for messages.
        headers: what every request has: the API key.
        model_type: the model type that the caller chose; None: a loaded one.
        weights: the name of registered weights; None: the type's own.
        timeout_s: seconds to wait for the next byte of an answer, but that of an automask.
        patience_s: seconds to wait in all for a busy server.
    """

    where: str
    headers: Mapping[str, str] = field(repr=False)
    model_type: str | None
    weights: str | None
    timeout_s: float
    patience_s: float

    def __post_init__(self) -> None:
        self.answering = self.model_type
        """The model type to ask; None until the server was asked which it has."""

    def get(self, path: str) -> Exchange[Any]:
        """Return the JSON at a path."""
        call = Call("GET", path, self.headers, timeout_s=self.timeout_s)
        answer = yield from answered(call, self.where, self.patience_s)
        return _json(answer, self.where)

    def chosen_model(self) -> Exchange[str]:
        """Return the model type to ask: the one that was chosen, or a loaded one.

        Of several, it is the one with the smallest file of weights, which is the fastest.
        """
        if self.answering is None:
            weights = yield from self.get("/sam/weights/")
            try:
                loaded = {entry["type"] for entry in weights}
            except (TypeError, KeyError) as exc:
                raise _no_server(self.where) from exc
            known = [name for name in MODEL_TYPES if name in loaded]
            if not known:
                raise NotReady(
                    f"{self.where} has loaded no model yet. `samserve info` says how far it is."
                )
            self.answering = min(known, key=lambda name: MODEL_TYPES[name].n_bytes)
        return self.answering


@dataclass
class SentPicture:
    """A picture as it goes to a server: the file once, and then its digest.

    Attributes:
        content: the file's bytes.
        page: its page.
        known: whether the server has answered for it.
    """

    content: bytes = field(repr=False)
    page: int
    known: bool = False

    def __post_init__(self) -> None:
        self._reference: str | None = None

    @property
    def reference(self) -> str:
        """The digest that stands for the file: its own, or the one that the server gave it."""
        if self._reference is None:
            self._reference = reference_to(self.content)
        return self._reference

    @reference.setter
    def reference(self, digest: str | None) -> None:
        self._reference = digest


def prepare(server: ServerState, picture: SentPicture) -> Exchange[None]:
    """Send a picture before anybody asks about it, so that the first prompt finds it encoded."""
    chosen = {"type": (yield from server.chosen_model()), "page": picture.page}
    if server.weights is not None:
        chosen["checkpoint_url"] = server.weights
    headers = {**server.headers, "Content-Type": "application/octet-stream"}
    path = f"/sam/images/?{urlencode(chosen)}"
    call = Call("PUT", path, headers, picture.content, server.timeout_s)
    try:
        answer = yield from answered(call, server.where, server.patience_s)
    except SamserveError as error:
        if error.code not in ("not_found", "method_not_allowed") or error.field is not None:
            raise
        raise UnsupportedByServer(
            f"{server.where} is older than PUT /sam/images/: update the server."
        ) from error
    body = _json(answer, server.where)
    if not isinstance(body, dict) or not is_reference(str(body.get("digest"))):
        raise _no_server(server.where)
    picture.reference, picture.known = body["digest"], True


def segment(
    server: ServerState,
    picture: SentPicture,
    frame: Frame,
    prompts: Sequence[PlainPrompt],
    *,
    multimask_output: bool,
    return_logits: bool = False,
) -> Exchange[Objects]:
    """Return the objects of these prompts.

    Without `multimask_output`, each prompt has one object, in the prompts' order. It has no pixels
    if nothing was found.
    """
    found: list[SegmentedObject] = []
    at_once = PROMPTS_WITH_LOGITS if return_logits else PROMPTS_AT_ONCE
    for first in range(0, len(prompts), at_once):
        some = prompts[first : first + at_once]
        fields: dict[str, Any] = {
            "prompts": [_prompt_fields(prompt) for prompt in some],
            "multimask_output": multimask_output,
        }
        if return_logits:
            fields["return_logits"] = True
        answer = yield from _post(server, picture, "/sam/", fields, server.timeout_s)
        features = _features(answer, server.where)
        objects = [SegmentedObject.from_outline(frame, feature) for feature in features]
        for thing in objects:
            thing.properties["prompt_idx"] = first + (thing.prompt_idx or 0)
        if multimask_output:
            found += objects
        else:
            by_prompt = {thing.prompt_idx: thing for thing in objects}
            places = range(first, first + len(some))
            model = server.answering
            found += [
                by_prompt.get(index)
                or SegmentedObject.nothing(frame, {"sam_model": model, "prompt_idx": index})
                for index in places
            ]
    return Objects(found, frame)


def automask(
    server: ServerState,
    picture: SentPicture,
    frame: Frame,
    parameters: AutomaskParameters,
    report: Report | None,
) -> Exchange[Objects]:
    """Return every object in the picture.

    With `report`, the server streams its progress. If the call's connection is closed, the server
    stops the work.
    """
    fields = parameters.model_dump(mode="json", exclude_unset=True, exclude={"region"})
    if parameters.region is not None:
        fields["region"] = parameters.region.geometry.__geo_interface__
    if report is None:
        answer = yield from _post(server, picture, "/sam/automask/", fields, None)
        features = _features(answer, server.where)
    else:
        events = _Events(report, server.where)
        path = "/sam/automask/?stream=1"
        answer = yield from _post(server, picture, path, fields, None, events.read)
        if answer.headers.get("content-type", "").startswith(EVENTS):
            events.check_ended()
            features = events.features
        else:
            features = _features(answer, server.where)
    return Objects([SegmentedObject.from_outline(frame, f) for f in features], frame)


class _Events:
    """Reads the events of a stream."""

    def __init__(self, report: Report, where: str) -> None:
        self._report = report
        self._where = where
        self._ended = False
        self.features: list[dict[str, Any]] = []

    def read(self, line: bytes) -> None:
        """Read one line of the stream."""
        if not line.strip():
            return
        try:
            event = orjson.loads(line)
            kind = event["event"]
        except (orjson.JSONDecodeError, KeyError, TypeError) as exc:
            raise _no_server(self._where) from exc
        if kind == "progress":
            self._report(event["done"], event["total"])
        elif kind == "feature":
            self.features.append(event)
        elif kind == "error":
            error = event["error"]
            status = TimedOut.status if error["code"] == TimedOut.code else 500
            raise error_from(status, error["code"], error["message"], error.get("field"))
        elif kind == "done":
            self._ended = True

    def check_ended(self) -> None:
        """Raise BrokenOff if the stream has no end."""
        if not self._ended:
            raise BrokenOff(
                f"The answer of {self._where} broke off before its end: the server or the network "
                "failed. Try again."
            )


def _post(
    server: ServerState,
    picture: SentPicture,
    path: str,
    fields: dict[str, Any],
    timeout_s: float | None,
    on_line: Callable[[bytes], None] | None = None,
) -> Exchange[Answer]:
    """Send a request about a picture to the chosen model type, or to a loaded one."""
    asked = yield from server.chosen_model()
    fields = {**fields, "page": picture.page}
    if server.weights is not None:
        fields["checkpoint_url"] = server.weights
    call = partial(Call, "POST", path, timeout_s=timeout_s, on_line=on_line)
    try:
        answer = yield from _send(server, picture, {**fields, "type": asked}, call)
    except NotFound:
        if server.model_type is not None:
            raise
        # The server may have been started again, with another model.
        server.answering = None
        loaded = yield from server.chosen_model()
        if loaded == asked:
            raise
        answer = yield from _send(server, picture, {**fields, "type": loaded}, call)
    new = NEW_FIELDS & fields.keys()
    if new and "preference-applied" not in answer.headers:
        raise UnsupportedByServer(
            f"{server.where} is older than {', '.join(sorted(new))}: update the server."
        )
    return answer


def _send(
    server: ServerState, picture: SentPicture, fields: dict[str, Any], call: Callable[..., Call]
) -> Exchange[Answer]:
    """Send a picture as its digest if the server knows it, else as a file."""
    if picture.known:
        body = orjson.dumps({**fields, "b64img": picture.reference})
        headers = {**server.headers, **STRICT, "Content-Type": "application/json"}
        try:
            return (
                yield from answered(
                    call(headers=headers, body=body), server.where, server.patience_s
                )
            )
        except UnknownImage:
            picture.known = False
    picture.reference = None
    form, content_type = _form(fields, picture.content)
    headers = {**server.headers, **STRICT, "Content-Type": content_type}
    answer = yield from answered(call(headers=headers, body=form), server.where, server.patience_s)
    picture.known = True
    return answer


def _form(fields: dict[str, Any], content: bytes) -> tuple[bytes, str]:
    """Return a form with the picture as a file, which base64 would make a third larger."""
    boundary = secrets.token_hex(16)
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="request"\r\n'
        "Content-Type: application/json\r\n\r\n"
    )
    between = (
        f'\r\n--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="image"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    parts = [head.encode(), orjson.dumps(fields), between.encode(), content]
    return (
        b"".join([*parts, f"\r\n--{boundary}--\r\n".encode()]),
        f"multipart/form-data; boundary={boundary}",
    )


def _prompt_fields(prompt: PlainPrompt) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if prompt.box is not None:
        fields["bbox"] = prompt.box
    if prompt.points:
        fields |= {"point_coords": prompt.points, "point_labels": prompt.labels}
    if prompt.mask_input is not None:
        fields["mask_input"] = to_json(prompt.mask_input)
    return fields


def _features(answer: Answer, where: str) -> list[dict[str, Any]]:
    features = _json(answer, where)
    if not isinstance(features, list):
        raise _no_server(where)
    return features


def _json(answer: Answer, where: str) -> Any:
    try:
        return orjson.loads(answer.content)
    except orjson.JSONDecodeError as exc:
        raise _no_server(where) from exc


def _no_server(where: str) -> UnexpectedAnswer:
    return UnexpectedAnswer(
        f"{where} does not answer as a samserve server does. Is the address right?"
    )
