"""Which weights and which model type answer a request: addresses, entries for QuPath, stand-ins."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from samserve.errors import (
    Conflict,
    NotFound,
)
from samserve_gateway.registration import RegisterRequest
from samserve_gateway.settings import Settings
from samserve_gateway.torchserve import TorchServeError
from samserve_gateway.weights import Weights
from tests.support.registration import DEFAULT, Bench


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


PUBLISHED = {
    "vit_t": "https://github.com/ChaoningZhang/MobileSAM/raw/master/weights/mobile_sam.pt",
    "vit_b": "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_b_01ec64.pth",
    "vit_l": "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_l_0b3195.pth",
    "sam2_l": "https://dl.fbaipublicfiles.com/segment_anything_2/092824/sam2.1_hiera_large.pt",
}


def test_samapis_address_is_the_types_own_weights(bench: Bench) -> None:
    async def choose(wanted: str) -> str:
        return await bench.weights.family("vit_t", wanted)

    for _ in range(2):  # the second time it is known
        assert asyncio.run(choose(PUBLISHED["vit_t"])) == "vit_t"
    with pytest.raises(NotFound):
        asyncio.run(choose(PUBLISHED["vit_b"]))
    registered = RegisterRequest(type="vit_t", name="mine", url=PUBLISHED["vit_t"])
    with pytest.raises(Conflict, match="own weights are published") as refused:
        asyncio.run(bench.registration.register(registered))
    assert refused.value.field == "url"
    assert bench.left() == set()


def test_weights_registered_with_that_address_come_first(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Older servers allowed such a registration."""
    bench.torchserve.there["vit_t.mine"] = {}
    described = {"vit_t": DEFAULT, "vit_t.mine": {**DEFAULT, "name": "mine"}}
    described["vit_t.mine"]["url"] = PUBLISHED["vit_t"]

    async def describe(name: str) -> dict[str, Any]:
        return {"weights": described[name]}

    monkeypatch.setattr(bench.torchserve, "worker_description", describe)
    for _ in range(2):
        chosen = asyncio.run(bench.weights.family("vit_t", PUBLISHED["vit_t"]))
        assert chosen == "vit_t.mine"


SAM_2_0 = "https://dl.fbaipublicfiles.com/segment_anything_2/072824/sam2_hiera_large.pt"


def test_the_weights_of_sam_2_0_are_not_those_of_2_1(bench: Bench) -> None:
    """samapi's sam2_l is 2.0, ours is 2.1."""
    bench.torchserve.there = {"sam2_l": {}, "sam2_l-automask": {}}

    def choose(wanted: str) -> str:
        return asyncio.run(bench.weights.family("sam2_l", wanted))

    assert choose(PUBLISHED["sam2_l"]) == "sam2_l"
    with pytest.raises(NotFound, match=r"No weights .*072824.* are registered for sam2_l"):
        choose(SAM_2_0)
    with pytest.raises(Conflict, match="own weights are published"):
        register(bench, PUBLISHED["sam2_l"])


def register(bench: Bench, url: str) -> None:
    request = RegisterRequest(type="sam2_l", name="sam2-0", url=url)
    asyncio.run(bench.registration.register(request))


# Types that are not loaded

OFFERED = ["vit_h", "vit_l", "vit_b", "vit_t", "sam2_l", "sam2_bp", "sam2_s", "sam2_t", "sam3"]
"""The model types that QuPath's extension offers."""


