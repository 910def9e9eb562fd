"""The gateway sends only the digest of a known picture, and the answer stays the same."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

from tests.support.answers import source
from tests.support.bodies import automask_body, prompt_body
from tests.support.lanes import forget_everything
from tests.support.recorded import recorded
from tests.support.sample_pictures import new_picture


def reference_to(text: str) -> str:
    return "sha256:" + sha256(text.encode()).hexdigest()


def test_a_known_picture_is_sent_once(server: Any) -> None:
    picture = new_picture()
    body = prompt_body(picture)
    assert len(picture) > 2**15
    with recorded(server) as (gateway, passed):
        answers = [gateway.post("/sam/", json=body) for _ in range(3)]
        answers.append(gateway.post("/sam/", json=prompt_body(picture, bbox=[90, 30, 140, 80])))
        objects = gateway.post("/sam/automask/", json=automask_body(picture))
    assert [source(answer) for answer in answers] == ["encoder", "memory", "memory", "memory"]
    assert [answer.json() for answer in answers[1:3]] == [answers[0].json()] * 2
    assert answers[3].json() != answers[0].json()
    assert source(objects) == "machine"
    assert passed[0][0] > len(picture)
    assert all(length < 500 for length, _ in passed[1:])
    assert [status for _, status in passed] == [200] * 5
    whole = server.predict("vit_t-automask", automask_body(picture))
    assert objects.json() == whole.json() != []


def test_a_picture_that_was_forgotten_is_sent_again(server: Any) -> None:
    body = prompt_body(new_picture())
    with recorded(server) as (gateway, passed):
        first = gateway.post("/sam/", json=body)
        forget_everything(server)
        second = gateway.post("/sam/", json=body)
        third = gateway.post("/sam/", json=body)
    assert [source(answer) for answer in (first, second, third)] == ["encoder", "encoder", "memory"]
    assert first.json() == second.json() == third.json()
    assert [status for _, status in passed] == [200, 409, 200, 200]
    assert [length > 2**15 for length, _ in passed] == [True, False, True, False]


def test_clients_may_refer_to_a_picture_themselves(server: Any, door: Any) -> None:
    text = new_picture()
    body = prompt_body(text)
    referring = prompt_body(reference_to(text))
    refused = door("prompt", referring)
    assert refused.status_code == 409
    assert refused.json()["error"] == {
        "code": "unknown_image",
        "message": "This picture is not remembered: send it in full.",
        "field": "b64img",
    }
    whole = door("prompt", body)
    assert whole.status_code == 200
    assert door("prompt", referring).json() == whole.json()


def test_crops_of_a_picture_need_its_pixels(server: Any) -> None:
    """The worker has the picture's embedding, but not the embeddings of its crops."""
    picture = new_picture()
    body = {**automask_body(picture), "crop_n_layers": 1, "points_per_side": 2}
    with recorded(server) as (gateway, passed):
        assert gateway.post("/sam/automask/", json=automask_body(picture)).status_code == 200
        answer = gateway.post("/sam/automask/", json=body)
    assert [status for _, status in passed] == [200, 409, 200]
    assert answer.json() == server.predict("vit_t-automask", body).json() != []


def test_a_bad_box_on_a_known_picture_is_refused_the_same(server: Any) -> None:
    picture = new_picture()
    bad = prompt_body(picture, bbox=[9999, 0, 10000, 5])
    with recorded(server) as (gateway, passed):
        assert gateway.post("/sam/", json=prompt_body(picture)).status_code == 200
        answer = gateway.post("/sam/", json=bad)
        # NaN is not JSON, and the gateway must not turn it into null.
        odd = json.dumps(prompt_body(picture, bbox=[float("nan"), 0, 5, 5]))
        refused = gateway.post("/sam/", content=odd)
    whole = server.predict("vit_t", bad)
    assert (answer.status_code, answer.json()) == (whole.status_code, whole.json())
    assert (refused.status_code, refused.json()["error"]["field"]) == (422, "bbox.0")
    assert [length > 2**15 for length, _ in passed] == [True, False, True]
