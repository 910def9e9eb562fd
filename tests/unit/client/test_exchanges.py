"""The protocol without a socket: which calls go out, and what becomes of their answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
import pytest

from samserve.errors import (
    Busy,
    NotFound,
    SamserveError,
    TimedOut,
    TooManyRequests,
    UnknownImage,
)
from samserve.objects.frame import Frame
from samserve.objects.prompting import PlainPrompt
from samserve.parameters import AutomaskParameters
from samserve.pictures.digests import reference_to
from samserve_client import exchanges
from samserve_client.errors import (
    BrokenOff,
    NotReady,
    ServerUnreachable,
    UnexpectedAnswer,
    UnsupportedByServer,
)
from samserve_client.exchanges import SentPicture, ServerState
from samserve_client.wire import Answer, Call, Wait

FRAME = Frame((30, 40), lambda: np.zeros((30, 40, 3), np.uint8))
SQUARE = {"type": "Polygon", "coordinates": [[[1, 1], [5, 1], [5, 4], [1, 4], [1, 1]]]}
CONTENT = b"a picture"
BOX = PlainPrompt([1, 2, 3, 4], [], [])


def server(model_type: str | None = "vit_t", **more: Any) -> ServerState:
    options = {"weights": None, "timeout_s": 9.0, "patience_s": 5.0, **more}
    return ServerState("http://there", {"Authorization": "Bearer k"}, model_type, **options)


def answer(body: Any, status: int = 200, **headers: str) -> Answer:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, names, orjson.dumps(body))


def refusal(status: int, code: str, field: str | None = None, **headers: str) -> Answer:
    return answer({"error": {"code": code, "message": "words", "field": field}}, status, **headers)


def feature(prompt_idx: int | None = None, quality: float = 0.9) -> dict[str, Any]:
    properties = {"object_idx": 0, "label": "object", "quality": quality, "sam_model": "vit_t"}
    if prompt_idx is not None:
        properties["prompt_idx"] = prompt_idx
    return {"type": "Feature", "geometry": SQUARE, "properties": properties}


class Driver:
    """Drives an exchange with prepared answers, and remembers its calls and pauses."""

    def __init__(self, *replies: Any) -> None:
        self._replies = list(replies)
        self.calls: list[Call] = []
        self.waits: list[float] = []

    def run(self, exchange: Any) -> Any:
        try:
            step = next(exchange)
            while True:
                if isinstance(step, Wait):
                    self.waits.append(step.seconds)
                    step = exchange.send(None)
                    continue
                self.calls.append(step)
                reply = self._replies.pop(0)
                if isinstance(reply, Exception):
                    step = exchange.throw(reply)
                elif isinstance(reply, Answer):
                    step = exchange.send(reply)
                else:
                    step = exchange.send(reply(step))
        except StopIteration as end:
            return end.value

    def body(self, index: int) -> dict[str, Any]:
        """Return the JSON of a call, or that of its form."""
        body = self.calls[index].body
        if self.calls[index].headers["Content-Type"] == "application/json":
            fields: dict[str, Any] = json.loads(body)
            return fields
        part = body.split(b"\r\n\r\n")[1].split(b"\r\n--")[0]
        return dict(json.loads(part))


def segment(
    state: ServerState, sent: SentPicture, *prompts: PlainPrompt, three: bool = False
) -> Any:
    return exchanges.segment(state, sent, FRAME, list(prompts), multimask_output=three)


def test_the_file_goes_once_and_then_its_digest() -> None:
    state, sent = server(), SentPicture(CONTENT, 3)
    driver = Driver(answer([feature(0)]), answer([feature(0)]))
    [found] = driver.run(segment(state, sent, BOX))
    assert (found.area, found.quality, found.box) == (12, 0.9, (1, 1, 5, 4))
    driver.run(segment(state, sent, BOX))
    first, _ = driver.calls
    assert (first.method, first.path) == ("POST", "/sam/")
    assert first.headers["Authorization"] == "Bearer k"
    assert first.headers["Content-Type"].startswith("multipart/form-data; boundary=")
    assert first.body.count(CONTENT) == 1
    assert first.timeout_s == 9
    assert driver.body(0) == {
        "type": "vit_t",
        "page": 3,
        "multimask_output": False,
        "prompts": [{"bbox": [1, 2, 3, 4]}],
    }
    assert driver.body(1) == {**driver.body(0), "b64img": reference_to(CONTENT)}


def test_a_forgotten_picture_is_sent_again() -> None:
    state, sent = server(), SentPicture(CONTENT, 0, known=True)
    driver = Driver(refusal(409, "unknown_image"), answer([feature(0)]), answer([feature(0)]))
    assert len(driver.run(segment(state, sent, BOX))) == 1
    assert b"b64img" in driver.calls[0].body
    assert CONTENT in driver.calls[1].body
    driver.run(segment(state, sent, BOX))
    assert CONTENT not in driver.calls[2].body


def test_a_server_that_forgets_what_it_was_just_sent_is_an_error() -> None:
    driver = Driver(refusal(409, "unknown_image"))
    with pytest.raises(UnknownImage):
        driver.run(segment(server(), SentPicture(CONTENT, 0), BOX))


def test_a_picture_is_sent_ahead() -> None:
    state, sent = server(weights="mine"), SentPicture(CONTENT, 2)
    digest = "sha256:" + "a" * 64
    driver = Driver(
        answer({"digest": digest}, 201),
        answer([feature(0)]),
        refusal(409, "unknown_image"),
        answer([feature(0)]),
        answer([feature(0)]),
    )
    driver.run(exchanges.prepare(state, sent))
    call = driver.calls[0]
    assert (call.method, call.body) == ("PUT", CONTENT)
    assert call.path == "/sam/images/?type=vit_t&page=2&checkpoint_url=mine"
    for _ in range(3):
        driver.run(segment(state, sent, BOX))
    assert driver.body(1)["b64img"] == driver.body(2)["b64img"] == digest
    assert CONTENT in driver.calls[3].body
    assert driver.body(4)["b64img"] == reference_to(CONTENT)


@pytest.mark.parametrize("status", [404, 405])
def test_a_server_that_takes_no_picture_ahead(status: int) -> None:
    code = "not_found" if status == 404 else "method_not_allowed"
    with pytest.raises(UnsupportedByServer, match="PUT"):
        Driver(refusal(status, code)).run(exchanges.prepare(server(), SentPicture(CONTENT, 0)))
    with pytest.raises(UnexpectedAnswer):
        Driver(answer({"digest": 3})).run(exchanges.prepare(server(), SentPicture(CONTENT, 0)))


def test_points_and_weights() -> None:
    prompt = PlainPrompt(None, [[1.0, 2.0], [3.0, 4.0]], [1, 0])
    driver = Driver(answer([]))
    [found] = driver.run(segment(server(weights="mine"), SentPicture(CONTENT, 0), prompt))
    assert driver.body(0)["prompts"] == [{"point_coords": [[1, 2], [3, 4]], "point_labels": [1, 0]}]
    assert driver.body(0)["checkpoint_url"] == "mine"
    assert (found.area, found.quality) == (0, 0)


def test_each_box_has_its_object_though_one_is_empty() -> None:
    driver = Driver(answer([feature(0, 0.1), feature(2, 0.2)]))
    found = driver.run(segment(server(), SentPicture(CONTENT, 0), BOX, BOX, BOX))
    assert [(o.prompt_idx, o.quality, o.area) for o in found] == [
        (0, 0.1, 12),
        (1, 0, 0),
        (2, 0.2, 12),
    ]


def test_three_masks_of_each() -> None:
    features = [feature(0), feature(0), feature(1)]
    driver = Driver(answer(features))
    found = driver.run(segment(server(), SentPicture(CONTENT, 0), BOX, BOX, three=True))
    assert [o.prompt_idx for o in found] == [0, 0, 1]
    assert driver.body(0)["multimask_output"] is True


def test_more_boxes_than_a_request_may_have() -> None:
    def all_found(call: Call) -> Answer:
        fields = driver.body(len(driver.calls) - 1)
        return answer([feature(index) for index in range(len(fields["prompts"]))])

    driver = Driver(all_found, all_found, all_found)
    found = driver.run(segment(server(), SentPicture(CONTENT, 0), *[BOX] * 2050))
    assert [o.prompt_idx for o in found] == list(range(2050))
    assert [len(driver.body(index)["prompts"]) for index in range(3)] == [1024, 1024, 2]


@pytest.mark.parametrize(
    ("loaded", "asked"),
    [(["vit_t"], "vit_t"), (["vit_h", "vit_b"], "vit_b"), (["vit_b", "sam2_t"], "sam2_t")],
)
def test_the_model_that_is_loaded_is_asked(loaded: list[str], asked: str) -> None:
    state, sent = server(None), SentPicture(CONTENT, 0)
    weights = [{"type": name, "name": "default"} for name in loaded]
    driver = Driver(answer(weights), answer([]), answer([]))
    driver.run(segment(state, sent, BOX))
    driver.run(segment(state, sent, BOX))
    assert [call.path for call in driver.calls] == ["/sam/weights/", "/sam/", "/sam/"]
    assert driver.body(1)["type"] == driver.body(2)["type"] == asked


def test_a_server_with_another_model_since() -> None:
    state, sent = server(None), SentPicture(CONTENT, 0)
    state.answering = "vit_t"
    driver = Driver(refusal(404, "not_found", "type"), answer([{"type": "vit_b"}]), answer([]))
    driver.run(segment(state, sent, BOX))
    assert driver.body(2)["type"] == "vit_b"
    # The caller's own choice stands.
    with pytest.raises(NotFound):
        Driver(refusal(404, "not_found", "type")).run(segment(server("vit_h"), sent, BOX))


@pytest.mark.parametrize("weights", [[], [{"type": "sam3"}]], ids=str)
def test_a_server_without_a_model(weights: Any) -> None:
    with pytest.raises(NotReady, match="no model yet"):
        Driver(answer(weights)).run(segment(server(None), SentPicture(CONTENT, 0), BOX))


@pytest.mark.parametrize("body", [{}, [{}], "x", 3, [3]], ids=str)
def test_something_else_answers(body: Any) -> None:
    exchange = segment(server(None), SentPicture(CONTENT, 0), BOX)
    with pytest.raises((UnexpectedAnswer, NotReady)):
        Driver(answer(body)).run(exchange)


@pytest.mark.parametrize("content", [b"", b"<html>", b"{", b'{"a": 1}'], ids=str)
def test_an_answer_that_is_no_list_of_features(content: bytes) -> None:
    exchange = segment(server(), SentPicture(CONTENT, 0), BOX)
    with pytest.raises(UnexpectedAnswer, match="Is the address right"):
        Driver(Answer(200, {}, content)).run(exchange)


def automask(report: Any = None, **parameters: Any) -> Any:
    checked = AutomaskParameters.of(parameters)
    return exchanges.automask(server(), SentPicture(CONTENT, 0), FRAME, checked, report)


def test_automask_sends_what_was_given_and_nothing_else() -> None:
    driver = Driver(answer([feature(), feature()]))
    found = driver.run(automask(points_per_side=np.int64(8), output_type="single MASK"))
    assert len(found) == 2
    assert driver.body(0) == {
        "type": "vit_t",
        "page": 0,
        "points_per_side": 8,
        "output_type": "Single mask",
    }
    assert driver.calls[0].path == "/sam/automask/"
    assert driver.calls[0].timeout_s is None


def stream(*events: Any) -> Callable[[Call], Answer]:
    def reply(call: Call) -> Answer:
        assert call.on_line is not None
        for event in events:
            call.on_line(event if isinstance(event, bytes) else orjson.dumps(event))
        return Answer(200, {"content-type": "application/x-ndjson"}, b"")

    return reply


def test_automask_reports_its_progress() -> None:
    progress = [{"event": "progress", "done": done, "total": 64} for done in (0, 64)]
    events: list[Any] = [
        *progress,
        b"",
        {"event": "feature", **feature()},
        {"event": "new"},
        {"event": "done"},
    ]
    seen: list[tuple[int, int]] = []
    driver = Driver(stream(*events))
    found = driver.run(automask(lambda done, total: seen.append((done, total))))
    assert seen == [(0, 64), (64, 64)]
    assert len(found) == 1
    assert driver.calls[0].path == "/sam/automask/?stream=1"


def test_a_server_that_does_not_stream() -> None:
    assert len(Driver(answer([feature()])).run(automask(print))) == 1


def test_a_stream_that_ends_with_an_error() -> None:
    error: Any = {
        "error": {"code": "timeout", "message": "Stopped after 1 of 9 points", "field": None}
    }
    with pytest.raises(TimedOut, match="Stopped after 1 of 9") as raised:
        Driver(stream({"event": "error", **error})).run(automask(print))
    assert raised.value.status == 504


@pytest.mark.parametrize("events", [(), ({"event": "progress", "done": 1, "total": 2},)], ids=len)
def test_a_stream_that_breaks_off(events: Any) -> None:
    with pytest.raises(BrokenOff, match="broke off"):
        Driver(stream(*events)).run(automask(lambda done, total: None))


@pytest.mark.parametrize("line", [b"<html>", b"[]", b"{}", b"3"])
def test_a_stream_of_something_else(line: bytes) -> None:
    with pytest.raises(UnexpectedAnswer):
        Driver(stream(line)).run(automask(print))


def test_a_field_that_an_older_server_would_ignore(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchanges, "NEW_FIELDS", frozenset({"points_per_side"}))
    with pytest.raises(UnsupportedByServer, match="older than points_per_side"):
        Driver(answer([])).run(automask(points_per_side=8))
    applied = answer([], preference_applied="handling=strict")
    driver = Driver(applied)
    driver.run(automask(points_per_side=8))
    assert driver.calls[0].headers["Prefer"] == "handling=strict"
    Driver(answer([])).run(automask(pred_iou_thresh=0.5))


# Retries


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again_after_the_time_that_it_names(status: int) -> None:
    code = "busy" if status == 503 else "too_many_requests"
    driver = Driver(refusal(status, code, retry_after="2"), answer([feature(0)]))
    assert len(driver.run(segment(server(), SentPicture(CONTENT, 0), BOX))) == 1
    [pause] = driver.waits
    assert 2 <= pause <= 2.5


def test_without_retry_after_the_pauses_grow() -> None:
    driver = Driver(*[refusal(503, "unavailable")] * 4, answer([]))
    driver.run(segment(server(patience_s=99.0), SentPicture(CONTENT, 0), BOX))
    assert [round(pause) for pause in driver.waits] == sorted(round(p) for p in driver.waits)
    assert 0.5 <= driver.waits[0] < driver.waits[-1]


def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr("samserve_client.retries.time.monotonic", lambda: next(clock))
    driver = Driver(*[refusal(503, "busy", retry_after="1")] * 20)
    with pytest.raises(Busy) as raised:
        driver.run(segment(server(), SentPicture(CONTENT, 0), BOX))
    assert raised.value.retry_after_s == 1
    assert 2 <= len(driver.calls) <= 6


def test_a_wait_longer_than_the_patience_is_not_begun() -> None:
    driver = Driver(refusal(429, "too_many_requests", retry_after="50"))
    with pytest.raises(TooManyRequests):
        driver.run(segment(server(), SentPicture(CONTENT, 0), BOX))
    assert not driver.waits


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422, 500, 504])
def test_other_refusals_are_final(status: int) -> None:
    driver = Driver(refusal(status, "some_code", retry_after="1"))
    with pytest.raises(SamserveError) as raised:
        driver.run(segment(server(), SentPicture(CONTENT, 0), BOX))
    assert (raised.value.status, raised.value.code) == (status, "some_code")


def test_a_lost_connection_is_tried_once_more() -> None:
    driver = Driver(BrokenOff("gone"), answer([feature(0)]))
    assert len(driver.run(segment(server(), SentPicture(CONTENT, 0), BOX))) == 1
    with pytest.raises(ServerUnreachable):
        Driver(ServerUnreachable("no"), ServerUnreachable("no")).run(
            segment(server(), SentPicture(CONTENT, 0), BOX)
        )


def test_a_lost_stream_is_not_repeated() -> None:
    driver = Driver(BrokenOff("gone"), answer([]))
    with pytest.raises(BrokenOff):
        driver.run(automask(print))


def test_another_address() -> None:
    moved = Answer(308, {"location": "https://there/sam/"}, b"")
    with pytest.raises(UnexpectedAnswer, match="use https://there/sam/"):
        Driver(moved).run(segment(server(), SentPicture(CONTENT, 0), BOX))
