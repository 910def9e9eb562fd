"""Both clients over real sockets, against servers that fail."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import samserve
from samserve.errors import InvalidField, TimedOut, Unauthorized
from samserve_client.errors import BrokenOff, ServerUnreachable, UnexpectedAnswer
from samserve_client.status import LaneStatus
from tests.support.scripted_server import LOADED, Reply, refusal, scripted

PIXELS = np.zeros((30, 40), np.uint8)
SQUARE = {"type": "Polygon", "coordinates": [[[1, 1], [5, 1], [5, 4], [1, 4], [1, 1]]]}
FOUND = Reply(
    200,
    [
        {
            "type": "Feature",
            "geometry": SQUARE,
            "properties": {"label": "object", "quality": 0.9, "prompt_idx": 0},
        }
    ],
)

Segment = Callable[..., Any]


def synchronous(url: str, times: int = 1, **options: Any) -> Any:
    """Segment a box with the synchronous client."""
    with samserve.Client(url, **options) as client:
        picture = client.picture(PIXELS)
        return [picture.segment((1, 1, 9, 9)) for _ in range(times)][-1]


def asynchronous(url: str, times: int = 1, **options: Any) -> Any:
    """Segment a box with the asynchronous client."""

    async def run() -> Any:
        async with samserve.AsyncClient(url, **options) as client:
            picture = await client.picture(PIXELS)
            return [await picture.segment((1, 1, 9, 9)) for _ in range(times)][-1]

    return asyncio.run(run())


both = pytest.mark.parametrize("segment", [synchronous, asynchronous])


@both
def test_one_connection_carries_all_calls(segment: Segment) -> None:
    with scripted(LOADED, FOUND, FOUND, FOUND) as server:
        assert segment(server.url, times=3).area == 12
    assert [request.path for request in server.received] == ["/sam/weights/", *["/sam/"] * 3]
    assert len(server.connections) == 1
    assert "authorization" not in server.received[0].headers


@both
def test_a_busy_server_is_asked_again(segment: Segment) -> None:
    busy = refusal(503, "busy", "The queue is full.", Retry_After="0")
    share = refusal(429, "too_many_requests", "Too many.", Retry_After="0")
    with scripted(busy, LOADED, share, busy, FOUND) as server:
        assert segment(server.url).area == 12
    assert len(server.received) == 5


@both
def test_a_connection_that_breaks_is_made_again(segment: Segment) -> None:
    with scripted(LOADED, Reply(200, FOUND.body, breaks=True), FOUND) as server:
        assert segment(server.url).area == 12
    broken = [Reply(200, FOUND.body, breaks=True)] * 2
    with scripted(LOADED, *broken) as server, pytest.raises(BrokenOff, match="broke off"):
        segment(server.url)


@both
def test_the_key_is_sent_and_never_shown(
    segment: Segment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login someone password else\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    no = refusal(401, "unauthorized", "This server wants an API key.")
    with scripted(LOADED, FOUND, no) as server:
        segment(server.url, key="the-secret-key")
        with pytest.raises(Unauthorized, match="SAMSERVE_API_KEY") as raised:
            segment(server.url, key="the-secret-key")
    assert {r.headers["authorization"] for r in server.received} == {"Bearer the-secret-key"}
    assert "secret" not in str(raised.value)
    client = samserve.Client(server.url, key="the-secret-key")
    assert "secret" not in repr(client) + repr(vars(client))


@both
def test_nobody_listens(segment: Segment) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(ServerUnreachable, match="samserve serve"):
            segment(url)


@both
def test_a_server_that_says_nothing(segment: Segment) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(TimedOut, match=r"nothing for 0\.3 s"):
            segment(url, timeout=0.3)


@both
def test_plain_http_where_https_is_asked_for(segment: Segment) -> None:
    failures = (UnexpectedAnswer, ServerUnreachable)
    with scripted(LOADED) as server, pytest.raises(failures) as raised:
        segment(server.url.replace("http:", "https:"))
    assert server.url.partition(":")[2] in str(raised.value)


@both
@pytest.mark.parametrize(
    "reply",
    [Reply(200, b"<html>Welcome</html>"), Reply(404, b"Not here"), Reply(302, b"")],
    ids=str,
)
def test_another_server(segment: Segment, reply: Reply) -> None:
    with scripted(reply) as server, pytest.raises(UnexpectedAnswer, match="Is the address right"):
        segment(server.url)


@both
def test_no_proxy_stands_before_a_server_on_this_machine(
    segment: Segment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with scripted(LOADED, FOUND) as server:
        assert segment(server.url).area == 12


def test_the_variable_names_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted(LOADED, FOUND) as server:
        monkeypatch.setenv("SAMSERVE_URL", server.url)
        assert samserve.Client().picture(PIXELS).segment((1, 1, 9, 9)).area == 12


def test_wrong_arguments_are_refused_before_anything_is_sent() -> None:
    with scripted() as server, samserve.Client(server.url) as client:
        picture = client.picture(PIXELS)
        with pytest.raises(TypeError, match="did you mean points_per_side"):
            picture.automask(points_per_sid=8)  # type: ignore[call-arg]
        with pytest.raises(InvalidField, match="points_per_side"):
            picture.automask(points_per_side=0)
        with pytest.raises(InvalidField, match="lies outside the 40×30 picture"):
            picture.segment((50, 1, 60, 9))
        with pytest.raises(TypeError):
            picture.segment(boks=(1, 1, 2, 2))  # type: ignore[call-overload]
    assert not server.received


def waiting(picture: Any, ended: list[BaseException]) -> threading.Thread:
    """Return a thread that waits for an automask that nobody answers."""

    def work() -> None:
        try:
            picture.automask()
        except (RuntimeError, samserve.SamserveError) as error:
            ended.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_close_ends_the_calls_of_other_threads() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        client = samserve.Client(url, model_type="vit_t")
        ended: list[BaseException] = []
        thread = waiting(client.picture(PIXELS), ended)
        connection, _ = silent.accept()
        while b"image" not in connection.recv(2**16):
            pass
        client.close()
        thread.join(timeout=30)
        assert not thread.is_alive()
        assert len(ended) == 1
        with connection:
            connection.settimeout(30)
            while connection.recv(2**16):  # until the client's end of the connection
                pass
        with pytest.raises(RuntimeError, match="closed"):
            client.picture(PIXELS).segment((1, 1, 9, 9))


def test_a_cancelled_task_closes_its_connection() -> None:
    async def run(silent: socket.socket) -> None:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        async with samserve.AsyncClient(url, model_type="vit_t") as client:
            picture = await client.picture(PIXELS)
            task = asyncio.create_task(picture.automask())
            connection, _ = await asyncio.to_thread(silent.accept)
            with connection:
                await asyncio.to_thread(connection.recv, 100)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                connection.settimeout(30)
                while await asyncio.to_thread(connection.recv, 2**16):
                    pass

    with socket.create_server(("127.0.0.1", 0)) as silent:
        asyncio.run(run(silent))


METRICS = b"""
# HELP samserve_gateway_waiting Requests that wait in the lane's queue.
samserve_gateway_waiting{lane="vit_t"} 3.0
samserve_gateway_in_flight{route="/sam/"} 4.0
samserve_gateway_in_flight{route="/sam/automask/"} 1.0
samserve_gateway_in_flight{route="/metrics"} 1.0
"""


def test_the_status_of_a_server() -> None:
    lanes = {"vit_t": {"state": "ready", "workers": 2}, "vit_t-automask": {"state": "starting"}}
    replies = (
        Reply(200, b"0.1.0"),
        Reply(503, {"ready": False, "lanes": lanes}),
        Reply(200, METRICS),
    )
    with scripted(*replies) as server, samserve.Client(server.url) as client:
        status = client.info()
    assert (status.version, status.ready, status.in_work) == ("0.1.0", False, 5)
    assert status.lanes == (
        LaneStatus("vit_t", "ready", 2, 3),
        LaneStatus("vit_t-automask", "starting", 0, None),
    )