@pytest.mark.parametrize("model_type", OFFERED)
@pytest.mark.parametrize(
    ("loaded", "reason"),
    [
        (["vit_t"], "choose vit_t"),
        (["vit_t", "vit_b"], "choose vit_t or vit_b"),
        (["vit_t", "vit_b", "vit_h"], "choose vit_t, vit_b or vit_h"),
        (["vit_t", "sam2_t"], "choose vit_t or sam2_t"),
        ([], "nothing is loaded"),
    ],
)
def test_every_type_that_qupath_offers_has_an_entry(
    bench: Bench, model_type: str, loaded: list[str], reason: str
) -> None:
    bench.torchserve.there = {lane: {} for name in loaded for lane in (name, f"{name}-automask")}
    listed = asyncio.run(bench.weights.choices(model_type))
    if model_type in loaded:
        assert listed != []
        assert "not" not in listed[0]["name"]
        return
    where = "not on this server" if model_type == "sam3" else "not loaded"
    url = listed[0]["url"]
    assert listed == [{"type": model_type, "name": f"{where}: {reason}", "url": url}]
    assert url
    assert url not in PUBLISHED.values()
    bench.torchserve.there["vit_t"] = {}
    if model_type == "vit_t":  # it has been loaded since, and QuPath still has the address
        assert asyncio.run(bench.weights.family("vit_t", url)) == "vit_t"
        return
    with pytest.raises(NotFound):  # another type with that address
        asyncio.run(bench.weights.family("vit_t", url))


@pytest.mark.parametrize("model_type", ["vit_x", "vit_t-automask", "vit_t.mine", "", "sam2"])
def test_a_type_that_nobody_has_heard_of(bench: Bench, model_type: str) -> None:
    for weights in (bench.weights, Weights(bench.torchserve, "vit_t", ["vit_t"])):
        assert asyncio.run(weights.choices(model_type)) == []
        with pytest.raises(NotFound, match=r"no model type .* Loaded: vit_t"):
            asyncio.run(weights.answering(model_type))


def test_sam_3_is_refused_for_what_it_is(bench: Bench) -> None:
    said = r"sam3 is not part of this server: it has no SAM 3, only vit_t, .*Loaded: vit_t\."
    with pytest.raises(NotFound, match=said) as refused:
        asyncio.run(bench.weights.answering("sam3"))
    assert refused.value.field == "type"


@pytest.fixture
def standing_in(bench: Bench) -> Weights:
    """Weights with the stand-in vit_t, which has registered weights, too."""
    bench.torchserve.there["vit_t.mine"] = {}
    return Weights(bench.torchserve, "vit_t", ["vit_t"])


@pytest.mark.parametrize("model_type", [name for name in OFFERED if name != "vit_t"])
def test_a_stand_in_answers(standing_in: Weights, model_type: str) -> None:
    async def choose(wanted: str | None) -> str:
        answering = await standing_in.answering(model_type)
        return await standing_in.family(answering, wanted, model_type)

    listed = asyncio.run(standing_in.choices(model_type))
    assert [(entry["type"], entry["name"]) for entry in listed] == [
        (model_type, f"vit_t in place of {model_type}"),
        (model_type, f"vit_t mine in place of {model_type}"),
    ]
    own, mine = listed
    for wanted in (None, own["url"], own["name"], "default", PUBLISHED["vit_t"]):
        assert asyncio.run(choose(wanted)) == "vit_t"
    for wanted in (mine["url"], mine["name"], "mine"):
        assert asyncio.run(choose(wanted)) == "vit_t.mine"
    for name, address in PUBLISHED.items():
        if name == model_type:
            assert asyncio.run(choose(address)) == "vit_t"
        elif name != "vit_t":
            with pytest.raises(NotFound, match="vit_t stands in"):
                asyncio.run(choose(address))
    with pytest.raises(NotFound, match=f"registered for {model_type}, for which vit_t stands in"):
        asyncio.run(choose("https://example.org/other.pt"))


def test_a_type_that_is_loaded_answers_itself(bench: Bench, standing_in: Weights) -> None:
    assert asyncio.run(standing_in.answering("vit_t")) == "vit_t"
    bench.torchserve.there["vit_b"] = {}
    assert asyncio.run(standing_in.answering("vit_b")) == "vit_b"
    del bench.torchserve.there["vit_b"]
    standing_in.forget("vit_b")  # as a refused request does
    assert asyncio.run(standing_in.answering("vit_b")) == "vit_t"


