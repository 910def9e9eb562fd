"""Weights registered while a real server runs: chosen, kept, refused, cancelled.

The server has an administrator, and folders of its own. The ways in which a registration can
fail are in tests/unit/test_registration.py and test_register_weights.py; here are those that
matter most, all the way through.
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
OWN = {"vit_t", "vit_t-automask"}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RestartableServer]:
    with pytest.MonkeyPatch.context() as environ, serving() as address:
        environ.setenv("SAMSERVE_ADMIN_TOKEN", TOKEN)
        environ.setenv("SAMSERVE_WEIGHTS_ORIGINS", address.url.removesuffix("/file"))
        environ.setenv("SAMSERVE_WEIGHTS_MAX_BYTES", str(2**26))
        environ.setenv("NO_PROXY", "127.0.0.1")
        own = RestartableServer(tmp_path_factory.mktemp("own"), address)
        yield own
        own.stop()
        shutil.rmtree(own.options.run_dir)


@pytest.fixture(scope="module")
def changed() -> dict[str, torch.Tensor]:
    return changed_weights()


@pytest.fixture
def published(own: RestartableServer, changed: dict[str, torch.Tensor]) -> Iterator[Address]:
    """Those weights at the address."""
    saved = io.BytesIO()
    torch.save(changed, saved)
    before = vars(own.address).copy()
    own.address.content, own.address.etag = saved.getvalue(), '"changed"'
    yield own.address
    vars(own.address).update(before)


class InBackground:
    """A registration that somebody waits for, and what the server says meanwhile."""

    def __init__(self, own: RestartableServer, name: str, url: str) -> None:
        self._own = own
        self._answers: list[requests.Response] = []
        self._thread = threading.Thread(
            target=lambda: self._answers.append(own.register(name, url))
        )
        self._thread.start()

    def progress(self) -> Iterator[dict[str, Any]]:
        """What is told until it is over."""
        while self._thread.is_alive():
            yield self._own.get("/sam/progress/").json()
            time.sleep(0.05)

    def answer(self) -> requests.Response:
        self._thread.join()
        return self._answers[0]


# Refused


def test_off_without_a_token() -> None:
    with TestClient(create_app(Settings())) as gateway:
        for asked in (
            gateway.post("/sam/weights/", headers=ADMIN),
            gateway.get("/sam/weights/cancel/", headers=ADMIN),
        ):
            assert error_of(asked) == (403, "forbidden", None)
            assert "SAMSERVE_ADMIN_TOKEN" in asked.json()["error"]["message"]


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer another token"}])
def test_only_for_the_administrator(own: RestartableServer, headers: dict[str, str]) -> None:
    body = {"type": "vit_t", "name": "x", "url": "x.pt"}
    for answer in (
        own.server.http.post(f"{own.options.url}/sam/weights/", json=body, headers=headers),
        own.get("/sam/weights/cancel/", **headers),
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
    own: RestartableServer, fields: dict[str, Any], status: int, field: str
) -> None:
    answer = own.register(**{"name": "mine", "url": "mine.pt", **fields})
    assert (answer.status_code, answer.json()["error"]["field"]) == (status, field)


@pytest.mark.parametrize("url", ["https://example.org/x.pt", "/etc/hostname", "../store/vit_t.mar"])
def test_what_may_not_be_fetched(own: RestartableServer, url: str) -> None:
    before = own.files()
    assert error_of(own.register("mine", url)) == (422, "invalid_field", "url")
    assert (own.files(), own.lanes()) == (before, OWN)


@pytest.mark.needs("curl")
def test_the_readmes_request(own: RestartableServer) -> None:
    """As it stands there, but that nobody has put the file there."""
    [block] = re.findall(r"^```sh\n(curl [^`]*/sam/weights/.*?)^```", OPERATIONS, re.M | re.S)
    ran = subprocess.run(
        ["bash", "-euc", block.replace("http://127.0.0.1:8000", own.options.url)],
        capture_output=True,
        check=True,
    )
    assert b"'nuclei.pt' in the weights folder" in ran.stdout


def test_malice_runs_nothing_and_leaves_nothing(own: RestartableServer, tmp_path: Path) -> None:
    victim, before = tmp_path / "it ran", own.files()
    saved = io.BytesIO()
    torch.save({"weight": Malice(victim)}, saved)
    own.address.content = saved.getvalue()
    assert error_of(own.register("mine", own.address.url)) == (422, "invalid_weights", "url")
    assert not victim.exists()
    assert (own.files(), own.lanes()) == (before, OWN)
    torch.load(io.BytesIO(saved.getvalue()), weights_only=False)
    assert victim.exists(), "the file was harmless, so the test proved nothing"


def test_cancelled_in_the_middle(own: RestartableServer, published: Address) -> None:
    before = own.files()
    published.n_sent_before_waiting = len(published.content) // 2
    work = InBackground(own, "mine", published.url)
    half = next(said for said in work.progress() if said["percent"] >= 45)
    assert re.fullmatch(r"mine: \d+\.\d of \d+\.\d MB downloaded", half["message"])
    assert half["percent"] < 60
    [job] = [
        process
        for process in psutil.Process(own.processes["gateway"].pid).children()
        if "samserve.archives.register" in process.cmdline()
    ]
    assert error_of(own.register("other", "other.pt")) == (409, "conflict", None)
    assert own.get("/sam/weights/cancel/", **ADMIN).text == "Cancel signal sent"
    answer = work.answer()
    assert (answer.status_code, answer.text) == (
        200,
        f"The registration of mine ({published.url}) was cancelled.",
    )
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert not job.is_running()
    assert (own.files(), own.lanes()) == (before, OWN)
    assert own.get("/sam/progress/").json()["percent"] == -1


# Registered


@pytest.fixture
def registered(own: RestartableServer, published: Address) -> str:
    """Those weights, registered once, under this name; the first download of them breaks off."""
    if "vit_t.changed" not in own.lanes():
        published.n_sent_before_hanging_up = 10_000_000
        assert error_of(own.register("changed", published.url)) == (502, "unreachable", "url")
        assert own.lanes() == OWN
        published.n_sent_before_hanging_up = None
        published.asked.clear()
        work = InBackground(own, "changed", published.url)
        said = set()
        for progress in work.progress():
            said.add(progress["message"].split(" ", 1)[1])
            # A server whose clients need not wait.
            assert own.get("/readyz").json()["ready"]
        assert {"checking", "building the archive", "starting workers"} <= said
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


def check_mask(own: RestartableServer, wanted: str, expected: Any) -> None:
    """The reference's, to the pixel."""
    coins = base64_png(picture("coins"))
    [feature] = own.server.post("/sam/", body(coins, bbox=BOX, checkpoint_url=wanted)).json()
    assert same_mask(rasterise(feature["geometry"], *expected.shape), expected)


