"""A QuPath whose user has chosen nothing yet, and scripts made with samapi, on a real server.

The server is started with a stand-in and with samapi's defaults, and has an administrator, who
registers checkpoints as micro-sam writes them.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from samserve_launcher.options import Options, free_ports
from samserve_launcher.server import ServerError, running
from tests.conftest import ROOT, base64_png, picture
from tests.server.test_cache import new_picture
from tests.server.test_types import mapped_weights
from tests.server.test_weights import ADMIN, TOKEN, Own, error_of
from tests.support.addresses import serving
from tests.support.changed_weights import BOX, changed_weights, reference_mask
from tests.support.checkpoints import Malice, decoder_state, foreign, prefixed, training_checkpoint
from tests.support.geometry import rasterise, same_mask

OFFERED = ["vit_h", "vit_l", "vit_b", "vit_t", "sam2_l", "sam2_bp", "sam2_s", "sam2_t", "sam3"]
META = "https://dl.fbaipublicfiles.com/segment_anything"
MOBILE_SAM = "https://github.com/ChaoningZhang/MobileSAM/raw/master/weights/mobile_sam.pt"
SEGMENT_ANYTHINGS = {"output_type": "Multi-mask (best quality)", "include_image_edge": True}
SAMAPIS = {"output_type": "Single Mask", "include_image_edge": False}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Own]:
    with pytest.MonkeyPatch.context() as environ, serving() as address:
        environ.setenv("SAMSERVE_STAND_IN", "vit_t")
        environ.setenv("SAMSERVE_DEFAULTS", "samapi")
        environ.setenv("SAMSERVE_ADMIN_TOKEN", TOKEN)
        own = Own(tmp_path_factory.mktemp("own"), address)
        yield own
        own.stop()
        shutil.rmtree(own.options.run_dir)


def weights_of(own: Own, model_type: str) -> list[dict[str, str]]:
    listed: list[dict[str, str]] = own.get(f"/sam/weights/?type={model_type}").json()
    return listed


def outlines(answer: Any) -> list[Any]:
    """Of an answer that says which model it is by."""
    assert answer.status_code == 200, answer.text
    features = answer.json()
    assert {feature["properties"]["sam_model"] for feature in features} == {"vit_t"}
    return [feature["geometry"] for feature in features]


# The stand-in


@pytest.mark.parametrize("model_type", OFFERED)
def test_the_first_click(own: Own, model_type: str) -> None:
    """The extension takes the first of the list, and sends its address with every prompt."""
    chosen = weights_of(own, model_type)[0]
    assert chosen["type"] == model_type
    assert chosen["name"] == (
        "default" if model_type == "vit_t" else f"vit_t in place of {model_type}"
    )
    view = base64_png(picture("coins"))
    body = {"type": model_type, "bbox": BOX, "b64img": view, "checkpoint_url": chosen["url"]}
    asked = {"type": "vit_t", "bbox": BOX, "b64img": view}
    assert outlines(own.server.post("/sam/", body)) == outlines(own.server.post("/sam/", asked))


def test_only_what_is_loaded_is_listed_without_a_type(own: Own) -> None:
    assert {entry["type"] for entry in own.get("/sam/weights/").json()} == {"vit_t"}
    assert weights_of(own, "vit_x") == []


def test_every_way_of_asking_is_answered(own: Own) -> None:
    for fields in ({"type": "vit_l"}, {}, {"type": "vit_b", "checkpoint_url": None}):
        image = new_picture()
        prompt = {**fields, "b64img": image, "bbox": BOX}
        automask = {**fields, "b64img": image, "points_per_side": 3}
        own_prompt = outlines(own.server.post("/sam/", {**prompt, "type": "vit_t"}))
        own_objects = outlines(own.server.post("/sam/automask/", {**automask, "type": "vit_t"}))
        for _ in range(2):  # in full, and as a known picture
            assert outlines(own.server.post("/sam/", prompt)) == own_prompt
            assert outlines(own.server.post("/sam/automask/", automask)) == own_objects
        streamed = own.server.post("/sam/automask/?stream=1", automask)
        events = [json.loads(line) for line in streamed.text.splitlines()]
        found = [event for event in events if event["event"] == "feature"]
        assert [feature["geometry"] for feature in found] == own_objects
        assert events[-1]["event"] == "done"
    form = own.server.http.post(
        f"{own.options.url}/sam/",
        files={"image": (ROOT / "docs" / "coins.png").read_bytes()},
        data={"type": "vit_h", "bbox": json.dumps(BOX)},
    )
    assert len(outlines(form)) == 1


def test_the_addresses_of_a_recorded_workflow(own: Own) -> None:
    body = {"b64img": new_picture(), "bbox": BOX}
    own_mask = outlines(own.server.post("/sam/", {**body, "type": "vit_t"}))
    for model_type, url in (
        ("vit_t", MOBILE_SAM),
        ("vit_t", MOBILE_SAM.replace("/raw/", "/blob/")),
        ("vit_b", f"{META}/sam_vit_b_01ec64.pth"),
        ("vit_l", f"{META}/sam_vit_l_0b3195.pth"),
        ("vit_h", f"{META}/sam_vit_h_4b8939.pth"),
        # QuPath's list may be older than the server's start with a stand-in.
        ("vit_l", "not-loaded:vit_l"),
    ):
        asked = {**body, "type": model_type, "checkpoint_url": url}
        assert outlines(own.server.post("/sam/", asked)) == own_mask
    for model_type, url in (
        ("vit_t", f"{META}/sam_vit_b_01ec64.pth"),
        ("vit_l", f"{META}/sam_vit_b_01ec64.pth"),
        ("vit_l", "https://example.org/mine.pt"),
        ("vit_l", "not-loaded:vit_b"),
    ):
        asked = {**body, "type": model_type, "checkpoint_url": url}
        for path in ("/sam/", "/sam/automask/"):
            refused = own.server.post(path, asked)
            assert error_of(refused) == (404, "not_found", "checkpoint_url")


def test_the_workers_own_door_knows_the_addresses_but_no_stand_in(own: Own) -> None:
    body = {"b64img": new_picture(), "bbox": BOX}
    known = own.server.predict("vit_t", {**body, "type": "vit_t", "checkpoint_url": MOBILE_SAM})
    assert len(outlines(known)) == 1
    for fields in (
        {"type": "vit_l"},
        {"type": "vit_t", "checkpoint_url": f"{META}/sam_vit_b_01ec64.pth"},
    ):
        assert own.server.predict("vit_t", {**body, **fields}).status_code == 404


# samapi's defaults


@pytest.mark.parametrize("model_type", ["vit_t", "vit_h"])
def test_automask_does_what_samapi_does(own: Own, model_type: str) -> None:
    body = {"type": model_type, "b64img": new_picture(), "points_per_side": 4}
    answered = {
        name: outlines(own.server.post("/sam/automask/", {**body, **fields}))
        for name, fields in (
            ("absent", {}),
            ("samapi's", SAMAPIS),
            ("segment-anything's", SEGMENT_ANYTHINGS),
            ("no edge", {"output_type": SEGMENT_ANYTHINGS["output_type"]}),
        )
    }
    assert answered["absent"] == answered["samapi's"]
    assert answered["absent"] != answered["segment-anything's"]
    assert len(answered["no edge"]) <= len(answered["segment-anything's"])
    if model_type == "vit_t":
        direct = own.server.predict("vit_t-automask", body)
        assert outlines(direct) == answered["absent"]


# micro-sam's checkpoints


@pytest.fixture(scope="module")
def changed() -> dict[str, torch.Tensor]:
    return changed_weights()


@pytest.fixture(scope="module")
def expected(changed: dict[str, torch.Tensor]) -> Any:
    return reference_mask(changed)


def trained(tensors: dict[str, torch.Tensor], **more: Any) -> bytes:
    """A training checkpoint whose classes nobody here has."""
    saved = io.BytesIO()
    with foreign() as torch_em:
        init = {"train_dataset": torch_em.Dataset(), "loss": torch_em.transform, **more}
        content = training_checkpoint(tensors, decoder_state=decoder_state(), init=init)
        torch.save(content, saved)
    return saved.getvalue()


def exported(tensors: dict[str, torch.Tensor]) -> bytes:
    saved = io.BytesIO()
    torch.save({**prefixed("sam.", tensors), **prefixed("decoder.", decoder_state())}, saved)
    return saved.getvalue()


@pytest.mark.parametrize("layout", [trained, exported])
def test_micro_sams_weights_give_the_plain_files_masks(
    own: Own, changed: dict[str, torch.Tensor], expected: Any, layout: Any
) -> None:
    name, lanes = layout.__name__, own.lanes()
    (own.folder / "weights" / f"{name}.pt").write_bytes(layout(changed))
    answer = own.register(name, f"{name}.pt")
    assert answer.status_code == 200, answer.text
    for model_type in ("vit_t", "vit_l"):
        body = {"type": model_type, "bbox": BOX, "b64img": base64_png(picture("coins"))}
        [mask] = outlines(own.server.post("/sam/", {**body, "checkpoint_url": name}))
        assert same_mask(rasterise(mask, *expected.shape), expected)
        [other] = outlines(own.server.post("/sam/", body))
        assert other != mask
    names = [entry["name"] for entry in weights_of(own, "vit_l")]
    assert names[0] == "vit_t in place of vit_l"
    assert f"vit_t {name} in place of vit_l" in names
    log = (own.options.run_dir / "logs" / "gateway-console.log").read_text()
    assert log.count(f"vit_t.{name}.pt: left out a decoder for AIS") == 1
    # The workers of both lanes map one file, of the network's tensors alone.
    served = own.options.models_dir / f"vit_t.{name}" / "vit_t.pt"
    assert torch.load(served, weights_only=True, mmap=True).keys() == changed.keys()
    workers = [pid for lane in own.lanes() - lanes for pid in pids_of(own, lane)]
    assert len(workers) == 2
    assert len({mapped_weights(pid, f"vit_t.{name}/vit_t.pt") for pid in workers}) == 1


def pids_of(own: Own, lane: str) -> list[int]:
    described = own.server.http.get(
        f"{own.options.management_url}/models/{lane}",
        headers=own.server.authorization("management"),
    )
    return [worker["pid"] for worker in described.json()[0]["workers"]]


@pytest.mark.parametrize("where", ["init", "model_state"])
def test_malice_within_a_training_checkpoint(
    own: Own, changed: dict[str, torch.Tensor], tmp_path: Path, where: str
) -> None:
    victim, path = tmp_path / "it ran", own.folder / "weights" / "malice.pt"
    malice: Any = Malice(victim)
    path.write_bytes(
        trained(changed, x=malice) if where == "init" else trained({**changed, "x": malice})
    )
    before, lanes = own.files(), own.lanes()
    assert error_of(own.register("mine", "malice.pt")) == (422, "invalid_weights", "url")
    assert not victim.exists()
    assert (own.files(), own.lanes()) == (before, lanes)
    path.unlink()


def test_samapis_own_address_cannot_be_registered(own: Own) -> None:
    assert error_of(own.register("mine", MOBILE_SAM)) == (409, "conflict", "url")
    answer = own.server.http.post(
        f"{own.options.url}/sam/weights/",
        json={"type": "vit_l", "name": "mine", "url": "mine.pt"},
        headers=ADMIN,
    )
    assert error_of(answer) == (404, "not_found", "type")


# Starts that are wrong


@pytest.mark.parametrize(
    ("variable", "value"), [("SAMSERVE_DEFAULTS", "sam"), ("SAMSERVE_STAND_IN", "vit_l")]
)
def test_a_wrong_setting_stops_the_start_by_name(
    own: Own, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    options = free_ports(Options(model_store=own.folder / "store"))
    try:
        with pytest.raises(ServerError, match=f"{variable} is "), running(options):
            raise AssertionError("it started")
    finally:
        shutil.rmtree(options.run_dir, ignore_errors=True)
    assert psutil.pid_exists(own.processes["gateway"].pid)
