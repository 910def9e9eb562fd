"""Many pictures: what is found, where its files go, and what is skipped, left or wrong."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import samserve_client.folder
from samserve.errors import Busy, InvalidField, SamserveError, Unauthorized
from samserve.objects.collection import Objects
from samserve.objects.frame import Frame
from samserve.objects.interface import Progress
from samserve.objects.segmented import SegmentedObject
from samserve.pictures.sources import read_source
from samserve_client.destinations import Work, works_of
from samserve_client.errors import BrokenOff, ServerUnreachable
from samserve_client.folder import Outcome, Run, Task, find_pictures, in_words
from samserve_client.outputs import OUTPUTS, chosen_outputs, format_of

SQUARE = {"type": "Polygon", "coordinates": [[[1, 1], [5, 1], [5, 4], [1, 4], [1, 1]]]}


class Opened:
    """A picture whose only object is a square."""

    def __init__(self, source: Path, page: int | None, error: Exception | None) -> None:
        file = read_source(source, page)
        pixels = np.zeros((*file.size, 3), np.uint8)
        self.frame = Frame(file.size, lambda: pixels, file.name)
        self.size, self.pages, self.error = file.size, file.pages, error


class Opener:
    """Opens pictures, and counts them. Some of them fail."""

    def __init__(self, errors: dict[str, Exception] | None = None) -> None:
        self.opened: list[tuple[str, int | None]] = []
        self._errors = errors or {}

    def picture(self, source: Any, page: int | None = None) -> Any:
        self.opened.append((Path(source).name, page))
        return Opened(source, page, self._errors.get(Path(source).name))


def square(picture: Any, progress: Progress) -> Objects:
    if picture.error is not None:
        raise picture.error
    feature = {"geometry": SQUARE, "properties": {"quality": 0.9}}
    return Objects([SegmentedObject.from_outline(picture.frame, feature)], picture.frame)


@contextmanager
def unwatched(name: str) -> Iterator[Progress]:
    yield None


def run(opener: Opener, works: list[Work], jobs: int = 2, **task: Any) -> Outcome:
    outputs = chosen_outputs(task.pop("formats", ["geojson"]), georeferenced=False)
    ready = Task(task.pop("find", square), outputs, **task)
    return Run(opener, ready, unwatched).over(works, jobs, lambda: None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with five pictures."""
    made = tmp_path / "pictures"
    made.mkdir()
    for index in range(5):
        Image.new("L", (20, 10), index).save(made / f"{index}.png")
    return made


def works(folder: Path) -> list[Work]:
    return works_of(find_pictures([str(folder)], recursive=False), folder.parent / "out")