def check_choice(own: RestartableServer, name: str, url: str, expected: Any) -> None:
    """By name and by URL, both modes, both doors; the type's own are as before."""
    image = new_picture()
    own_prompt = own.server.post("/sam/", body(image, bbox=BOX)).json()
    own_objects = own.server.post("/sam/automask/", body(image, points_per_side=4)).json()
    assert own_prompt == own.server.predict("vit_t", body(image, bbox=BOX)).json()
    for wanted in (name, url):
        prompt = body(image, bbox=BOX, checkpoint_url=wanted)
        automask = body(image, points_per_side=4, checkpoint_url=wanted)
        for mode, asked, theirs in (
            ("", prompt, own_prompt),
            ("-automask", automask, own_objects),
        ):
            path = "/sam/automask/" if mode else "/sam/"
            # Twice: the second time it is a known picture.
            answers = [own.server.post(path, asked) for _ in range(2)]
            answers.append(own.server.predict(f"vit_t.{name}{mode}", asked))
            assert [answer.status_code for answer in answers] == [200] * 3, answers[0].text
            assert answers[0].json() == answers[1].json() == answers[2].json() != theirs
        check_mask(own, wanted, expected)
    form = own.server.http.post(
        f"{own.options.url}/sam/",
        files={"image": (ROOT / "docs" / "coins.png").read_bytes()},
        data={"type": "vit_t", "bbox": json.dumps(BOX), "checkpoint_url": name},
    )
    [feature] = form.json()
    assert same_mask(rasterise(feature["geometry"], *expected.shape), expected)


