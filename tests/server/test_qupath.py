"""QuPath with its default choices, and scripts written for samapi, on a real server.

The server has a stand-in, samapi's defaults, and an administrator who registers checkpoints in
the layouts that micro-sam writes.
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

from samserve_launcher.errors import ServerError
from samserve_launcher.options import Options, free_ports
from samserve_launcher.server import running
from tests.support.addresses import serving
from tests.support.answers import error_of
from tests.support.bodies import BOX
from tests.support.changed_weights import changed_weights, reference_mask
from tests.support.checkpoints import (
    Malice,
    decoder_state,
    foreign,
    prefixed,
    training_checkpoint,
)
from tests.support.geometry import rasterise, same_mask
from tests.support.lanes import mapped_weights, pids_of
from tests.support.paths import ROOT
from tests.support.sample_pictures import base64_png, new_picture, picture
from tests.support.servers import ADMIN, TOKEN, RestartableServer

OFFERED = ["vit_h", "vit_l", "vit_b", "vit_t", "sam2_l", "sam2_bp", "sam2_s", "sam2_t", "sam3"]
META = "https://dl.fbaipublicfiles.com/segment_anything"
MOBILE_SAM = "https://github.com/ChaoningZhang/MobileSAM/raw/master/weights/mobile_sam.pt"
SEGMENT_ANYTHINGS = {"output_type": "Multi-mask (best quality)", "include_image_edge": True}
SAMAPIS = {"output_type": "Single Mask", "include_image_edge": False}


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RestartableServer]:
    with pytest.MonkeyPatch.context() as environ, serving() as address:
        environ.setenv("SAMSERVE_STAND_IN", "vit_t")
        environ.setenv("SAMSERVE_DEFAULTS", "samapi")
        environ.setenv("SAMSERVE_ADMIN_TOKEN", TOKEN)
        instance = RestartableServer(tmp_path_factory.mktemp("own"), address)
        yield instance
        instance.stop()
        shutil.rmtree(instance.options.run_dir)


def weights_of(instance: RestartableServer, model_type: str) -> list[dict[str, str]]:
    listed: list[dict[str, str]] = instance.get(f"/sam/weights/?type={model_type}").json()
    return listed


def outlines(answer: Any) -> list[Any]:
    """Return the geometries of an answer whose features all say that vit_t made them."""
    assert answer.status_code == 200, answer.text
    features = answer.json()
    assert {feature["properties"]["sam_model"] for feature in features} == {"vit_t"}
    return [feature["geometry"] for feature in features]


# The stand-in


@pytest.mark.parametrize("model_type", OFFERED)
def test_the_first_click(instance: RestartableServer, model_type: str) -> None:
    """The extension takes the first entry of the list, and sends its URL with every prompt."""
    chosen = weights_of(instance, model_type)[0]
    assert chosen["type"] == model_type
    assert chosen["name"] == (
        "default" if model_type == "vit_t" else f"vit_t in place of {model_type}"
    )
    view = base64_png(picture("coins"))
    body = {"type": model_type, "bbox": BOX, "b64img": view, "checkpoint_url": chosen["url"]}
    request = {"type": "vit_t", "bbox": BOX, "b64img": view}
    assert outlines(instance.server.post("/sam/", body)) == outlines(
        instance.server.post("/sam/", request)
    )


def test_only_what_is_loaded_is_listed_without_a_type(instance: RestartableServer) -> None:
    assert {entry["type"] for entry in instance.get("/sam/weights/").json()} == {"vit_t"}
    assert weights_of(instance, "vit_x") == []


def test_every_way_of_asking_is_answered(instance: RestartableServer) -> None:
    for fields in ({"type": "vit_l"}, {}, {"type": "vit_b", "checkpoint_url": None}):
        image = new_picture()
        prompt = {**fields, "b64img": image, "bbox": BOX}
        automask = {**fields, "b64img": image, "points_per_side": 3}
        prompt_outlines = outlines(instance.server.post("/sam/", {**prompt, "type": "vit_t"}))
        object_outlines = outlines(
            instance.server.post("/sam/automask/", {**automask, "type": "vit_t"})
        )
        for _ in range(2):  # first in full, then as a known picture
            assert outlines(instance.server.post("/sam/", prompt)) == prompt_outlines
            assert outlines(instance.server.post("/sam/automask/", automask)) == object_outlines
        streamed = instance.server.post("/sam/automask/?stream=1", automask)
        events = [json.loads(line) for line in streamed.text.splitlines()]
        features = [event for event in events if event["event"] == "feature"]
        assert [feature["geometry"] for feature in features] == object_outlines
        assert events[-1]["event"] == "done"
    form = instance.server.http.post(
        f"{instance.options.url}/sam/",
        files={"image": (ROOT / "docs" / "coins.png").read_bytes()},
        data={"type": "vit_h", "bbox": json.dumps(BOX)},
    )
    assert len(outlines(form)) == 1


def test_the_addresses_of_a_recorded_workflow(instance: RestartableServer) -> None:
    body = {"b64img": new_picture(), "bbox": BOX}
    mask = outlines(instance.server.post("/sam/", {**body, "type": "vit_t"}))
    for model_type, url in (
        ("vit_t", MOBILE_SAM),
        ("vit_t", MOBILE_SAM.replace("/raw/", "/blob/")),
        ("vit_b", f"{META}/sam_vit_b_01ec64.pth"),
        ("vit_l", f"{META}/sam_vit_l_0b3195.pth"),
        ("vit_h", f"{META}/sam_vit_h_4b8939.pth"),
        ("sam2_t", f"{META}_2/092824/sam2.1_hiera_tiny.pt"),
        # QuPath may have listed the weights before the server got a stand-in.
        ("vit_l", "not-loaded:vit_l"),
    ):
        request = {**body, "type": model_type, "checkpoint_url": url}
        assert outlines(instance.server.post("/sam/", request)) == mask
    for model_type, url in (
        ("vit_t", f"{META}/sam_vit_b_01ec64.pth"),
        ("vit_l", f"{META}/sam_vit_b_01ec64.pth"),
        # SAM 2.0, samapi's default: other weights than SAM 2.1, which can be registered.
        ("sam2_t", f"{META}_2/072824/sam2_hiera_tiny.pt"),
        ("vit_l", "https://example.org/mine.pt"),
        ("vit_l", "not-loaded:vit_b"),
    ):
        request = {**body, "type": model_type, "checkpoint_url": url}
        for path in ("/sam/", "/sam/automask/"):
            refused = instance.server.post(path, request)
            assert error_of(refused) == (404, "not_found", "checkpoint_url")


def test_the_workers_own_door_knows_the_addresses_but_no_stand_in(
    instance: RestartableServer,
) -> None:
    body = {"b64img": new_picture(), "bbox": BOX}
    known = instance.server.predict(
        "vit_t", {**body, "type": "vit_t", "checkpoint_url": MOBILE_SAM}
    )
    assert len(outlines(known)) == 1
    for fields in (
        {"type": "vit_l"},
        {"type": "vit_t", "checkpoint_url": f"{META}/sam_vit_b_01ec64.pth"},
    ):
        assert instance.server.predict("vit_t", {**body, **fields}).status_code == 404


# samapi's defaults


@pytest.mark.parametrize("model_type", ["vit_t", "vit_h"])
def test_automask_does_what_samapi_does(instance: RestartableServer, model_type: str) -> None:
    body = {"type": model_type, "b64img": new_picture(), "points_per_side": 4}
    answered = {
        name: outlines(instance.server.post("/sam/automask/", {**body, **fields}))
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
        direct = instance.server.predict("vit_t-automask", body)
        assert outlines(direct) == answered["absent"]


# micro-sam's checkpoints


@pytest.fixture(scope="module")
def changed() -> dict[str, torch.Tensor]:
    return changed_weights()


@pytest.fixture(scope="module")
def expected(changed: dict[str, torch.Tensor]) -> Any:
    return reference_mask(changed)


def trained(tensors: dict[str, torch.Tensor], **more: Any) -> bytes:
    """Return a training checkpoint with pickled objects of classes that the server lacks."""
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
    instance: RestartableServer, changed: dict[str, torch.Tensor], expected: Any, layout: Any
) -> None:
    name, lanes = layout.__name__, instance.lanes()
    (instance.folder / "weights" / f"{name}.pt").write_bytes(layout(changed))
    answer = instance.register(name, f"{name}.pt")
    assert answer.status_code == 200, answer.text
    for model_type in ("vit_t", "vit_l"):
        body = {"type": model_type, "bbox": BOX, "b64img": base64_png(picture("coins"))}
        [mask] = outlines(instance.server.post("/sam/", {**body, "checkpoint_url": name}))
        assert same_mask(rasterise(mask, *expected.shape), expected)
        [other] = outlines(instance.server.post("/sam/", body))
        assert other != mask
    names = [entry["name"] for entry in weights_of(instance, "vit_l")]
    assert names[0] == "vit_t in place of vit_l"
    assert f"vit_t {name} in place of vit_l" in names
    log = (instance.options.run_dir / "logs" / "gateway-console.log").read_text()
    assert log.count(f"vit_t.{name}.pt: left out a decoder for AIS") == 1
    # The workers of both lanes map one file, which holds only the network's tensors.
    served = instance.options.models_dir / f"vit_t.{name}" / "vit_t.pt"
    assert torch.load(served, weights_only=True, mmap=True).keys() == changed.keys()
    workers = [pid for lane in instance.lanes() - lanes for pid in pids_of(instance.server, lane)]
    assert len(workers) == 2
    assert len({mapped_weights(pid, f"vit_t.{name}/vit_t.pt") for pid in workers}) == 1


@pytest.mark.parametrize("where", ["init", "model_state"])
def test_malice_within_a_training_checkpoint(
    instance: RestartableServer, changed: dict[str, torch.Tensor], tmp_path: Path, where: str
) -> None:
    victim, path = tmp_path / "it ran", instance.folder / "weights" / "malice.pt"
    malice: Any = Malice(victim)
    path.write_bytes(
        trained(changed, x=malice) if where == "init" else trained({**changed, "x": malice})
    )
    before, lanes = instance.files(), instance.lanes()
    assert error_of(instance.register("mine", "malice.pt")) == (422, "invalid_weights", "url")
    assert not victim.exists()
    assert (instance.files(), instance.lanes()) == (before, lanes)
    path.unlink()


def test_samapis_own_address_cannot_be_registered(instance: RestartableServer) -> None:
    assert error_of(instance.register("mine", MOBILE_SAM)) == (409, "conflict", "url")
    answer = instance.server.http.post(
        f"{instance.options.url}/sam/weights/",
        json={"type": "vit_l", "name": "mine", "url": "mine.pt"},
        headers=ADMIN,
    )
    assert error_of(answer) == (404, "not_found", "type")


# Starts that are wrong


@pytest.mark.parametrize(
    ("variable", "value"), [("SAMSERVE_DEFAULTS", "sam"), ("SAMSERVE_STAND_IN", "vit_l")]
)
def test_a_wrong_setting_stops_the_start_by_name(
    instance: RestartableServer, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    options = free_ports(Options(model_store=instance.folder / "store"))
    try:
        with pytest.raises(ServerError, match=f"{variable}(:| is) "), running(options):
            raise AssertionError("it started")
    finally:
        shutil.rmtree(options.run_dir, ignore_errors=True)
    assert psutil.pid_exists(instance.processes["gateway"].pid)
