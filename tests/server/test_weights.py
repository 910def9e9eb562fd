"""Weights are registered while a real server runs: chosen, kept, refused, cancelled.

The server has an administrator. tests/unit/gateway/test_registration.py and
tests/unit/archives/test_register.py test every way in which a registration fails; here the most
important ones run from the client to the worker.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
import torch
from fastapi.testclient import TestClient

from samserve_gateway.app import create_app
from samserve_gateway.settings import Settings
from tests.support.addresses import Address, serving
from tests.support.answers import error_of
from tests.support.bodies import BOX
from tests.support.changed_weights import changed_weights, reference_mask
from tests.support.checkpoints import Malice
from tests.support.geometry import rasterise, same_mask
from tests.support.paths import ROOT
from tests.support.sample_pictures import base64_png, new_picture, picture
from tests.support.servers import ADMIN, TOKEN, RestartableServer

OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
DEFAULT_LANES = {"vit_t", "vit_t-automask"}


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RestartableServer]:
    with pytest.MonkeyPatch.context() as environ, serving() as address:
        environ.setenv("SAMSERVE_ADMIN_TOKEN", TOKEN)
        environ.setenv("SAMSERVE_WEIGHTS_ORIGINS", address.url.removesuffix("/file"))
        environ.setenv("SAMSERVE_WEIGHTS_MAX_BYTES", str(2**26))
        environ.setenv("NO_PROXY", "127.0.0.1")
        instance = RestartableServer(tmp_path_factory.mktemp("own"), address)
        yield instance
        instance.stop()
        shutil.rmtree(instance.options.run_dir)


@pytest.fixture(scope="module")
def changed() -> dict[str, torch.Tensor]:
    return changed_weights()


@pytest.fixture
def published(instance: RestartableServer, changed: dict[str, torch.Tensor]) -> Iterator[Address]:
    """Put the changed weights at the address from which the server may download."""
    saved = io.BytesIO()
    torch.save(changed, saved)
    before = vars(instance.address).copy()
    instance.address.content, instance.address.etag = saved.getvalue(), '"changed"'
    yield instance.address
    vars(instance.address).update(before)


class InBackground:
    """A registration in a thread, and the progress that the server reports meanwhile."""

    def __init__(self, instance: RestartableServer, name: str, url: str) -> None:
        self._own = instance
        self._answers: list[requests.Response] = []
        self._thread = threading.Thread(
            target=lambda: self._answers.append(instance.register(name, url))
        )
        self._thread.start()

    def progress(self) -> Iterator[dict[str, Any]]:
        """Yield the reported progress until the registration ends."""
        while self._thread.is_alive():
            yield self._own.get("/sam/progress/").json()
            time.sleep(0.05)

    def answer(self) -> requests.Response:
        self._thread.join()
        return self._answers[0]


# Refused


def test_off_without_a_token() -> None:
    with TestClient(create_app(Settings()), base_url="http://127.0.0.1") as gateway:
        for answer in (
            gateway.post("/sam/weights/", headers=ADMIN),
            gateway.get("/sam/weights/cancel/", headers=ADMIN),
        ):
            assert error_of(answer) == (403, "forbidden", None)
            assert "SAMSERVE_ADMIN_TOKEN" in answer.json()["error"]["message"]


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer another token"}])
def test_only_for_the_administrator(instance: RestartableServer, headers: dict[str, str]) -> None:
    body = {"type": "vit_t", "name": "x", "url": "x.pt"}
    for answer in (
        instance.server.http.post(
            f"{instance.options.url}/sam/weights/", json=body, headers=headers
        ),
        instance.get("/sam/weights/cancel/", **headers),
    ):
        assert error_of(answer) == (401, "unauthorized", None)
        assert answer.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("fields", "status", "field"),
    [
        ({"type": "vit_h"}, 404, "type"),
        ({"type": "vit_t.mine"}, 404, "type"),
        ({"name": "default"}, 422, "name"),
        ({"name": "a.b"}, 422, "name"),
        ({"name": "../a"}, 422, "name"),
        ({"name": "a-automask"}, 422, "name"),
        ({"name": 7}, 422, "name"),
        ({"url": ""}, 422, "url"),
        ({"url": None}, 422, "url"),
    ],
)
def test_what_cannot_be_asked(
    instance: RestartableServer, fields: dict[str, Any], status: int, field: str
) -> None:
    answer = instance.register(**{"name": "mine", "url": "mine.pt", **fields})
    assert (answer.status_code, answer.json()["error"]["field"]) == (status, field)


@pytest.mark.parametrize("url", ["https://example.org/x.pt", "/etc/hostname", "../store/vit_t.mar"])
def test_what_may_not_be_fetched(instance: RestartableServer, url: str) -> None:
    before = instance.files()
    assert error_of(instance.register("mine", url)) == (422, "invalid_field", "url")
    assert (instance.files(), instance.lanes()) == (before, DEFAULT_LANES)


@pytest.mark.needs("curl")
def test_the_request_of_the_documents(instance: RestartableServer) -> None:
    """The OPERATIONS's request, for a file that is not in the weights folder."""
    blocks = re.findall(r"^```sh\n(curl [^`]*/sam/weights/.*?)^```", OPERATIONS, re.M | re.S)
    [block] = [block for block in blocks if "nuclei.pt" in block]
    completed = subprocess.run(
        ["bash", "-euc", block.replace("http://127.0.0.1:8000", instance.options.url)],
        capture_output=True,
        check=True,
    )
    assert b"'nuclei.pt' in the weights folder" in completed.stdout