def names(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.mark.filterwarnings("ignore:'crs' was not provided")
def test_every_format_of_every_picture(folder: Path) -> None:
    outcome = run(Opener(), works(folder), formats=list(OUTPUTS))
    assert (outcome.done, outcome.objects, outcome.left) == (5, 5, 0)
    endings = (".coco.json", ".geojson", ".gpkg", ".labels.png", ".overlay.png")
    assert names(folder.parent / "out") == sorted(f"{i}{e}" for i in range(5) for e in endings)
    labels = np.asarray(Image.open(folder.parent / "out" / "3.labels.png"))
    assert (labels.sum(), labels.max()) == (12, 1)


@pytest.mark.parametrize("jobs", [1, 2, 8])
def test_a_second_run_does_only_what_is_missing(folder: Path, jobs: int) -> None:
    out = folder.parent / "out"
    run(Opener(), works(folder), jobs)
    (out / "2.geojson").unlink()
    old = (out / "3.geojson").stat().st_mtime - 100
    os.utime(out / "3.geojson", (old, old))  # older than the picture
    opener = Opener()
    outcome = run(opener, works(folder), jobs)
    assert (outcome.done, outcome.skipped) == (2, 3)
    assert sorted(opener.opened) == [("2.png", None), ("3.png", None)]
    assert run(Opener(), works(folder), jobs, again=True).done == 5
    # Another format is missing of all.
    assert run(Opener(), works(folder), jobs, formats=["geojson", "coco"]).done == 5


def test_a_failure_is_one_line_and_the_others_go_on(folder: Path) -> None:
    (folder / "1.png").write_bytes(b"no picture")
    (folder / "0.png").write_bytes(b"")
    errors: dict[str, Exception] = {
        "2.png": Busy("The queue is full.", 1),
        "3.png": BrokenOff("broke off\nin the middle"),
    }
    outcome = run(Opener(errors), works(folder))
    assert outcome.done == 1
    assert [path.name for path in outcome.failed] == ["0.png", "1.png", "2.png", "3.png"]
    assert all("\n" not in reason for reason in outcome.failed.values())
    assert outcome.failed[folder / "2.png"] == "The queue is full."
    assert names(folder.parent / "out") == ["4.geojson"]


@pytest.mark.parametrize("error", [ServerUnreachable("gone"), Unauthorized("no key")], ids=str)
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_hopeless_error_ends_the_run(folder: Path, error: SamserveError, jobs: int) -> None:
    opener = Opener({"1.png": error})
    outcome = run(opener, works(folder), jobs)
    assert outcome.stopped == error.message
    assert outcome.left == 5 - outcome.done
    assert len(opener.opened) <= 2 + jobs
    assert not outcome.failed
    assert run(Opener(), works(folder), jobs).done == 5 - outcome.done


def test_an_output_that_cannot_be_written(folder: Path) -> None:
    out = folder.parent / "out"
    (out / "2.geojson").mkdir(parents=True)
    outcome = run(Opener(), works(folder), again=True)
    assert outcome.done == 4
    [reason] = outcome.failed.values()
    assert "directory" in reason
    assert not [name for name in names(out) if "part" in name]


@pytest.mark.parametrize("jobs", [1, 3])
def test_ctrl_c(folder: Path, jobs: int) -> None:
    closed = threading.Event()

    def find(picture: Any, progress: Progress) -> Objects:
        if picture.frame.name == "2.png":
            if jobs == 1:
                raise KeyboardInterrupt
            # As a client's call that waits for the server until it is closed.
            while not closed.is_set():
                time.sleep(0.01)
            raise RuntimeError("closed")
        return square(picture, progress)

    def advance() -> None:
        if jobs > 1:
            raise KeyboardInterrupt

    outputs = chosen_outputs(["geojson"], georeferenced=False)
    some = works(folder)[1:] if jobs > 1 else works(folder)
    ready = Run(Opener(), Task(find, outputs), unwatched, advance)
    outcome = ready.over(some, jobs, closed.set)
    assert outcome.interrupted
    assert outcome.done + outcome.left == len(some)
    assert outcome.left >= 1
    assert closed.is_set() == (jobs > 1)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_ctrl_c_before_every_thread_has_its_picture(
    folder: Path, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow_to_begin(jobs: int, **options: Any) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(min(jobs, threads), **options)

    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(samserve_client.folder, "ThreadPoolExecutor", slow_to_begin)
    outputs = chosen_outputs(["geojson"], georeferenced=False)
    ready = Run(Opener(), Task(square, outputs), unwatched, interrupt)
    outcome = ready.over(works(folder), 3, lambda: None)
    assert outcome.interrupted
    assert not outcome.failed
    assert outcome.done == len(names(folder.parent / "out"))
    assert outcome.done + outcome.left == 5


def stack(folder: Path, pages: int) -> Work:
    images = [Image.new("L", (20, 10), index) for index in range(pages)]
    images[0].save(folder / "stack.tif", save_all=True, append_images=images[1:])
    return Work(folder / "stack.tif", folder.parent / "out" / "stack")


def test_the_pages_of_a_stack(folder: Path) -> None:
    work = stack(folder, 11)
    out = folder.parent / "out"
    outcome = run(Opener(), [work], pages_option="--pages all")
    assert outcome.failed == {work.source: "stack.tif has 11 pages: use --pages all"}
    assert run(Opener(), [work], pages=[2, 10]).objects == 2
    assert names(out) == ["stack.page02.geojson", "stack.page10.geojson"]
    opener = Opener()
    assert run(opener, [work], pages="all").objects == 9
    assert [page for _, page in opener.opened] == [0, 1, 3, 4, 5, 6, 7, 8, 9]
    assert len(names(out)) == 11
    assert run(Opener(), [work], pages="all").skipped == 1
    missing = run(Opener(), [work], pages=[11])
    assert "page 11 does not exist" in missing.failed[work.source]


def test_pages_of_a_picture_that_has_one(folder: Path) -> None:
    assert run(Opener(), works(folder), pages="all").done == 5
    assert "0.geojson" in names(folder.parent / "out")


def test_pictures_are_found(folder: Path) -> None:
    deep = folder / "deep" / "er"
    deep.mkdir(parents=True)
    Image.new("L", (2, 2)).save(deep / "x.TIFF")
    for name in (".hidden.png", "notes.txt", "0.overlay.png", "0.labels.png"):
        (folder / name).touch()

    def found(*patterns: str, recursive: bool = False) -> list[str]:
        return [str(below) for _, below in find_pictures(patterns, recursive=recursive)]

    five = [f"{index}.png" for index in range(5)]
    assert found(str(folder)) == five
    assert found(str(folder), recursive=True) == [*five, "deep/er/x.TIFF"]
    assert found(str(folder / "[0-2].png")) == five[:3]
    assert found(str(folder / "**" / "*.TIFF")) == ["x.TIFF"]
    assert found(str(folder / "notes.txt")) == ["notes.txt"]
    assert found(str(folder), str(folder / "0.png")) == five
    for nothing in ("nowhere", "nowhere/*.png", str(deep.parent)):
        with pytest.raises(ValueError, match="no picture"):
            found(nothing)


def test_files_of_pictures_with_the_same_name(folder: Path) -> None:
    Image.new("L", (2, 2)).save(folder / "0.jpg")
    targets = [str(w.target.relative_to(folder.parent / "out")) for w in works(folder)]
    assert targets == ["0.jpg", "0.png", "1", "2", "3", "4"]
    other = folder.parent / "other"
    other.mkdir()
    Image.new("L", (2, 2)).save(other / "1.png")
    both = find_pictures([str(folder), str(other)], recursive=False)
    with pytest.raises(ValueError, match="would have the same names"):
        works_of(both, folder)


def test_a_named_file(folder: Path) -> None:
    target = folder.parent / "new" / "cell.json"
    outcome = run(Opener(), [Work(folder / "0.png", target.with_suffix(""), target)])
    assert outcome.done == 1
    assert len(json.loads(target.read_text())["features"]) == 1


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("a.geojson", "geojson"),
        ("a.json", "geojson"),
        ("a.coco.json", "coco"),
        ("a.png", "overlay"),
        ("a.labels.png", "labels"),
        ("a.TIF", "labels"),
        ("a.gpkg", "gpkg"),
        ("out", None),
        ("out.2026", None),
    ],
)
def test_the_ending_chooses_the_format(name: str, form: str | None, tmp_path: Path) -> None:
    assert format_of(tmp_path / name) == form
    (tmp_path / name).mkdir()
    assert format_of(tmp_path / name) is None