def test_chosen_by_name_and_by_url(own: RestartableServer, registered: str, expected: Any) -> None:
    check_choice(own, registered, own.address.url, expected)
    unknown = own.server.post("/sam/", body("x", bbox=BOX, checkpoint_url="unknown"))
    assert error_of(unknown) == (404, "not_found", "checkpoint_url")
    assert "'changed'" in unknown.json()["error"]["message"]
    wrong_door = own.server.predict(
        "vit_t", body(new_picture(), bbox=BOX, checkpoint_url=registered)
    )
    assert error_of(wrong_door) == (404, "not_found", "checkpoint_url")


def test_they_are_listed(own: RestartableServer, registered: str, published: Address) -> None:
    default, listed = own.get("/sam/weights/?type=vit_t").json()
    assert default["name"] == "default"
    assert set(listed) == {"type", "name", "url", "source", "sha256"}
    assert (listed["name"], listed["url"]) == (registered, published.url)
    kept = own.folder / "weights" / "registered" / "vit_t.changed.json"
    assert json.loads(kept.read_text()) == listed
    lanes = own.get("/readyz").json()["lanes"]
    assert set(lanes) == own.lanes() == {*OWN, "vit_t.changed", "vit_t.changed-automask"}
    assert all(lane == {"state": "ready", "workers": 1} for lane in lanes.values())


def test_not_twice(own: RestartableServer, registered: str, published: Address) -> None:
    before = own.files()
    assert error_of(own.register(registered, "other.pt")) == (409, "conflict", "name")
    assert error_of(own.register("other", published.url)) == (409, "conflict", "url")
    assert own.files() == before


def test_nobody_else_learns_the_token(own: RestartableServer, registered: str) -> None:
    gateway = own.processes["gateway"].pid
    processes = psutil.Process(own.processes["torchserve"].pid).children(recursive=True)
    assert len(processes) >= 4
    for process in [*processes, psutil.Process(own.processes["torchserve"].pid)]:
        assert TOKEN not in process.environ().values()
    for process in [*processes, psutil.Process(gateway)]:
        assert TOKEN not in " ".join(process.cmdline())
    for path in own.options.run_dir.rglob("*"):
        if path.is_file():
            assert TOKEN.encode() not in path.read_bytes(), path


def test_they_are_there_again_after_a_restart(
    own: RestartableServer, registered: str, published: Address, expected: Any
) -> None:
    own.stop()
    assert "weights/registered/vit_t.changed.pt" in own.files()
    own.start()
    assert {"vit_t.changed", "vit_t.changed-automask"} < own.lanes()
    for wanted in (registered, published.url):
        check_mask(own, wanted, expected)
        automask = body(new_picture(), points_per_side=2, checkpoint_url=wanted)
        assert own.server.post("/sam/automask/", automask).status_code == 200


def test_stopping_in_the_middle_leaves_nothing(own: RestartableServer, published: Address) -> None:
    before = own.files()
    published.n_sent_before_waiting = len(published.content) // 2
    answers: list[Any] = []

    def register() -> None:
        try:
            answers.append(own.register("mine", f"{published.url}?mine").status_code)
        except requests.RequestException as error:
            answers.append(error)

    work = threading.Thread(target=register)
    work.start()
    while own.get("/sam/progress/").json()["percent"] < 45:
        time.sleep(0.05)
    own.stop()
    work.join()
    assert answers != [200]
    assert own.files() == before
    assert os.listdir(own.folder / "weights" / "registered")
