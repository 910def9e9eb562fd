"""A folder that cannot be used, or is not safe to use, is not used, and a warning says so once."""

from __future__ import annotations

import os
import re
import shutil
import stat
import time
from collections.abc import Callable
from functools import partial
from itertools import repeat
from pathlib import Path

import pytest

from samserve.embeddings import folder_store
from samserve.embeddings.folder_store import FolderStore
from tests.support.stored_entries import KEY, MEGABYTE, Warned


def group_writable(folder: Path) -> None:
    folder.chmod(0o720)


def writable_by_all(folder: Path) -> None:
    folder.chmod(0o1777)


def linked(folder: Path) -> None:
    folder.rename(folder.parent / "elsewhere")
    folder.symlink_to("elsewhere")


def linked_to_nowhere(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.symlink_to("nowhere")


def a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_bytes(b"")


def below_a_file(folder: Path) -> None:
    shutil.rmtree(folder.parent)
    folder.parent.write_bytes(b"")


def of_another_user(folder: Path) -> None:
    os.chown(folder, 1, -1)


def unreadable(folder: Path) -> None:
    folder.chmod(0)


UNUSABLE = [
    pytest.param(group_writable, r"others may write to it \(mode 720\)", id="group-writable"),
    pytest.param(writable_by_all, r"others may write to it \(mode 1777\)", id="world-writable"),
    pytest.param(linked, "it is a symbolic link", id="link"),
    pytest.param(linked_to_nowhere, "it is a symbolic link", id="link-to-nowhere"),
    pytest.param(a_file, "Not a directory", id="file"),
    pytest.param(below_a_file, "Not a directory", id="below-a-file"),
    pytest.param(
        of_another_user,
        r"it belongs to another user \(uid 1\)",
        id="another-user",
        marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root gives folders away"),
    ),
    pytest.param(
        unreadable,
        "Permission denied",
        id="unreadable",
        marks=pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything"),
    ),
]


def use_in_vain(store: FolderStore) -> None:
    assert store.load(KEY) is None
    store.save(KEY, b"payload")
    with store.lock(KEY, 0.01) as held:
        assert not held
    assert not store.usable


class TestFolder:
    def test_it_is_made_and_usable(self, store: FolderStore, folder: Path) -> None:
        assert not folder.exists()
        assert store.usable
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700

    @pytest.mark.parametrize(("spoil", "reason"), UNUSABLE)
    def test_unusable_says_so_once(
        self,
        store: FolderStore,
        folder: Path,
        warned: Warned,
        spoil: Callable[[Path], None],
        reason: str,
    ) -> None:
        store.save(KEY, b"payload")
        spoil(folder)
        for _ in range(3):
            use_in_vain(store)
        (message,) = warned()
        assert message.startswith(f"Stored embeddings: cannot use {folder}: ")
        assert re.search(reason, message)

    @pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc")
    def test_where_no_folder_can_be_made(self, warned: Warned) -> None:
        for _ in range(3):
            use_in_vain(FolderStore(Path("/proc/samserve/embeddings"), MEGABYTE))
        assert len(warned()) == 3  # each store for itself

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    def test_read_only_gives_what_it_has(
        self, store: FolderStore, folder: Path, warned: Warned
    ) -> None:
        store.save(KEY, b"payload")
        (folder / ".lock").unlink()
        folder.chmod(0o500)
        for _ in range(3):
            assert store.load(KEY) == b"payload"
            store.save("another", b"payload")
            with store.lock(KEY, 0.01) as held:
                assert not held
            assert not store.usable
        (message,) = warned()
        assert message.endswith("Permission denied.")
        folder.chmod(0o700)
        assert store.usable

    def test_trouble_is_told_again_after_a_recovery(
        self, store: FolderStore, folder: Path, warned: Warned
    ) -> None:
        for _ in range(3):
            store.save(KEY, b"payload")
            assert store.load(KEY) == b"payload"
            assert store.usable
            assert not warned()
            folder.chmod(0o777)
            use_in_vain(store)
            assert len(warned()) == 1
            folder.chmod(0o700)

    def test_trouble_that_comes_and_goes_is_told_once_a_minute(
        self, store: FolderStore, folder: Path, warned: Warned, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(folder_store, "LOG_EVERY_S", 60.0)
        for minutes in range(3):
            clock = repeat(time.monotonic() + 61 * minutes)
            with monkeypatch.context() as patch:
                patch.setattr(
                    "samserve.embeddings.folder_store.time.monotonic", partial(next, clock)
                )
                self.comes_and_goes(store, folder)
            assert len(warned()) == 1

    def comes_and_goes(self, store: FolderStore, folder: Path) -> None:
        for _ in range(5):
            store.save(KEY, b"payload")
            folder.chmod(0o777)
            assert store.load(KEY) is None
            folder.chmod(0o700)
            assert store.load(KEY) == b"payload"

    def test_trouble_of_another_kind_is_told_too(
        self, store: FolderStore, folder: Path, warned: Warned
    ) -> None:
        store.save(KEY, b"payload")
        aside = folder.with_name("aside")
        for expected in (1, 0):
            folder.chmod(0o777)
            use_in_vain(store)
            assert len(warned()) == expected
            folder.rename(aside)
            folder.write_bytes(b"")
            use_in_vain(store)
            assert len(warned()) == expected
            folder.unlink()
            aside.rename(folder)

    def test_removed_under_way(self, store: FolderStore, folder: Path, warned: Warned) -> None:
        store.save(KEY, b"payload")
        shutil.rmtree(folder.parent)
        assert store.load(KEY) is None
        store.save(KEY, b"payload")
        assert store.load(KEY) == b"payload"
        with store.lock(KEY, 0) as held:
            assert held
            shutil.rmtree(folder)
            store.save(KEY, b"payload")
            assert store.load(KEY) == b"payload"
            with store.lock(KEY, 0) as held_too:
                assert held_too
        assert not warned()
