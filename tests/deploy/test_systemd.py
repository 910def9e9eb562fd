"""The systemd units: systemd understands them, and they start what the README installs."""

from __future__ import annotations

import subprocess
import sys
from configparser import RawConfigParser
from pathlib import Path

import pytest

from samserve_launcher import worker
from samserve_launcher.options import parse_options
from samserve_launcher.processes import STOP_TIMEOUT_S
from tests.support.paths import ROOT

UNITS = sorted((ROOT / "deploy/systemd").glob("*.service"))
README = (ROOT / "deploy/README.md").read_text()

units = pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)


def service(unit: Path) -> dict[str, str]:
    """Return the unit's section [Service]; of a key that occurs twice, the last value."""
    parser = RawConfigParser(strict=False, delimiters="=")
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(unit)
    return dict(parser["Service"])


def named(name: str) -> dict[str, str]:
    [unit] = [unit for unit in UNITS if unit.stem == name]
    return service(unit)


@pytest.mark.needs("systemd-analyze")
@units
def test_systemd_has_nothing_to_say_about_it(unit: Path, tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("samserve")
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace("/opt/samserve/bin/samserve", str(command)))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@units
def test_it_starts_what_the_readme_installs(unit: Path) -> None:
    program, command, *flags = service(unit)["ExecStart"].split()
    assert command == {"samserve": "serve", "samserve-worker": "worker"}[unit.stem]
    parse_options(flags)
    assert f"{Path(program).parent}/pip install" in README
    assert f"useradd --system --home-dir /nonexistent {service(unit)['User']}" in README
    assert f"cp deploy/systemd/{unit.name} /etc/systemd/system/" in README
    assert f"systemctl enable --now {unit.stem}\n" in README
    assert f" > {service(unit)['EnvironmentFile'].lstrip('-')}" in README


@units
def test_what_ends_is_started_again(unit: Path) -> None:
    assert service(unit)["Restart"] == "always"


@units
def test_its_state_is_where_the_service_may_write(unit: Path) -> None:
    assert "Environment=XDG_DATA_HOME=/var/lib\n" in unit.read_text()
    assert service(unit)["StateDirectory"] == "samserve"


def test_systemd_waits_until_it_has_stopped() -> None:
    assert float(named("samserve")["TimeoutStopSec"]) > STOP_TIMEOUT_S
    patience = worker.NOTICE_S + worker.DRAIN_S + worker.CLOSE_S
    assert float(named("samserve-worker")["TimeoutStopSec"]) > patience


@pytest.mark.parametrize("broken", ["", "weights vit_b", "archive vit_t"])
def test_a_worker_has_its_archives_before_it_starts(broken: str, tmp_path: Path) -> None:
    """The command that makes them runs here, with another program that writes down its calls."""
    program = tmp_path / "samserve"
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n[ "$*" != "{broken}" ]\n')
    program.chmod(0o755)
    shell, option, script = named("samserve-worker")["ExecStartPre"].split(" ", 2)
    script = (
        script.strip("'").replace("$$", "$").replace("/opt/samserve/bin/samserve", str(program))
    )
    done = subprocess.run(
        [shell, option, script], env={"SAMSERVE_MODELS": "vit_t vit_b"}, check=False
    )
    calls = (tmp_path / "calls").read_text().splitlines()
    wanted = ["weights vit_t", "archive vit_t", "weights vit_b", "archive vit_b"]
    assert calls == wanted[: wanted.index(broken) + 1 if broken else None]
    assert (done.returncode == 0) == (not broken)


def test_a_worker_does_not_start_without_its_secrets() -> None:
    assert named("samserve-worker")["EnvironmentFile"] == "/etc/samserve-worker.env"  # no `-`
