"""The file of API keys: what it may hold, and how it changes under a running gateway."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from samserve_gateway import keys
from samserve_gateway.keys import Key, KeysFile, KeysFileError, digest_of, new_key

ALICE, BOB = Key("alice", digest_of(b"a")), Key("bob", digest_of(b"b"), admin=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "keys.txt"
    path.write_text(f"# Pathology\n\n{ALICE.line()}  {BOB.line()}\n")
    return path


@pytest.fixture(autouse=True)
def _look_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "LOOK_EVERY_S", 0.0)


def test_keys_are_found_by_their_digest(path: Path) -> None:
    file = KeysFile(path)
    assert file.known() == [ALICE, BOB]
    assert file.find(digest_of(b"a")) == ALICE
    assert file.find(digest_of(b"A")) is None


def test_new_keys_differ_and_have_256_bits() -> None:
    made = {new_key() for _ in range(100)}
    assert len(made) == 100
    assert all(len(key.removeprefix(keys.PREFIX)) == 43 for key in made)


@pytest.mark.parametrize(
    "line",
    [
        "carol",
        "carol sha256:",
        f"carol {'0' * 64}",
        f"carol sha256:{'0' * 63}",
        f"carol sha256:{'G' * 64}",
        f"carol sha256:{'0' * 64} root",
        f"carol sha256:{'0' * 64} admin admin",
        f"c/l sha256:{'0' * 64}",
        f"{'c' * 65} sha256:{'0' * 64}",
        f"alice sha256:{'0' * 64}",
        f"carol {ALICE.digest}",
        "sam_a-key-that-somebody-pasted",
    ],
)
def test_a_wrong_line_is_named_but_not_repeated(path: Path, line: str) -> None:
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(KeysFileError, match=r"keys\.txt, line 6") as refused:
        KeysFile(path)
    assert line not in str(refused.value)
    assert "0000" not in str(refused.value)


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_change_is_refused(path: Path, mode: int) -> None:
    path.chmod(mode)
    with pytest.raises(KeysFileError, match="chmod go-w"):
        KeysFile(path)


def test_what_is_no_readable_text_file_is_refused(tmp_path: Path) -> None:
    binary, large, pipe = tmp_path / "binary", tmp_path / "large", tmp_path / "pipe"
    binary.write_bytes(b"\xff\xfe")
    large.write_text("#" * (keys.MAX_FILE_BYTES + 1))
    os.mkfifo(pipe)
    for path in (tmp_path / "missing", tmp_path, binary, large, pipe):
        with pytest.raises(KeysFileError, match=str(path)):
            KeysFile(path)


def test_a_changed_file_is_read_again(path: Path) -> None:
    file = KeysFile(path)
    carol = Key("carol", digest_of(b"c"))
    keys.add(path, carol)
    assert file.find(carol.digest) == carol
    keys.remove(path, "carol")
    assert file.find(carol.digest) is None
    assert file.known() == [ALICE, BOB]


def _damage(path: Path) -> None:
    path.write_text("damaged\n")


def _cut(path: Path) -> None:
    path.write_text(path.read_text()[:40])


def _open_to_all(path: Path) -> None:
    path.chmod(0o666)


@pytest.mark.parametrize("fault", [_damage, _cut, _open_to_all, Path.unlink])
def test_a_file_that_becomes_wrong_leaves_the_keys_as_they_were(
    path: Path, fault: object, caplog: pytest.LogCaptureFixture
) -> None:
    file = KeysFile(path)
    good = path.read_text()
    assert callable(fault)
    fault(path)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            assert file.find(ALICE.digest) == ALICE
    assert len(caplog.records) == 1  # one line for each fault, not for each request
    path.unlink(missing_ok=True)
    path.write_text(good.replace("alice", "alicia"))
    found = file.find(ALICE.digest)
    assert found is not None
    assert found.name == "alicia"


def test_adding_and_removing_keeps_the_other_lines_and_the_mode(path: Path) -> None:
    path.chmod(0o640)
    before = path.read_text()
    keys.add(path, Key("carol", digest_of(b"c"), admin=True))
    assert path.read_text() == before + f"carol {digest_of(b'c')} admin\n"
    keys.remove(path, "carol")
    assert path.read_text() == before
    assert path.stat().st_mode & 0o777 == 0o640
    assert [entry.name for entry in path.parent.iterdir()] == ["keys.txt"]


def test_a_name_is_added_once_and_an_unknown_one_is_not_removed(path: Path) -> None:
    with pytest.raises(KeysFileError, match="alice already"):
        keys.add(path, Key("alice", digest_of(b"c")))
    with pytest.raises(KeysFileError, match="no key of this name"):
        keys.remove(path, "ali")


def test_a_new_file_is_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "keys.txt"
    keys.add(path, ALICE)
    assert path.stat().st_mode & 0o777 == 0o600
    assert KeysFile(path).known() == [ALICE]