def test_formats_that_do_not_exist_or_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="there is no format 'svg'"):
        chosen_outputs(["geojson", "svg"], georeferenced=False)
    monkeypatch.setattr("samserve_client.outputs.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"samserve\[geo\]"):
        chosen_outputs(["gpkg"], georeferenced=False)
    with pytest.raises(ValueError, match=r"samserve\[geo\]"):
        chosen_outputs(["geojson"], georeferenced=True)
    assert list(chosen_outputs(["geojson", "labels"], georeferenced=False)) == ["geojson", "labels"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (InvalidField("bbox is\nempty.", "bbox"), "bbox is empty."),
        (FileNotFoundError(2, "No such file or directory", "a.png"), "there is no file a.png"),
        (PermissionError(13, "Permission denied", "a.png"), "Permission denied"),
        (OSError(28, "No space left on device", "out/x"), "out/x: No space left on device"),
        (MemoryError(), "too little memory"),
        (ValueError(""), "ValueError"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_words(error: Exception, words: str) -> None:
    assert words in in_words(error, Path("a.png"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_full_disk_ends_the_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def full(found: Objects, path: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setitem(OUTPUTS, "geojson", dataclasses.replace(OUTPUTS["geojson"], write=full))
    opener = Opener()
    outcome = run(opener, works(folder), jobs=1)
    assert outcome.stopped is not None
    assert outcome.stopped.endswith(f"0.geojson cannot be written: {os.strerror(number)}")
    assert (outcome.left, len(opener.opened)) == (5, 1)


@pytest.mark.parametrize(
    "error", [OSError(errno.ENAMETOOLONG, "File name too long"), RuntimeError("GDAL says no")]
)
def test_a_file_that_cannot_be_written_is_a_failure_of_its_picture(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def sometimes(found: Objects, path: Path) -> None:
        if path.name.startswith("1"):
            raise error

    output = dataclasses.replace(OUTPUTS["geojson"], write=sometimes)
    monkeypatch.setitem(OUTPUTS, "geojson", output)
    outcome = run(Opener(), works(folder))
    assert outcome.done == 4
    [(source, reason)] = outcome.failed.items()
    assert source.name == "1.png"
    assert reason.endswith(f"1.geojson cannot be written: {error.args[-1]}")
