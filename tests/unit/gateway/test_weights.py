"""The weights that `/sam/weights/` lists, and those that a request gets by their name or URL."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support import torchserve
from tests.support.torchserve import Gateway, TorchServeStandIn

DEFAULT = TorchServeStandIn().descriptions["vit_t"]["weights"]
MINE = {**DEFAULT, "name": "mine", "url": "mine.pt", "source": "registered"}
BODY = {"type": "vit_t", "bbox": [1, 2, 3, 4], "b64img": "QUJD"}


def register(torchserve: TorchServeStandIn, **weights: str) -> None:
    """Add the lanes of registered weights, as a registration leaves them."""
    described = {**MINE, **weights}
    family = f"{described['type']}.{described['name']}"
    torchserve.lanes |= {family: {201}, f"{family}-automask": {202}}
    torchserve.descriptions[family] = {"weights": described}


def listed(gateway: Gateway, query: str = "") -> Any:
    got = gateway.get(f"/sam/weights/{query}")
    assert got.status == 200
    return got.json()


def test_the_list_of_all_weights_and_of_one_type(gateway: Gateway) -> None:
    assert listed(gateway) == listed(gateway, "?type=vit_t") == [DEFAULT]
    register(gateway.torchserve)
    assert listed(gateway) == listed(gateway, "?type=vit_t") == [DEFAULT, MINE]
    assert listed(gateway, "?type=vit_x") == []


@pytest.mark.parametrize(
    ("model_type", "name"),
    [
        ("vit_b", "not loaded: choose vit_t"),
        ("sam2_l", "not loaded: choose vit_t"),
        ("sam3", "not on this server: choose vit_t"),
    ],
)
def test_a_known_type_that_is_not_loaded_has_an_entry_that_leads_to_404(
    gateway: Gateway, model_type: str, name: str
) -> None:
    [entry] = listed(gateway, f"?type={model_type}")
    assert (entry["type"], entry["name"]) == (model_type, name)
    got = gateway.post("/sam/", {**BODY, "checkpoint_url": entry["url"]})
    assert (got.status, got.error()["field"]) == (404, "checkpoint_url")


@pytest.mark.parametrize("chosen", ["mine", "mine.pt"])
@pytest.mark.parametrize("path", ["/sam/", "/sam/automask/", "/sam/automask/?stream=1"])
def test_weights_are_chosen_by_name_and_by_url(gateway: Gateway, path: str, chosen: str) -> None:
    register(gateway.torchserve)
    for checkpoint_url in (None, "default", DEFAULT["url"], chosen):
        body = {**BODY, "checkpoint_url": checkpoint_url}
        assert gateway.post(path, body).status == 200
    mode = "" if path == "/sam/" else "-automask"
    lanes = [received.lane for received in gateway.torchserve.received]
    assert lanes == [f"vit_t{mode}"] * 3 + [f"vit_t.mine{mode}"]


def test_a_lane_is_asked_only_once_for_its_weights(gateway: Gateway) -> None:
    register(gateway.torchserve)
    for _ in range(3):
        assert gateway.post("/sam/", {**BODY, "checkpoint_url": "mine"}).status == 200
    assert gateway.post("/sam/", {**BODY, "checkpoint_url": "other"}).status == 404
    assert sorted(gateway.torchserve.described) == ["vit_t", "vit_t.mine"]


def test_unknown_weights_are_404_and_the_choices_are_named(gateway: Gateway) -> None:
    register(gateway.torchserve)
    got = gateway.post("/sam/", {**BODY, "checkpoint_url": "other"})
    assert (got.status, got.error()["field"]) == (404, "checkpoint_url")
    assert got.error()["message"] == (
        f"No weights 'other' are registered for vit_t; there are 'default' ({DEFAULT['url']}), "
        "'mine' (mine.pt)."
    )


def test_weights_that_lost_their_lanes_are_forgotten(gateway: Gateway) -> None:
    register(gateway.torchserve)
    body = {**BODY, "checkpoint_url": "mine"}
    assert gateway.post("/sam/", body).status == 200
    del gateway.torchserve.lanes["vit_t.mine"]
    got = gateway.post("/sam/", body)
    assert (got.status, got.error()["message"]) == (404, "These weights are no longer registered.")
    assert "No weights 'mine'" in gateway.post("/sam/", body).error()["message"]
    register(gateway.torchserve)
    assert gateway.post("/sam/", body).status == 200


def test_a_stand_ins_weights_in_the_list_of_another_type() -> None:
    with torchserve.gateway(stand_in="vit_t") as gateway:
        register(gateway.torchserve)
        own, mine = listed(gateway, "?type=vit_b")
        assert own == {**DEFAULT, "type": "vit_b", "name": "vit_t in place of vit_b"}
        assert mine == {**MINE, "type": "vit_b", "name": "vit_t mine in place of vit_b"}
        for entry in (own, mine):
            body = {**BODY, "type": "vit_b", "checkpoint_url": entry["name"]}
            assert gateway.post("/sam/", body).status == 200
        lanes = [received.lane for received in gateway.torchserve.received]
        assert lanes == ["vit_t", "vit_t.mine"]
        # Once the type itself is loaded, it answers.
        gateway.torchserve.lanes |= {"vit_b": {301}, "vit_b-automask": {302}}
        described = {**DEFAULT, "type": "vit_b"}
        gateway.torchserve.descriptions["vit_b"] = {"weights": described}
        assert listed(gateway, "?type=vit_b") == [described]
        assert gateway.post("/sam/", {**BODY, "type": "vit_b"}).status == 200
        assert gateway.torchserve.received[-1].lane == "vit_b"
        assert "samserve-stand-in" not in gateway.torchserve.received[-1].headers
