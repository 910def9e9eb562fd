"""Which Java TorchServe gets, told from what real executables print."""

from __future__ import annotations

from pathlib import Path

import pytest

from samserve_launcher import java


def put_java(home: Path, says: str) -> Path:
    """A `java` that prints its version as Javas do, on standard error."""
    binary = home / "bin" / "java"
    binary.parent.mkdir(parents=True)
    binary.write_text(f"#!/bin/sh\necho '{says}' >&2\n")
    binary.chmod(0o755)
    return home


@pytest.mark.parametrize(
    ("says", "major"),
    [
        ('openjdk version "17.0.15" 2025-04-15', 17),
        ('java version "1.8.0_291"', 8),
        ('openjdk version "25" 2025-09-16', 25),
        ("no such thing", None),
    ],
)
def test_the_version_is_read(tmp_path: Path, says: str, major: int | None) -> None:
    assert java.java_major(put_java(tmp_path, says) / "bin" / "java") == major


def test_no_file_is_no_java(tmp_path: Path) -> None:
    assert java.java_major(tmp_path / "java") is None


def test_java_home_comes_before_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = put_java(tmp_path / "home", 'openjdk version "21.0.1"')
    on_path = put_java(tmp_path / "path", 'openjdk version "17.0.1"')
    monkeypatch.setenv("PATH", f"{on_path / 'bin'}:/bin")
    monkeypatch.setenv("JAVA_HOME", str(home))
    assert java.system_java_home() == home
    monkeypatch.delenv("JAVA_HOME")
    assert java.system_java_home() == on_path


def test_an_old_java_is_no_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = put_java(tmp_path / "old", 'java version "1.8.0_291"')
    new = put_java(tmp_path / "new", 'openjdk version "11.0.2"')
    monkeypatch.setenv("JAVA_HOME", str(old))
    monkeypatch.setenv("PATH", f"{old / 'bin'}")
    assert java.system_java_home() is None
    monkeypatch.setenv("PATH", f"{new / 'bin'}")
    assert java.system_java_home() == new
