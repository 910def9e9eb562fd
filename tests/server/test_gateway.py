"""The gateway's routes beside /sam/ and /sam/automask/: readiness, tokens and refusals."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from pydantic import ValidationError

from samserve import __version__
from samserve_gateway.settings import Settings
from samserve_launcher.options import LOOPBACK
from tests.support.geometry import rasterise, same_mask
from tests.support.paths import ROOT
from tests.support.sample_pictures import base64_png, picture

BODY = {"type": "vit_t", "bbox": [20, 30, 70, 78], "b64img": base64_png(picture("coins"))}


def test_version_is_plain_text(server: Any) -> None:
    answer = server.http.get(f"{server.options.url}/sam/version/")
    assert (answer.text, answer.headers["content-type"]) == (
        __version__,
        "text/plain; charset=utf-8",
    )


def test_weights_say_where_they_come_from(server: Any) -> None:
    fetched = json.loads((ROOT / "weights" / "vit_t.json").read_text())
    for query, expected in (("", [fetched]), ("?type=vit_t", [fetched]), ("?type=vit_x", [])):
        answer = server.http.get(f"{server.options.url}/sam/weights/{query}")
        assert (answer.status_code, answer.json()) == (200, expected)


@pytest.mark.parametrize("path", ["/sam/upload/", "/sam/video/", "/sam/video/propagate/"])
def test_what_the_extension_asks_of_sam_2_and_3_alone_is_not_here(server: Any, path: str) -> None:
    answer = server.post(path, {"type": "sam2_l"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("model_type", "name", "reason"),
    [
        ("vit_l", "not loaded: choose vit_t", "make serve MODELS='vit_t vit_l'"),
        ("vit_h", "not loaded: choose vit_t", "make serve MODELS='vit_t vit_h'"),
        ("sam2_l", "not loaded: choose vit_t", "make serve MODELS='vit_t sam2_l'"),
        ("sam3", "not on this server: choose vit_t", "it has no SAM 3"),
    ],
)
def test_a_type_that_is_not_loaded_has_an_entry_that_leads_to_the_reason(
    server: Any, model_type: str, name: str, reason: str
) -> None:
    [entry] = server.http.get(f"{server.options.url}/sam/weights/?type={model_type}").json()
    assert (entry["type"], entry["name"]) == (model_type, name)
    body = {**BODY, "type": model_type, "checkpoint_url": entry["url"]}
    # A server without a stand-in ignores the client's header about one.
    for headers in ({}, {"Samserve-Stand-In": "true"}):
        for path in ("/sam/", "/sam/automask/", "/sam/automask/?stream=1"):
            answer = server.http.post(server.options.url + path, json=body, headers=headers)
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (404, "not_found")
            assert reason in error["message"]
            assert "Loaded: vit_t" in error["message"]
    answer = server.post("/sam/", {**BODY, "checkpoint_url": entry["url"]})
    assert (answer.status_code, answer.json()["error"]["field"]) == (404, "checkpoint_url")


def test_weights_can_be_asked_for_by_name_and_by_url(server: Any) -> None:
    [weights] = server.http.get(f"{server.options.url}/sam/weights/?type=vit_t").json()
    for checkpoint_url in (weights["name"], weights["url"]):
        assert server.post("/sam/", {**BODY, "checkpoint_url": checkpoint_url}).status_code == 200


def test_alive_and_ready(server: Any) -> None:
    assert server.http.get(f"{server.options.url}/healthz").json() == {"status": "alive"}
    answer = server.http.get(f"{server.options.url}/readyz")
    ready = {"state": "ready", "workers": 1}
    assert answer.status_code == 200
    assert answer.json() == {"ready": True, "lanes": {"vit_t": ready, "vit_t-automask": ready}}


def test_a_worker_that_died_makes_the_lane_unready_until_the_next_has_answered(
    server: Any,
) -> None:
    lane = server.http.get(
        f"{server.options.management_url}/models/vit_t", headers=server.authorization("management")
    ).json()[0]
    psutil.Process(lane["workers"][0]["pid"]).kill()
    states = []
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        answer = server.http.get(f"{server.options.url}/readyz")
        states.append(answer.json()["lanes"]["vit_t"]["state"])
        if answer.status_code == 200 and len(set(states)) > 1:
            break
        time.sleep(0.05)
    assert states[-1] == "ready"
    assert set(states) & {"starting", "warming"}
    assert server.post("/sam/", BODY).status_code == 200


def test_openapi_explains_every_field(server: Any) -> None:
    assert server.http.get(f"{server.options.url}/docs").status_code == 200
    document = server.http.get(f"{server.options.url}/openapi.json").json()
    for path, schema in (("/sam/", "PromptRequest"), ("/sam/automask/", "AutomaskRequest")):
        content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        assert content["schema"]["$ref"] == f"#/components/schemas/{schema}"
        for name, field in document["components"]["schemas"][schema]["properties"].items():
            assert field["description"], name
            assert "default" in field or name == "b64img"
    assert (
        document["components"]["schemas"]["AutomaskRequest"]["properties"]["points_per_side"][
            "default"
        ]
        == 32
    )


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/nowhere", 404), ("GET", "/sam/", 405)]
)
def test_wrong_addresses_get_the_one_error_shape(
    server: Any, method: str, path: str, status: int
) -> None:
    answer = server.http.request(method, server.options.url + path)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"code", "message", "field"}


def test_torchserves_ports_are_loopback_only(server: Any) -> None:
    ports = {port for name, (_, port) in server.options.ports().items() if name != "port"}
    listening = {
        c.laddr.port: c.laddr.ip
        for c in psutil.net_connections("tcp")
        if c.status == psutil.CONN_LISTEN and c.laddr.port in ports
    }
    assert set(listening) == ports
    assert {ip.removeprefix("::ffff:") for ip in listening.values()} == {LOOPBACK}


def test_torchserve_wants_its_token(server: Any) -> None:
    url = f"{server.options.inference_url}/predictions/vit_t"
    assert server.http.post(url, json=BODY).status_code == 400


def test_tokens_that_became_invalid_are_renewed(server: Any) -> None:
    """Another program renews both tokens, twice. The gateway's clients do not notice."""
    key_file = Path(server.options.key_file)
    for _ in range(2):
        api_key = json.loads(key_file.read_text())["API"]["key"]
        for role in ("inference", "management"):
            answer = server.http.get(
                f"{server.options.management_url}/token",
                params={"type": role},
                headers={"Authorization": f"Bearer {api_key}"},
            )
            assert answer.status_code == 200
        assert server.post("/sam/", BODY).status_code == 200
        assert server.http.get(f"{server.options.url}/sam/weights/").status_code == 200


