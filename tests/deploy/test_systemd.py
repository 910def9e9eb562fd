"""The systemd unit: systemd understands it, and it starts what the README installs."""

from __future__ import annotations

import subprocess
import sys
from configparser import RawConfigParser
from pathlib import Path

import pytest

from samserve_launcher.options import parse_options
from samserve_launcher.processes import STOP_TIMEOUT_S
from tests.support.paths import ROOT

UNIT = ROOT / "deploy/systemd/samserve.service"
README = (ROOT / "deploy/README.md").read_text()


def service() -> dict[str, str]:
    """Return the unit's section [Service]; of a key that occurs twice, the last value."""
    parser = RawConfigParser(strict=False, delimiters="=")
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNIT)
    return dict(parser["Service"])


@pytest.mark.needs("systemd-analyze")
def test_systemd_has_nothing_to_say_about_it(tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("samserve")
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/samserve/bin/samserve", str(command)))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_it_starts_what_the_readme_installs() -> None:
    program, command, *flags = service()["ExecStart"].split()
    assert command == "serve"
    parse_options(flags)
    assert f"{Path(program).parent}/pip install" in README
    assert f"useradd --system --home-dir /nonexistent {service()['User']}" in README
    assert f"cp deploy/systemd/{UNIT.name} /etc/systemd/system/" in README
    assert service()["EnvironmentFile"].lstrip("-") in README


def test_its_state_is_where_the_service_may_write() -> None:
    name, folder = service()["Environment"].split("=")
    assert (name, folder) == ("XDG_DATA_HOME", "/var/lib")
    assert service()["StateDirectory"] == "samserve"


def test_it_waits_until_the_server_has_stopped() -> None:
    assert float(service()["TimeoutStopSec"]) > STOP_TIMEOUT_S
