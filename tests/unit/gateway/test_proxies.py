"""Whom a gateway process believes about a client's address, and what it says at its start."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from samserve_gateway.keys import Key, add, digest_of
from tests.support.http import ask
from tests.support.paths import ROOT
from tests.support.redis import free_port
from tests.support.waiting import wait_for


@contextmanager
def process(log: Path, **variables: str) -> Iterator[int]:
    """Run a gateway process without a TorchServe, and yield its port."""
    port = free_port()
    environ = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{ROOT / 'handlers'}",
        "SAMSERVE_PORT": str(port),
        "SAMSERVE_TORCHSERVE_TOKENS": "off",
        **{f"SAMSERVE_{name}": value for name, value in variables.items()},
    }
    with log.open("wb") as output:
        gateway = subprocess.Popen(
            [sys.executable, "-m", "samserve_gateway"], env=environ, stdout=output, stderr=output
        )
    try:
        wait_for(lambda: gateway.poll() is not None or _answers(port))
        assert gateway.poll() is None, log.read_text()
        yield port
    finally:
        gateway.kill()
        gateway.wait()


def _answers(port: int) -> bool:
    try:
        return ask(port, "GET", "/healthz").status == 200
    except OSError:
        return False


def ask_from(port: int, address: str) -> int:
    return ask(port, "GET", "/sam/version/", None, {"X-Forwarded-For": address}).status


@pytest.mark.parametrize("trusted", ["", "192.0.2.0/24", "127.0.0.1", "127.0.0.0/8"])
def test_a_forwarded_address_is_believed_only_of_a_trusted_proxy(
    trusted: str, tmp_path: Path
) -> None:
    variables = {"HOST": "0.0.0.0", "OPEN": "1", "REQUESTS_A_MINUTE": "3"}
    with process(tmp_path / "log", TRUSTED_PROXIES=trusted, **variables) as port:
        statuses = [ask_from(port, f"198.51.100.{number}") for number in range(6)]
        of_one_network = [ask_from(port, f"2001:db8::{number}") for number in range(6)]
    if trusted.startswith("127"):
        assert statuses == [200] * 6
        assert of_one_network == [200] * 3 + [429] * 3
    else:
        assert statuses == [200] * 3 + [429] * 3


def test_the_start_says_who_may_use_it(tmp_path: Path) -> None:
    add(tmp_path / "keys", Key("alice", digest_of(b"alice")))
    log = tmp_path / "log"
    for variables, said in (
        ({}, "only this machine reaches it"),
        ({"HOST": "0.0.0.0", "OPEN": "1"}, "everybody who reaches it may use it"),
        ({"HOST": "0.0.0.0", "API_KEYS_FILE": str(tmp_path / "keys")}, "needs an API key"),
    ):
        with process(log, **variables):
            assert said in log.read_text()


def test_no_start_without_keys(tmp_path: Path) -> None:
    environ = {"PYTHONPATH": f"{ROOT}:{ROOT / 'handlers'}", "SAMSERVE_HOST": "0.0.0.0"}
    command = [sys.executable, "-m", "samserve_gateway"]
    for name, value, said in (
        ("SAMSERVE_LOG_LEVEL", "info", "samserve keys new NAME"),
        ("SAMSERVE_API_KEYS_FILE", str(tmp_path / "keys"), "cannot be read"),
    ):
        done = subprocess.run(
            command, env={**environ, name: value}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        [line] = done.stderr.splitlines()
        assert line.startswith("samserve gateway: ")
        assert said in line