def test_malice_runs_nothing_and_leaves_nothing(
    instance: RestartableServer, tmp_path: Path
) -> None:
    victim, before = tmp_path / "it ran", instance.files()
    saved = io.BytesIO()
    torch.save({"weight": Malice(victim)}, saved)
    instance.address.content = saved.getvalue()
    assert error_of(instance.register("mine", instance.address.url)) == (
        422,
        "invalid_weights",
        "url",
    )
    assert not victim.exists()
    assert (instance.files(), instance.lanes()) == (before, DEFAULT_LANES)
    torch.load(io.BytesIO(saved.getvalue()), weights_only=False)
    assert victim.exists(), "the file was harmless, so the test proved nothing"


def test_cancelled_in_the_middle(instance: RestartableServer, published: Address) -> None:
    before = instance.files()
    published.n_sent_before_waiting = len(published.content) // 2
    work = InBackground(instance, "mine", published.url)
    half = next(report for report in work.progress() if report["percent"] >= 45)
    assert re.fullmatch(r"mine: \d+\.\d of \d+\.\d MB downloaded", half["message"])
    assert half["percent"] < 60
    [job] = [
        process
        for process in psutil.Process(instance.processes["gateway"].pid).children()
        if "samserve.archives.register" in process.cmdline()
    ]
    assert error_of(instance.register("other", "other.pt")) == (409, "conflict", None)
    assert instance.get("/sam/weights/cancel/", **ADMIN).text == "Cancel signal sent"
    answer = work.answer()
    assert (answer.status_code, answer.text) == (
        200,
        f"The registration of mine ({published.url}) was cancelled.",
    )
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert not job.is_running()
    assert (instance.files(), instance.lanes()) == (before, DEFAULT_LANES)
    assert instance.get("/sam/progress/").json()["percent"] == -1


# Registered


@pytest.fixture
def registered(instance: RestartableServer, published: Address) -> str:
    """Register the changed weights once, and return their name. The first download breaks off."""
    if "vit_t.changed" not in instance.lanes():
        published.n_sent_before_hanging_up = 10_000_000
        assert error_of(instance.register("changed", published.url)) == (
            502,
            "unreachable",
            "url",
        )
        assert instance.lanes() == DEFAULT_LANES
        published.n_sent_before_hanging_up = None
        published.asked.clear()
        work = InBackground(instance, "changed", published.url)
        messages = set()
        for progress in work.progress():
            messages.add(progress["message"].split(" ", 1)[1])
            # The server answers its clients meanwhile.
            assert instance.get("/readyz").json()["ready"]
        assert {"checking", "building the archive", "starting workers"} <= messages
        answer = work.answer()
        assert answer.status_code == 200, answer.text
        assert answer.text == f"changed ({published.url}) is registered."
        assert published.asked == ["bytes=10000000-"]
    return "changed"


@pytest.fixture(scope="module")
def expected(changed: dict[str, torch.Tensor]) -> Any:
    return reference_mask(changed)


def body(image: str, **fields: Any) -> dict[str, Any]:
    return {"type": "vit_t", "b64img": image, **fields}


def check_mask(instance: RestartableServer, checkpoint_url: str, expected: Any) -> None:
    """Assert that the weights give the reference's mask."""
    coins = base64_png(picture("coins"))
    [feature] = instance.server.post(
        "/sam/", body(coins, bbox=BOX, checkpoint_url=checkpoint_url)
    ).json()
    assert same_mask(rasterise(feature["geometry"], *expected.shape), expected)


