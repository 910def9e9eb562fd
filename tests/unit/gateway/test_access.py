"""Every route, without a key, with a wrong one, and with a right one in each of three ways."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.routing import Mount, Route

from samserve_gateway import keyring
from samserve_gateway.app import create_app
from samserve_gateway.keys import Key, KeysFileError, add, digest_of, new_key
from samserve_gateway.settings import Settings
from tests.support import torchserve
from tests.support.http import Answered, ask
from tests.support.torchserve import Gateway

ALICE, ADMIN = new_key(), new_key()
TOKEN = "the administrator's own"
WAYS: dict[str, Callable[[str, str], tuple[str, dict[str, str]]]] = {
    "bearer": lambda key, path: (path, {"Authorization": f"Bearer {key}"}),
    "x-api-key": lambda key, path: (path, {"X-API-Key": key}),
    "path": lambda key, path: (f"/key/{key}{path}", {}),
}
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW")
FOR_EVERYBODY = ("/healthz", "/readyz")
BODY = json.dumps({"type": "vit_t", "bbox": [1, 2, 3, 4], "b64img": "QUJD"}).encode()

ways = pytest.mark.parametrize("way", WAYS)


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys.txt"
    add(path, Key("alice", digest_of(ALICE.encode())))
    add(path, Key("the-admin", digest_of(ADMIN.encode()), admin=True))
    return path


@pytest.fixture(scope="module")
def closed(keys_file: Path) -> Iterator[Gateway]:
    """A gateway that listens for the network, with keys."""
    with torchserve.gateway(host="0.0.0.0", api_keys_file=keys_file, admin_token=TOKEN) as gateway:
        yield gateway


def all_paths() -> list[str]:
    """Return the paths of all routes: those of the application and of its document."""
    app: object = create_app(Settings())
    while not isinstance(app, FastAPI):
        app = app._app  # type: ignore[attr-defined]
    paths = {route.path for route in app.routes if isinstance(route, Route)}
    mounted = {f"{route.path}/swagger-ui.css" for route in app.routes if isinstance(route, Mount)}
    assert "/metrics" in paths
    return sorted(paths | mounted | set(app.openapi()["paths"]))


PATHS = all_paths()
SPELLINGS = ["/", "/nothing", "/sam", "//sam//", "/SAM/", "/sam/%2e%2e/metrics", "/key", "/key/"]
SPELLINGS += ["/key//sam/", "/%6bey/x/sam/", "/healthz/x", "/readyz%00", "/static-offline-docs"]
SPELLINGS += ["http://example.org/sam/", "/sam;x=/healthz", "/healthz/../metrics", "*"]


def send(
    gateway: Gateway, method: str, path: str, key: str | None, way: str = "bearer"
) -> Answered:
    target, headers = (path, {}) if key is None else WAYS[way](key, path)
    body = BODY if method in ("POST", "PUT", "PATCH") else None
    return ask(gateway.port, method, target, body, headers)


def is_open(method: str, path: str) -> bool:
    return path in FOR_EVERYBODY and method in ("GET", "HEAD")


@pytest.mark.parametrize("path", [*PATHS, *SPELLINGS])
def test_without_a_key_only_health_answers(closed: Gateway, path: str) -> None:
    for method in METHODS:
        got = send(closed, method, path, None)
        if is_open(method, path):
            assert got.status in (200, 405, 503)
        else:
            assert got.status == 401, (method, path)
            assert got.headers["WWW-Authenticate"] == "Bearer"
            if method != "HEAD":
                assert got.error()["code"] == "unauthorized"
    assert closed.torchserve.received == []


@ways
@pytest.mark.parametrize("path", PATHS)
def test_with_a_wrong_key_neither(
    closed: Gateway, path: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyring, "WRONG_KEYS_A_MINUTE", 10**9)
    for wrong in (new_key(), ALICE[:-1], ALICE + "x", ALICE.upper(), digest_of(ALICE.encode())):
        for method in ("GET", "POST"):
            got = send(closed, method, path, wrong, way)
            assert got.status == 401 or is_open(method, path), (method, path)
    assert closed.torchserve.received == []


@ways
@pytest.mark.parametrize("path", PATHS)
def test_with_a_right_key_every_route_answers(closed: Gateway, path: str, way: str) -> None:
    for method in METHODS:
        got = send(closed, method, path, ALICE, way)
        assert got.status not in (401, 404, 429, 500), (method, path)


@ways
def test_a_prompt_gets_its_answer_and_torchserve_never_sees_the_key(
    closed: Gateway, way: str
) -> None:
    before = len(closed.torchserve.received)
    got = send(closed, "POST", "/sam/", ALICE, way)
    assert (got.status, got.json()) == (200, [])
    [received] = closed.torchserve.received[before:]
    assert ALICE not in str(received)


@pytest.mark.parametrize("key", [None, ALICE], ids=["without", "with"])
def test_readyz_names_its_lanes_only_with_a_key(closed: Gateway, key: str | None) -> None:
    content = send(closed, "GET", "/readyz", key).json()
    assert set(content) == ({"ready"} if key is None else {"ready", "lanes"})


def test_the_pages_work_below_the_key(closed: Gateway) -> None:
    root = f"/key/{ALICE}"
    page = closed.get(f"{root}/docs").content.decode()
    links = [f"{root}/openapi.json", f"{root}/static-offline-docs/swagger-ui.css"]
    for link in links:
        assert link in page
        assert closed.get(link).status == 200
    document = closed.get(links[0]).json()
    assert document["servers"] == [{"url": root}]
    assert "servers" not in closed.get("/openapi.json", {"X-API-Key": ALICE}).json()


@pytest.mark.parametrize("base", ["/key/{}/sam/", "//key//{}//sam/", "/key/{}/sam"])
def test_every_spelling_of_a_path_with_a_key(closed: Gateway, base: str) -> None:
    base = base.format(ALICE)
    assert closed.get(f"{base}/version/").status == 200
    assert closed.post(base, json.loads(BODY)).status == 200


def test_a_key_is_in_no_log_metric_or_error(
    closed: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = new_key()
    with caplog.at_level(logging.DEBUG):
        answers = [
            send(closed, method, path, key, way)
            for method in ("GET", "POST", "BREW")
            for path in ("/sam/", "/nothing", "/sam/weights/?type=x")
            for key in (ALICE, wrong)
            for way in WAYS
        ]
        closed.torchserve.script("vit_t", torchserve.cut(), torchserve.cut())
        answers.append(send(closed, "POST", "/sam/", ALICE, "path"))
    metrics = closed.get("/metrics", {"X-API-Key": ALICE})
    assert metrics.status == 200
    logged = caplog.text + "".join(str(vars(record)) for record in caplog.records)
    for text in (logged, str([(a.content, a.headers.items()) for a in answers]), str(metrics)):
        assert ALICE not in text
        assert wrong not in text
    assert '"/sam/"' in metrics.content.decode()  # below a key, too, a request counts by its route


def test_many_wrong_keys_are_refused_with_429_but_a_right_one_is_accepted(keys_file: Path) -> None:
    with torchserve.gateway(host="0.0.0.0", api_keys_file=keys_file) as gateway:
        for number in range(keyring.WRONG_KEYS_A_MINUTE + 5):
            got = send(gateway, "GET", "/metrics", f"guess{number}")
            assert got.status == (401 if number < keyring.WRONG_KEYS_A_MINUTE else 429)
        assert got.error()["code"] == "too_many_requests"
        assert 0 < int(got.headers["Retry-After"]) <= 60
        assert send(gateway, "GET", "/metrics", ALICE).status == 200
        assert send(gateway, "GET", "/metrics", None).status == 401  # no key is no wrong key
        assert send(gateway, "GET", "/healthz", "guess").status == 200


def test_a_refusal_comes_before_the_body(closed: Gateway) -> None:
    head = b"POST /sam/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50000000\r\n\r\n"
    with socket.create_connection(("127.0.0.1", closed.port), timeout=20) as client:
        client.sendall(head)
        assert client.recv(100).startswith(b"HTTP/1.1 401")


def test_a_client_that_reads_only_after_sending_gets_its_refusal(closed: Gateway) -> None:
    for chunked in (False, True):
        body = iter([bytes(2**20)] * 8) if chunked else bytes(2**23)
        for _ in range(2):
            got = ask(closed.port, "POST", "/sam/", body)  # type: ignore[arg-type]
            assert got.status == 401
            body = bytes(2**23)


# Administrators


def register(gateway: Gateway, key: str | None, way: str) -> Answered:
    target, headers = ("/sam/weights/", {}) if key is None else WAYS[way](key, "/sam/weights/")
    return gateway.post(target, {"type": "vit_x", "name": "n", "url": "n.pt"}, headers)


@ways
def test_an_administrator_registers_weights_by_each_way(closed: Gateway, way: str) -> None:
    quoted = TOKEN.replace(" ", "%20") if way == "path" else TOKEN
    for key in (ADMIN, quoted):
        assert register(closed, key, way).error()["field"] == "type"  # the body was read
    got = register(closed, ALICE, way)
    assert (got.status, got.error()["code"]) == (403, "forbidden")
    for key, status in ((ADMIN, 200), (ALICE, 403)):
        assert send(closed, "GET", "/sam/weights/cancel/", key, way).status == status


@ways
def test_on_loopback_the_token_registers_as_ever(way: str) -> None:
    with torchserve.gateway(admin_token=TOKEN) as gateway:
        quoted = TOKEN.replace(" ", "%20") if way == "path" else TOKEN
        assert register(gateway, quoted, way).status == 404
        for wrong in (None, TOKEN + "x", "é"):
            if wrong is None or way != "path" or wrong.isascii():
                key = wrong if wrong is None or way != "path" else wrong.replace(" ", "%20")
                got = register(gateway, key, way)
                assert (got.status, got.headers["WWW-Authenticate"]) == (401, "Bearer")
        for _ in range(3):  # no key is needed for anything else, and a wrong one does no harm
            assert send(gateway, "POST", "/sam/", "wrong", way).status == 200


def test_without_administrators_nobody_registers() -> None:
    with torchserve.gateway() as gateway:
        got = register(gateway, "wrong", "bearer")
    assert (got.status, got.error()["code"]) == (403, "forbidden")
    assert "SAMSERVE_ADMIN_TOKEN" in got.error()["message"]


def test_a_hostile_path_prefix_stays_out_of_the_page(gateway: Gateway) -> None:
    got = gateway.get("/key/'+alert(1)+'\"<b>/docs")
    assert got.status == 200
    assert b"alert(1)" not in got.content


# The start


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_no_start_on_an_open_address_without_keys(host: str) -> None:
    with pytest.raises(KeysFileError, match="SAMSERVE_OPEN=1"):
        create_app(Settings(host=host))


def test_an_open_gateway_needs_no_key() -> None:
    with torchserve.gateway(host="0.0.0.0", open=True) as gateway:
        assert send(gateway, "POST", "/sam/", None).status == 200
        assert "lanes" in send(gateway, "GET", "/readyz", None).json()
