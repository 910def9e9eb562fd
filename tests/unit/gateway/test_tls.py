"""HTTPS with certificate files that may change while the gateway runs."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn

from samserve_gateway import tls
from samserve_gateway.__main__ import Server
from samserve_gateway.listening import OpenSockets, listeners
from samserve_gateway.protocol import Protocol
from samserve_gateway.tls import Certificate, CertificateError
from samserve_launcher.loopback import LoopbackSession
from tests.support.http import lone_gateway
from tests.support.paths import ROOT
from tests.support.waiting import wait_for

pytestmark = pytest.mark.needs("openssl")


def write_certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """Write a self-signed certificate for a host of this name, and its key."""
    folder.mkdir(exist_ok=True)
    certificate, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", f"/CN={name}", "-keyout", str(key)]
    subprocess.run([*command, "-out", str(certificate)], check=True, capture_output=True)
    return certificate, key


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return write_certificate(tmp_path / "first", "first.example")


@contextmanager
def serving(
    certificate: Certificate,
    files: tuple[Path, Path],
    counts: OpenSockets | None = None,
    **limits: int,
) -> Iterator[int]:
    """Run a gateway with this certificate and these settings, and yield its port."""
    if counts is None:
        counts = OpenSockets(1000, 200, tls=True)
    app = lone_gateway(counts, tls_certificate=files[0], tls_key=files[1], **limits)
    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        log_config=None,
        ssl_context_factory=lambda *_: certificate.context,
    )
    server = Server(config, certificate, counts)
    sockets = listeners("127.0.0.1", 0, counts)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets)))
    thread.start()
    wait_for(lambda: server.started)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


def served_certificate(port: int) -> bytes:
    return ssl.get_server_certificate(("127.0.0.1", port)).encode()


def test_https_and_its_header(files: tuple[Path, Path]) -> None:
    with serving(Certificate(*files), files) as port:
        with LoopbackSession(30, certificate=files[0]) as http:
            got = http.get(f"https://127.0.0.1:{port}/healthz")
            assert got.json() == {"status": "alive"}
            assert "max-age" in got.headers["Strict-Transport-Security"]
            large = http.post(f"https://127.0.0.1:{port}/sam/", data=b"[" * 2**22)
            assert large.status_code == 413
        with socket.create_connection(("127.0.0.1", port), timeout=30) as plain:
            plain.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"HTTP" not in plain.recv(100)


def test_another_certificate_is_not_trusted(files: tuple[Path, Path], tmp_path: Path) -> None:
    other, _ = write_certificate(tmp_path / "other", "first.example")
    with (
        serving(Certificate(*files), files) as port,
        LoopbackSession(30, certificate=other) as http,
        pytest.raises(OSError, match="certificate verify failed"),
    ):
        http.get(f"https://127.0.0.1:{port}/healthz")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
def test_old_versions_are_refused(files: tuple[Path, Path], version: ssl.TLSVersion) -> None:
    assert Certificate(*files).context.minimum_version > version


def test_new_files_are_used_without_a_restart(
    files: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(tls, "CHECK_INTERVAL_S", 0.02)
    new = write_certificate(tmp_path / "second", "second.example")
    with serving(Certificate(*files), files) as port:
        first = served_certificate(port)
        assert first == files[0].read_bytes()
        with caplog.at_level(logging.WARNING):
            files[0].write_text("no certificate")
            wait_for(lambda: "stays in use" in caplog.text)
            assert served_certificate(port) == first
            shutil.copy(new[0], files[0])  # its key is still the old one
            time.sleep(0.1)
            assert served_certificate(port) == first
            files[1].unlink()
            time.sleep(0.1)
            assert served_certificate(port) == first
            shutil.copy(new[1], files[1])
            wait_for(lambda: served_certificate(port) == new[0].read_bytes())
        assert "loaded anew" in caplog.text


@pytest.mark.parametrize("wrong", ["no PEM", "absent", "exchanged", "another key", "passphrase"])
def test_files_that_cannot_be_used(files: tuple[Path, Path], tmp_path: Path, wrong: str) -> None:
    certificate, key = files
    if wrong == "no PEM":
        certificate.write_bytes(os.urandom(1000))
    elif wrong == "absent":
        key.unlink()
    elif wrong == "exchanged":
        certificate, key = key, certificate
    elif wrong == "another key":
        key = write_certificate(tmp_path / "other", "other.example")[1]
    else:
        command = ["openssl", "ec", "-in", str(key), "-aes256", "-passout", "pass:secret"]
        subprocess.run([*command, "-out", str(key)], check=True, capture_output=True)
    with pytest.raises(CertificateError, match=r"\.pem"):
        Certificate(certificate, key)
    done = subprocess.run(
        [sys.executable, "-m", "samserve_gateway"],
        env={
            **os.environ,
            "SAMSERVE_TLS_CERTIFICATE": str(certificate),
            "SAMSERVE_TLS_KEY": str(key),
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert "SAMSERVE_TLS_CERTIFICATE" in line