def check_choice(instance: RestartableServer, name: str, url: str, expected: Any) -> None:
    """Check a choice by name and by URL, in both modes, at the gateway and at TorchServe.

    The answers of the type's default weights stay the same.
    """
    image = new_picture()
    default_prompt = instance.server.post("/sam/", body(image, bbox=BOX)).json()
    default_objects = instance.server.post("/sam/automask/", body(image, points_per_side=4)).json()
    assert default_prompt == instance.server.predict("vit_t", body(image, bbox=BOX)).json()
    for checkpoint_url in (name, url):
        prompt = body(image, bbox=BOX, checkpoint_url=checkpoint_url)
        automask = body(image, points_per_side=4, checkpoint_url=checkpoint_url)
        for mode, request, default in (
            ("", prompt, default_prompt),
            ("-automask", automask, default_objects),
        ):
            path = "/sam/automask/" if mode else "/sam/"
            # Sent twice: the second time it is a known picture.
            answers = [instance.server.post(path, request) for _ in range(2)]
            answers.append(instance.server.predict(f"vit_t.{name}{mode}", request))
            assert [answer.status_code for answer in answers] == [200] * 3, answers[0].text
            assert answers[0].json() == answers[1].json() == answers[2].json() != default
        check_mask(instance, checkpoint_url, expected)
    form = instance.server.http.post(
        f"{instance.options.url}/sam/",
        files={"image": (ROOT / "docs" / "coins.png").read_bytes()},
        data={"type": "vit_t", "bbox": json.dumps(BOX), "checkpoint_url": name},
    )
    [feature] = form.json()
    assert same_mask(rasterise(feature["geometry"], *expected.shape), expected)


def test_chosen_by_name_and_by_url(
    instance: RestartableServer, registered: str, expected: Any
) -> None:
    check_choice(instance, registered, instance.address.url, expected)
    unknown = instance.server.post("/sam/", body("x", bbox=BOX, checkpoint_url="unknown"))
    assert error_of(unknown) == (404, "not_found", "checkpoint_url")
    assert "'changed'" in unknown.json()["error"]["message"]
    wrong_door = instance.server.predict(
        "vit_t", body(new_picture(), bbox=BOX, checkpoint_url=registered)
    )
    assert error_of(wrong_door) == (404, "not_found", "checkpoint_url")


def test_they_are_listed(instance: RestartableServer, registered: str, published: Address) -> None:
    default, listed = instance.get("/sam/weights/?type=vit_t").json()
    assert default["name"] == "default"
    assert set(listed) == {"type", "name", "url", "source", "sha256"}
    assert (listed["name"], listed["url"]) == (registered, published.url)
    kept = instance.folder / "weights" / "registered" / "vit_t.changed.json"
    assert json.loads(kept.read_text()) == listed
    lanes = instance.get("/readyz").json()["lanes"]
    assert (
        set(lanes)
        == instance.lanes()
        == {*DEFAULT_LANES, "vit_t.changed", "vit_t.changed-automask"}
    )
    assert all(lane == {"state": "ready", "workers": 1} for lane in lanes.values())


def test_not_twice(instance: RestartableServer, registered: str, published: Address) -> None:
    before = instance.files()
    assert error_of(instance.register(registered, "other.pt")) == (409, "conflict", "name")
    assert error_of(instance.register("other", published.url)) == (409, "conflict", "url")
    assert instance.files() == before


def test_nobody_else_learns_the_token(instance: RestartableServer, registered: str) -> None:
    gateway = instance.processes["gateway"].pid
    processes = psutil.Process(instance.processes["torchserve"].pid).children(recursive=True)
    assert len(processes) >= 4
    for process in [*processes, psutil.Process(instance.processes["torchserve"].pid)]:
        assert TOKEN not in process.environ().values()
    for process in [*processes, psutil.Process(gateway)]:
        assert TOKEN not in " ".join(process.cmdline())
    for path in instance.options.run_dir.rglob("*"):
        if path.is_file():
            assert TOKEN.encode() not in path.read_bytes(), path


def test_they_are_there_again_after_a_restart(
    instance: RestartableServer, registered: str, published: Address, expected: Any
) -> None:
    instance.stop()
    assert "weights/registered/vit_t.changed.pt" in instance.files()
    instance.start()
    assert {"vit_t.changed", "vit_t.changed-automask"} < instance.lanes()
    for checkpoint_url in (registered, published.url):
        check_mask(instance, checkpoint_url, expected)
        automask = body(new_picture(), points_per_side=2, checkpoint_url=checkpoint_url)
        assert instance.server.post("/sam/automask/", automask).status_code == 200


def test_stopping_in_the_middle_leaves_nothing(
    instance: RestartableServer, published: Address
) -> None:
    before = instance.files()
    published.n_sent_before_waiting = len(published.content) // 2
    answers: list[Any] = []

    def register() -> None:
        try:
            answers.append(instance.register("mine", f"{published.url}?mine").status_code)
        except requests.RequestException as error:
            answers.append(error)

    work = threading.Thread(target=register)
    work.start()
    while instance.get("/sam/progress/").json()["percent"] < 45:
        time.sleep(0.05)
    instance.stop()
    work.join()
    assert answers != [200]
    assert instance.files() == before
    assert os.listdir(instance.folder / "weights" / "registered")
