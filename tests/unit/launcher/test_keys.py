"""`samserve keys`, and the question whether a server may listen where it shall."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from samserve_gateway.keys import KeysFile, digest_of
from samserve_launcher import keys
from samserve_launcher.access import access
from samserve_launcher.errors import ServerError
from samserve_launcher.options import Options


def test_a_key_is_printed_once_and_only_its_hash_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "keys.txt"
    assert keys.main(["new", "alice", "--admin", "--file", str(path)]) == 0
    output = capsys.readouterr().out
    key = output.splitlines()[0]
    assert f"http://HOST:8000/key/{key}/sam/" in output
    assert key not in path.read_text()
    [known] = KeysFile(path).known()
    assert (known.name, known.digest, known.admin) == ("alice", digest_of(key.encode()), True)
    assert keys.main(["list", "--file", str(path)]) == 0
    assert capsys.readouterr().out == "alice  admin\n"
    assert keys.main(["remove", "alice", "--file", str(path)]) == 0
    assert KeysFile(path).known() == []


def test_the_variable_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SAMSERVE_API_KEYS_FILE", str(tmp_path / "keys.txt"))
    assert keys.main(["new", "alice"]) == 0
    assert keys.main(["new", "alice"]) == 1
    assert "alice already" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["new"], ["new", "alice"], ["new", "a b", "--file=f"]])
def test_a_wrong_command_line(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SAMSERVE_API_KEYS_FILE", raising=False)
    with pytest.raises(SystemExit):
        keys.main(arguments)
    assert re.search("required|--file FILE|NAME must be", capsys.readouterr().err)


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("SAMSERVE_API_KEYS_FILE", "SAMSERVE_OPEN"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "localhost", "::1"])
def test_no_key_is_needed_on_loopback(host: str, environ: pytest.MonkeyPatch) -> None:
    assert "only this machine" in access(Options(host=host))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "0", "10.1.2.3", "no.such.name.invalid"])
def test_an_open_address_needs_keys_or_a_word(
    host: str, environ: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(ServerError, match="samserve keys new NAME") as refused:
        access(Options(host=host))
    assert "SAMSERVE_OPEN=1" in str(refused.value)
    environ.setenv("SAMSERVE_OPEN", "1")
    assert "everybody" in access(Options(host=host))
    environ.delenv("SAMSERVE_OPEN")
    path = tmp_path / "keys.txt"
    environ.setenv("SAMSERVE_API_KEYS_FILE", str(path))
    with pytest.raises(ServerError, match="cannot be read"):
        access(Options(host=host))
    path.write_text("# none\n")
    with pytest.raises(ServerError, match="has no keys"):
        access(Options(host=host))
    keys.main(["new", "alice"])
    assert "every client needs an API key" in access(Options(host=host))


def test_contradictions_are_named(environ: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environ.setenv("SAMSERVE_API_KEYS_FILE", str(tmp_path / "keys.txt"))
    keys.main(["new", "alice"])
    environ.setenv("SAMSERVE_OPEN", "1")
    with pytest.raises(ServerError, match="Set one of them only"):
        access(Options())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SAMSERVE_OPEN", "perhaps"),
        ("SAMSERVE_MAX_BODY_BYTES", "many"),
        ("SAMSERVE_QUEUE_SIZE", "0"),
        ("SAMSERVE_STAND_IN", "vit_x"),
        ("SAMSERVE_CORS_ORIGINS", "example.org"),
    ],
)
def test_a_wrong_setting_is_named_before_anything_starts(
    name: str, value: str, environ: pytest.MonkeyPatch
) -> None:
    environ.setenv(name, value)
    with pytest.raises(ServerError, match=f"^{name}: "):
        access(Options())


def test_a_certificate_is_read_before_anything_starts(tmp_path: Path) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    with pytest.raises(ServerError, match="set both SAMSERVE_TLS_CERTIFICATE"):
        access(Options(tls_certificate=certificate))
    with pytest.raises(ServerError, match=r"certificate\.pem cannot be read: No such file"):
        access(Options(tls_certificate=certificate, tls_key=key))
    certificate.write_text("no certificate")
    key.write_text("no key")
    with pytest.raises(ServerError, match="are no certificate with its key"):
        access(Options(tls_certificate=certificate, tls_key=key))
