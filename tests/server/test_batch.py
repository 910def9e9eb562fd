"""Each request of a batch gets its own answer, even if others in the batch are bad."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import shapely.geometry

from tests.support.sample_pictures import base64_png, picture

COINS = base64_png(picture("coins"))


def received_batches(server: Any) -> int:
    """Return how many batches TorchServe has handed to the prompt worker so far."""
    log = (server.options.run_dir / "logs" / "torchserve.log").read_text()
    return sum(
        "Backend received inference" in line and '"lane": "vit_t"' in line
        for line in log.splitlines()
    )


def test_one_bad_request_leaves_the_others_alone(server: Any, reference_masks: Any) -> None:
    box = [20, 30, 70, 78]
    good = {"type": "vit_t", "bbox": box, "b64img": COINS}
    bad = {**good, "bbox": [9999, 0, 10000, 5]}
    occupying = {"type": "vit_t", "prompts": [{"bbox": box}] * 8, "b64img": COINS}
    before = received_batches(server)
    with ThreadPoolExecutor(9) as pool:
        # While one request keeps the worker busy, the others gather in the queue.
        first = pool.submit(server.predict, "vit_t", occupying)
        rest = [
            pool.submit(server.predict, "vit_t", content=b"{")
            if index % 4 == 3
            else pool.submit(server.predict, "vit_t", bad if index % 2 else good)
            for index in range(8)
        ]
        answers = [future.result() for future in rest]
        assert len(first.result().json()) == 8
    assert [a.status_code for a in answers] == [200, 422, 200, 400] * 2
    area = int(np.count_nonzero(reference_masks("coins", box)[0][0]))
    for answer in (answers[0], answers[2], answers[4], answers[6]):
        [feature] = answer.json()
        assert ring_area(feature) == area
    assert answers[1].json()["error"]["field"] == "bbox"
    # 9 requests in fewer than 9 batches: some shared a batch.
    assert received_batches(server) - before < 9


def ring_area(feature: dict[str, Any]) -> float:
    return float(shapely.geometry.shape(feature["geometry"]).area)