def test_nothing_stands_in_for_what_must_be_there(bench: Bench) -> None:
    """The type's TorchServe may be unreachable for a moment only."""
    weights = Weights(bench.torchserve, "vit_t", ["vit_t", "vit_b"])
    assert asyncio.run(weights.answering("vit_b")) == "vit_b"
    assert asyncio.run(weights.choices("vit_b"))[0]["name"] == "not loaded: choose vit_t"
    assert asyncio.run(weights.answering("vit_l")) == "vit_t"


def test_a_stand_in_that_is_not_there(bench: Bench, standing_in: Weights) -> None:
    bench.torchserve.there = {"vit_b": {}, "vit_b-automask": {}}
    said = r"vit_l is not loaded\. Loaded: vit_b\. SAMSERVE_STAND_IN names vit_t, which is not"
    with pytest.raises(NotFound, match=said):
        asyncio.run(standing_in.answering("vit_l"))
    assert asyncio.run(standing_in.choices("vit_l"))[0]["name"] == "not loaded: choose vit_b"


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"SAMSERVE_STAND_IN": "vit_x"}, "no model type 'vit_x'"),
        ({"SAMSERVE_STAND_IN": "sam3"}, "no model type 'sam3'"),
        ({"SAMSERVE_STAND_IN": "sam2_l"}, "sam2_l is not among"),
        ({"SAMSERVE_STAND_IN": "on"}, "no model type 'on'"),
        ({"SAMSERVE_STAND_IN": "vit_b"}, "vit_b is not among"),
    ],
)
def test_a_bad_stand_in_stops_the_start(environ: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Settings.from_environ(environ)


def test_a_good_stand_in() -> None:
    assert Settings.from_environ({}).stand_in is None
    assert Settings.from_environ({"SAMSERVE_STAND_IN": ""}).stand_in is None
    environ = {"SAMSERVE_STAND_IN": "vit_b", "SAMSERVE_MODELS": "vit_t vit_b"}
    assert Settings.from_environ(environ).stand_in == "vit_b"


def test_weights_that_are_being_registered_are_not_chosen(bench: Bench) -> None:
    bench.torchserve.there["vit_t.mine"] = {}
    bench.weights.joining.add("vit_t.mine")
    with pytest.raises(NotFound):
        asyncio.run(bench.weights.family("vit_t", "mine"))
    assert asyncio.run(bench.weights.registered(["vit_t"])) == [DEFAULT]
    bench.weights.joining.clear()
    assert asyncio.run(bench.weights.family("vit_t", "mine")) == "vit_t.mine"


def test_after_a_restart_with_a_stand_in_qupaths_old_list_still_works(
    bench: Bench,
) -> None:
    """QuPath requests the list when the user chooses a model, not when the server restarts."""
    bench.torchserve.there = {lane: {} for lane in ("vit_t", "vit_t-automask")}
    [entry] = asyncio.run(bench.weights.choices("vit_l"))
    restarted = Weights(bench.torchserve, "vit_t", ["vit_t"])
    assert asyncio.run(restarted.answering("vit_l")) == "vit_t"
    assert asyncio.run(restarted.family("vit_t", entry["url"], "vit_l")) == "vit_t"


def test_a_type_that_should_be_loaded_is_the_servers_fault(bench: Bench) -> None:
    """If the server is starting, or its model failed, advice to add the model would be wrong."""
    bench.torchserve.there = {}
    weights = Weights(bench.torchserve, None, ["vit_t"])
    with pytest.raises(TorchServeError, match="should have it") as failed:
        raise asyncio.run(weights.not_loaded("vit_t"))
    assert failed.value.status == 503
    with pytest.raises(NotFound, match="make serve MODELS"):
        raise asyncio.run(weights.not_loaded("vit_b"))