def test_an_expired_token_is_renewed_by_the_gateway_itself(server: Any) -> None:
    """The key file still holds the expired token, as it does after an hour."""
    key_file = Path(server.options.key_file)
    before = json.loads(key_file.read_text())
    spoilt = json.loads(key_file.read_text())
    spoilt["inference"]["key"] = "expired0"
    key_file.write_text(json.dumps(spoilt))
    # The gateway has the valid token in memory. Renewing it makes that one invalid too.
    renew = server.http.get(
        f"{server.options.management_url}/token",
        params={"type": "inference"},
        headers={"Authorization": f"Bearer {before['API']['key']}"},
    )
    assert renew.status_code == 200
    key_file.write_text(json.dumps(spoilt))
    assert server.post("/sam/", BODY).status_code == 200
    after = json.loads(key_file.read_text())["inference"]["key"]
    assert after not in ("expired0", before["inference"]["key"])


def test_many_clients_at_once(server: Any) -> None:
    answers: list[requests.Response] = []

    def click() -> None:
        answers.append(server.post("/sam/", BODY))

    threads = [threading.Thread(target=click) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [a.status_code for a in answers] == [200] * 6
    size = picture("coins").shape[:2]
    masks = [rasterise(a.json()[0]["geometry"], *size) for a in answers]
    assert all(same_mask(mask, masks[0]) for mask in masks)


def test_torchserve_gone_is_503_with_retry_after() -> None:
    from fastapi.testclient import TestClient

    from samserve_gateway.app import create_app

    settings = Settings(
        inference_url="http://127.0.0.1:9",
        management_url="http://127.0.0.1:9",
        key_file=ROOT / "nowhere" / "key_file.json",
    )
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as client:
        answer = client.post("/sam/", json=BODY)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert answer.json()["error"]["code"] == "unavailable"
        ready = client.get("/readyz")
        assert ready.status_code == 503
        assert {lane["state"] for lane in ready.json()["lanes"].values()} == {"unreachable"}


def test_settings_come_from_the_environment() -> None:
    settings = Settings.from_environ({"SAMSERVE_PORT": "9000", "SAMSERVE_MODELS": "vit_t vit_b"})
    assert settings.port == 9000
    assert settings.lanes() == ["vit_t", "vit_t-automask", "vit_b", "vit_b-automask"]
    with pytest.raises(ValidationError, match="port"):
        Settings.from_environ({"SAMSERVE_PORT": "many"})
