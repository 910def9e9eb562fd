"""Weights come from allowed places only, complete and of their type, or an error says why not."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import requests
import torch

from samserve.archives.register import Registration, check_weights, fetch_weights
from samserve.errors import (
    InvalidField,
    InvalidWeights,
    TooLarge,
    Unreachable,
)
from samserve_gateway.settings import Settings
from tests.support.addresses import CONTENT, Address, serving
from tests.support.checkpoints import Malice
from tests.support.fetching import downloaded, fetched, parts_of, refusal_of
from tests.support.paths import ROOT


@pytest.mark.parametrize(
    "url", ["mine.pt", "./mine.pt", "file://{}/mine.pt", "file:mine.pt", "link.pt", "a%20b.pt"]
)
def test_files_within_the_weights_folder(registration: Registration, url: str) -> None:
    folder = Path(registration.weights_dir)
    (folder / "link.pt").symlink_to("mine.pt")
    (folder / "a%20b.pt").write_bytes(CONTENT)
    variant = replace(registration, url=url.format(folder))
    assert fetched(variant) == ("weights folder", CONTENT)


@pytest.mark.parametrize(
    "url",
    [
        *("../outside.pt", "{}/outside.pt", "file://{}/outside.pt", "out.pt", "out/outside.pt"),
        *("nothing.pt", "folder", "fifo", "loop", "nul\0.pt", "x" * 300, "."),
        *("file://elsewhere{}/weights/mine.pt", "ftp://127.0.0.1/mine.pt", "data:,x", "http://[x"),
    ],
)
def test_no_other_files(registration: Registration, tmp_path: Path, url: str) -> None:
    folder = Path(registration.weights_dir)
    (folder / "out.pt").symlink_to(tmp_path / "outside.pt")
    (folder / "out").symlink_to(tmp_path)
    (folder / "loop").symlink_to("loop")
    (folder / "folder").mkdir()
    os.mkfifo(folder / "fifo")
    assert type(refusal_of(replace(registration, url=url.format(tmp_path)))) is InvalidField


def test_a_file_over_the_limit(registration: Registration) -> None:
    refused = refusal_of(replace(registration, max_bytes=len(CONTENT) - 1))
    assert isinstance(refused, TooLarge)


def test_a_download(registration: Registration, address: Address) -> None:
    variant = downloaded(registration, address)
    percents: list[int] = []
    fetch_weights(
        variant, Path(variant.incoming, "target"), lambda message, percent: percents.append(percent)
    )
    assert Path(variant.incoming, "target").read_bytes() == CONTENT
    assert percents == sorted(percents)
    assert (percents[0], percents[-1]) == (0, 100)


def test_it_goes_on_where_it_broke_off(registration: Registration, address: Address) -> None:
    variant = downloaded(registration, address)
    address.n_sent_before_hanging_up = 500_000
    refused = refusal_of(variant)
    assert isinstance(refused, Unreachable)
    assert "500000 bytes are kept" in refused.message
    address.n_sent_before_hanging_up = None
    assert fetched(variant) == ("downloaded", CONTENT)
    assert address.asked == [None, "bytes=500000-"]


@pytest.mark.parametrize("etag", ['"second"', None], ids=["another version", "none told"])
def test_two_versions_are_never_put_together(
    registration: Registration, address: Address, etag: str | None
) -> None:
    variant = downloaded(registration, address)
    address.n_sent_before_hanging_up = 500_000
    refusal_of(variant)
    address.n_sent_before_hanging_up = None
    address.etag, address.content = etag, CONTENT[::-1]
    assert fetched(variant) == ("downloaded", CONTENT[::-1])


def test_without_a_version_it_starts_anew(registration: Registration, address: Address) -> None:
    variant = downloaded(registration, address)
    address.etag, address.n_sent_before_hanging_up = None, 500_000
    assert "kept" not in refusal_of(variant).message
    address.n_sent_before_hanging_up = None
    fetched(variant)
    assert address.asked == [None, None]


def test_the_beginning_of_one_file_is_kept(registration: Registration, address: Address) -> None:
    address.n_sent_before_hanging_up = 1000
    refusal_of(downloaded(registration, address))
    first = parts_of(registration)
    refusal_of(downloaded(registration, address, address.url + "?other"))
    assert len(parts_of(registration)) == len(first) == 2
    assert not set(parts_of(registration)) & set(first)


@pytest.mark.parametrize("tells_length", [True, False])
def test_a_download_over_the_limit(
    registration: Registration, address: Address, tells_length: bool
) -> None:
    address.tells_length = tells_length
    variant = downloaded(replace(registration, max_bytes=len(CONTENT) - 1), address)
    assert isinstance(refusal_of(variant), TooLarge)
    assert [Path(name).suffix for name in parts_of(variant)] == [".etag"]


def test_redirects_are_followed_within_what_is_allowed(
    registration: Registration, address: Address
) -> None:
    variant = downloaded(registration, address, address.url.replace("/file", "/moved"))
    assert fetched(variant) == ("downloaded", CONTENT)
    Path(variant.incoming, "target").unlink()
    with serving() as elsewhere:
        address.moved_to = elsewhere.url
        refused = refusal_of(variant)
        assert type(refused) is InvalidField
        assert elsewhere.url.removesuffix("/file") in refused.message
        assert elsewhere.asked == []


@pytest.mark.parametrize(
    "target",
    ["http://[x", "http://127.0.0.1:port/", "//elsewhere.invalid\\@127.0.0.1/", "ftp://x/"],
)
def test_redirects_to_what_is_no_address(
    registration: Registration, address: Address, target: str
) -> None:
    address.moved_to = target
    refusal_of(downloaded(registration, address, address.url.replace("/file", "/moved")))
    assert len(address.asked) == 1


def test_no_credentials_of_the_environment_are_sent(
    registration: Registration, address: Address, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login somebody password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    fetched(downloaded(registration, address))
    assert [headers["Authorization"] for headers in address.headers] == [None]
    assert requests.utils.get_netrc_auth(address.url) == ("somebody", "secret"), "nothing to send"


def test_redirects_without_end(registration: Registration, address: Address) -> None:
    address.moved_to = "/moved"
    variant = downloaded(registration, address, address.url.replace("/file", "/moved"))
    assert isinstance(refusal_of(variant), Unreachable)


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://127.0.0.1:{port}/file", "http://127.0.0.1:{port}"),
        ("http://127.0.0.1:{port}/file", "https://127.0.0.1:{port}"),
        ("http://127.0.0.1:{port}/file", "http://127.0.0.1"),
        ("http://127.0.0.1:{port}/file", "http://localhost:{port}"),
        ("http://user@127.0.0.1:{port}/file", "http://127.0.0.1:{port}"),
        ("http://127.0.0.1:{port}@elsewhere.invalid/file", "http://127.0.0.1:{port}"),
        ("http://elsewhere.invalid\\@127.0.0.1:{port}/", "http://127.0.0.1:{port}"),
        ("http://127.0.0.1:{port}\\@elsewhere.invalid/", "http://127.0.0.1:{port}"),
        ("http://elsewhere.invalid#@127.0.0.1:{port}/", "http://127.0.0.1:{port}"),
        ("http://127%2e0.0.1:{port}/file", "http://127.0.0.1:{port}"),
        ("http://@127.0.0.1:{port}/file", "http://127.0.0.1:{port}"),
        ("http://127.0.0.1:{port}/\n/file", "http://127.0.0.1:{port}"),
        ("http://127.0.0.1:\t{port}/file", "http://127.0.0.1:{port}"),
        ("http://127.0.0.1:{port}0/file", "http://127.0.0.1:{port}"),
    ],
)
def test_only_listed_origins(
    registration: Registration, address: Address, url: str, origin: str
) -> None:
    port = address.url.rsplit(":")[-1].removesuffix("/file")
    variant = replace(registration, url=url.format(port=port), origins=[origin.format(port=port)])
    assert type(refusal_of(variant)) is InvalidField
    assert address.asked == []


@pytest.mark.parametrize(
    "url",
    [
        "https://zenodo.org/records/10524894/files/vit_b_nuclei.pth?download=1",
        "https://owncloud.gwdg.de/index.php/s/abc/download",
        "https://uk1s3.embassy.ebi.ac.uk/public-datasets/some-model/1.1/files/vit_t.pt",
        "https://github.com/somebody/weights/releases/download/v1/vit_t.pt",
        "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_b_01ec64.pth",
    ],
)
def test_what_is_allowed_without_being_told(
    registration: Registration, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    """The proxy refuses connections, so that an allowed address is tried but not reached."""
    origins = Settings().weights_origins.split()
    with socket.socket() as bound_but_not_listening:
        bound_but_not_listening.bind(("127.0.0.1", 0))
        proxy = f"http://127.0.0.1:{bound_but_not_listening.getsockname()[1]}"
        for name in ("HTTPS_PROXY", "https_proxy"):
            monkeypatch.setenv(name, proxy)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        refused = refusal_of(replace(registration, url=url, origins=origins))
    assert isinstance(refused, Unreachable)
    for other in (
        url.replace("https:", "http:"),
        url.replace("https://", "https://x."),
        url.replace("https://", "https://x@"),
        re.sub(r"(https://[^/]+)", r"\1:8443", url),
        re.sub(r"(https://[^/]+)", r"\1.evil.example", url),
    ):
        refused = refusal_of(replace(registration, url=other, origins=origins))
        assert type(refused) is InvalidField, other


def test_a_redirect_to_a_host_that_is_not_allowed_names_the_setting(
    registration: Registration, address: Address
) -> None:
    address.moved_to = "https://files.zenodo.example/vit_t.pt"
    variant = downloaded(registration, address, address.url.replace("/file", "/moved"))
    refused = refusal_of(replace(variant, origins=[*variant.origins, "https://zenodo.org"]))
    assert "files.zenodo.example" in refused.message
    assert "SAMSERVE_WEIGHTS_ORIGINS" in refused.message


def test_nobody_there(registration: Registration, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as bound_but_not_listening:
        bound_but_not_listening.bind(("127.0.0.1", 0))
        origin = f"http://127.0.0.1:{bound_but_not_listening.getsockname()[1]}"
        refused = refusal_of(replace(registration, url=f"{origin}/file", origins=[origin]))
    assert isinstance(refused, Unreachable)


def test_a_file_that_unpacks_to_more_than_it_has(registration: Registration) -> None:
    bomb = Path(registration.weights_dir, "bomb.pt")
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.pkl", bytes(len(CONTENT) + 1))
    assert bomb.stat().st_size < 10_000
    with pytest.raises(TooLarge, match="unpacks"):
        check_weights(registration, bomb)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"image_encoder.pos_embed": torch.zeros(1, 64, 64, 768)}, "not a vit_t checkpoint"),
        ([1, 2], "not named tensors"),
    ],
    ids=["another type's", "a list"],
)
def test_other_checkpoints(registration: Registration, content: object, message: str) -> None:
    path = Path(registration.weights_dir, "other.pt")
    torch.save(content, path)
    variant = replace(registration, max_bytes=2**30, url="http://x/other.pt")
    with pytest.raises(InvalidWeights, match=message) as refused:
        check_weights(variant, path)
    assert refused.value.message.startswith("http://x/other.pt")
    assert str(path) not in refused.value.message


KINDS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "sparse": lambda t: t.to_sparse(),
    "sparse rows": lambda t: t.to_sparse_csr(),
    "quantized": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    "complex": lambda t: t.to(torch.complex64),
    "meta": lambda t: t.to("meta"),
    "bool": lambda t: t.bool(),
    "int64": lambda t: t.long(),
    "NaN": lambda t: torch.full_like(t, float("nan")),
    "infinity": lambda t: t.index_fill(0, torch.tensor([0]), float("inf")),
}


@pytest.mark.weights
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore::UserWarning")  # PyTorch's sparse tensors are in beta
def test_tensors_that_are_no_plain_numbers(registration: Registration, kind: str) -> None:
    tensors = torch.load(ROOT / "weights" / "vit_t.pt", weights_only=True)
    key = next(name for name, tensor in tensors.items() if tensor.dim() == 2)
    tensors[key] = KINDS[kind](tensors[key])
    path = Path(registration.weights_dir, "odd.pt")
    torch.save({"model_state": {f"sam.{name}": tensor for name, tensor in tensors.items()}}, path)
    with pytest.raises(InvalidWeights, match=re.escape(key)):
        check_weights(replace(registration, max_bytes=2**30), path)


@pytest.mark.weights
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_of_any_precision(registration: Registration, dtype: torch.dtype) -> None:
    tensors = torch.load(ROOT / "weights" / "vit_t.pt", weights_only=True)
    path = Path(registration.weights_dir, "other.pt")
    torch.save({k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}, path)
    check_weights(replace(registration, max_bytes=2**30), path)


@pytest.mark.slow
def test_the_job_tells_of_malice_and_does_not_run_it(
    registration: Registration, tmp_path: Path
) -> None:
    victim = tmp_path / "it ran"
    path = Path(registration.weights_dir, "malice.pt")
    torch.save({"weight": Malice(victim)}, path)
    done = subprocess.run(
        [sys.executable, "-m", "samserve.archives.register"],
        input=json.dumps(asdict(replace(registration, url="malice.pt"))),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    *steps, last = [json.loads(line) for line in done.stdout.splitlines()]
    assert [set(step) for step in steps] == [{"message", "percent"}]
    assert last["error"]["code"] == "invalid_weights"
    assert "could run code" in last["error"]["message"]
    assert not victim.exists()
    torch.load(path, weights_only=False)
    assert victim.exists(), "the file was harmless, so the test proved nothing"
