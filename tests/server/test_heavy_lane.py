"""Prompts that take much work, through the gateway and a real TorchServe."""

from __future__ import annotations

import base64
import io
import threading
from typing import Any

import numpy as np
from PIL import Image

from tests.support.bodies import prompt_body
from tests.support.metrics import Since
from tests.support.sample_pictures import new_picture

SIDE = 7000


def large_picture(seed: int) -> str:
    """Return a picture of 49 megapixels, which the prompt lane does not decode."""
    pixels = np.zeros((SIDE, SIDE), np.uint8)
    pixels[seed * 10 + 1000 : 4000, 1000:4000] = 200
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return base64.b64encode(file.getvalue()).decode()


def test_a_large_picture_gets_its_answer_from_the_other_lane(server: Any) -> None:
    computed = Since(server.options.metrics_url)
    body = prompt_body(large_picture(1), bbox=[900, 900, 4100, 4100])
    answers = [server.post("/sam/", body) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200] * 3
    geometries = {str(answer.json()[0]["geometry"]) for answer in answers}
    assert len(geometries) == 1
    # The first goes on to the automask lane. Then the picture is known, and is not decoded again.
    assert computed("samserve_requests_total", lane="vit_t", status="421") == 1
    assert computed("samserve_requests_total", lane="vit_t-automask", status="200") == 1
    assert computed("samserve_requests_total", lane="vit_t", status="200") == 2


def test_clicks_are_answered_while_large_pictures_are_under_way(server: Any) -> None:
    click = prompt_body(new_picture())
    assert server.post("/sam/", click).status_code == 200
    statuses: list[int] = []

    def send(seed: int) -> None:
        statuses.append(server.post("/sam/", prompt_body(large_picture(seed))).status_code)

    heavy = [threading.Thread(target=send, args=(seed,)) for seed in (2, 3, 4)]
    for thread in heavy:
        thread.start()
    n_meanwhile = 0
    while any(thread.is_alive() for thread in heavy):
        assert server.post("/sam/", click).status_code == 200
        n_meanwhile += 1
    assert statuses == [200] * 3
    assert n_meanwhile > len(heavy)  # no click waited for all of them
