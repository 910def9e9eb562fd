"""A registration ends if it is too slow, or if there is no room; long names are cut."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from samserve.archives import register
from samserve.archives.register import Registration
from samserve.errors import NoRoom, Unreachable
from samserve.weights.download import Pace
from tests.support.addresses import CONTENT, Address
from tests.support.fetching import downloaded, fetched, refusal_of


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"download_s": 0.3}, "took longer than 0.3 s"),
        ({"min_rate": 1e6}, r"sent \d+ bytes a second for 0 s; the least is 1000000"),
    ],
)
def test_a_slow_download_ends(
    registration: Registration,
    address: Address,
    monkeypatch: pytest.MonkeyPatch,
    bounds: dict[str, Any],
    message: str,
) -> None:
    """A host that sends 20 kB a second is slow here. What it has sent is kept."""
    monkeypatch.setattr(register, "Pace", lambda total, rate: Pace(total, rate, over_s=0.2))
    address.n_sent_before_waiting = 1000
    refused = refusal_of(replace(downloaded(registration, address), **bounds))
    assert isinstance(refused, Unreachable)
    assert re.search(message, refused.message)
    assert re.search(r"\d+ bytes are kept to resume", refused.message)


def test_a_download_that_is_fast_enough_is_not_ended(
    registration: Registration, address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(register, "Pace", lambda total, rate: Pace(total, rate, over_s=0.1))
    address.n_sent_before_waiting = 1000
    threading.Timer(0.5, address.go_on.set).start()
    assert fetched(replace(downloaded(registration, address), min_rate=1.0))[0] == "downloaded"


def test_an_address_that_never_begins_to_send(
    registration: Registration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sends its headers one byte at a time, which no timeout between two bytes ends."""
    monkeypatch.setattr(register, "FIRST_BYTE_S", 0.5)
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def drip() -> None:
            connection, _ = listening.accept()
            with connection, contextlib.suppress(OSError):
                connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
                while not done.wait(0.05):
                    connection.sendall(b"x")

        thread = threading.Thread(target=drip)
        thread.start()
        origin = f"http://127.0.0.1:{listening.getsockname()[1]}"
        refused = refusal_of(replace(registration, url=f"{origin}/file", origins=[origin]))
        done.set()
        thread.join()
    assert isinstance(refused, Unreachable)
    assert "did not begin to send the file within 0.5 s" in refused.message


def test_a_file_for_which_the_disk_has_no_room(
    registration: Registration, address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_bytes = len(CONTENT)
    monkeypatch.setattr(register, "_free_bytes", lambda folder: 4 * n_bytes - 1)
    for variant in (registration, downloaded(registration, address)):
        refused = refusal_of(variant)
        assert isinstance(refused, NoRoom)
        assert f"has {n_bytes} bytes" in refused.message
        assert f"{4 * n_bytes - 1} are free" in refused.message
    monkeypatch.setattr(register, "_free_bytes", lambda folder: 4 * n_bytes)
    assert fetched(registration)[1] == CONTENT


@pytest.mark.parametrize("where", ["weights", "store"])
def test_a_disk_that_becomes_full(registration: Registration, tmp_path: Path, where: str) -> None:
    """The real process says so, whichever of its steps meets the end of the disk."""
    weights, disk = tmp_path / "weights" / "vit_t.pt", tmp_path / "disk"
    torch.save({"x": torch.zeros(2**18)}, weights)
    disk.mkdir()
    mount = 'mount -t tmpfs -o size=2m,mode=700 none "$0" && exec "$@"'
    prefix = ["unshare", "--mount", "--map-root-user", "sh", "-c", mount, str(disk)]
    try:
        subprocess.run([*prefix, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as exc:
        pytest.skip(f"no small disk can be mounted: {exc}")
    fill = "import os, sys; from samserve.archives import register as r; from pathlib import Path\n"
    fill += "def full(*_):\n    Path(sys.argv[2], 'filler').write_bytes(bytes(2**22))\n"
    if where == "weights":
        fill += "r.check_room = full\n"
    else:
        fill += "r.check_weights = lambda *_: None\nr.build_if_stale = full\n"
    fill += "r.main()"
    job = replace(registration, url="vit_t.pt", max_bytes=2**30, model_store=str(disk))
    (Path(job.weights_dir) / "registered").mkdir()
    done = subprocess.run(
        [*prefix, sys.executable, "-c", fill, str(os.getpid()), str(disk)],
        input=json.dumps(asdict(job)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    error = json.loads(done.stdout.splitlines()[-1])["error"]
    assert error["code"] == "insufficient_storage"
    assert error["message"] == "The disk is full. Nothing of the registration is kept."


@pytest.mark.parametrize("scheme", ["http", "file", ""])
def test_a_long_address_is_not_repeated_whole(registration: Registration, scheme: str) -> None:
    prefix = {"http": "http://x/", "file": "file:///", "": ""}[scheme]
    refused = refusal_of(replace(registration, url=prefix + "y" * 1900))
    assert len(refused.message) < 400
