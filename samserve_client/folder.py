"""Segments many pictures, and writes files about each. A run that was interrupted goes on later.

A file that exists is complete, because it is written under another name and then renamed. So a
picture whose files all exist is skipped.
"""

from __future__ import annotations

import glob
import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeAlias

from samserve.errors import Forbidden, InvalidField, NotFound, SamserveError, Unauthorized
from samserve.objects.collection import Objects
from samserve.objects.interface import Progress, SegmentablePicture
from samserve.pictures.sources import Source, pictures_in
from samserve.pictures.tiff_directory import Unreadable

from .destinations import NotWritten, Work, path_of
from .errors import BrokenOff, NotReady, ServerUnreachable, UnexpectedAnswer
from .outputs import Output, is_output

ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp")
"""The endings of pictures in a folder. A file that is named itself may have any ending."""

HOPELESS = (ServerUnreachable, NotReady, UnexpectedAnswer, Unauthorized, Forbidden, NotFound)
"""Errors that every further picture would have as well."""

FAILURES = (SamserveError, OSError, MemoryError, ValueError, ImportError)
"""What may go wrong with a picture, its files, the server or the installation."""


class Opener(Protocol):
    """What opens pictures: a client, or the library in process."""

    def picture(self, source: Source, page: int | None = None) -> SegmentablePicture:
        """Return the picture."""
        ...


@dataclass(frozen=True)
class Task:
    """What to do with each picture.

    Attributes:
        find: finds the objects in a picture.
        outputs: the formats to write.
        pages: the pages to segment, or `all`; None: the only one.
        again: whether to segment pictures whose files exist.
        pages_option: how to choose pages, for the failure of a stack.
    """

    find: Callable[[SegmentablePicture, Progress], Objects]
    outputs: Mapping[str, Output]
    pages: Sequence[int] | str | None = None
    again: bool = False
    pages_option: str = ""


@dataclass
class Outcome:
    """What became of the pictures.

    Attributes:
        done: pictures that were segmented now.
        skipped: pictures whose files existed.
        objects: the objects that were found now.
        failed: picture -> why it failed.
        left: pictures that were not begun or not ended.
        stopped: why the run ended early; None if it did not.
        interrupted: whether its user ended it.
    """

    done: int = 0
    skipped: int = 0
    objects: int = 0
    failed: dict[Path, str] = field(default_factory=dict)
    left: int = 0
    stopped: str | None = None
    interrupted: bool = False


def find_pictures(patterns: Iterable[str], *, recursive: bool) -> list[tuple[Path, Path]]:
    """Return the pictures that these files, folders and globs name, each with its path below.

    Args:
        recursive: also look into the folders of folders.

    Returns:
        Each picture, and its path relative to its folder. A picture that is named twice is in the
        list once.

    Raises:
        ValueError: there is no such file or folder, or there are no pictures in it.
    """
    found: dict[Path, Path] = {}
    for pattern in patterns:
        named = Path(pattern)
        if named.is_dir():
            some = _in_folder(named, recursive)
            if not some:
                deeper = "" if recursive else "; --recursive looks into its folders, too"
                raise ValueError(f"{named} has no pictures ({', '.join(ENDINGS)}){deeper}")
        elif named.exists():
            some = {named: Path(named.name)}
        else:
            matches = map(Path, sorted(glob.glob(pattern, recursive=True)))
            some = {path: Path(path.name) for path in matches if _is_picture(path)}
            if not some:
                raise ValueError(f"there is no picture {pattern}")
        for path, below in some.items():
            found.setdefault(path, below)
    return list(found.items())


def _in_folder(folder: Path, recursive: bool) -> dict[Path, Path]:
    paths = sorted(folder.rglob("*") if recursive else folder.iterdir())
    return {path: path.relative_to(folder) for path in paths if _is_picture(path)}


def _is_picture(path: Path) -> bool:
    is_ours = is_output(path) or path.name.startswith(".")
    return path.suffix.lower() in ENDINGS and path.is_file() and not is_ours


Result: TypeAlias = "int | Exception | None"
"""How many objects are in a picture; None: its files existed; or why it failed."""

Watch: TypeAlias = "Callable[[str], AbstractContextManager[Progress]]"
"""Given the name of a picture, it yields where the progress within the picture goes."""


class Run:
    """One run over many pictures.

    Args:
        opener: opens the pictures.
        task: what to do with each.
        watch: shows the progress within each picture.
        advance: called after each picture.
    """

    def __init__(
        self,
        opener: Opener,
        task: Task,
        watch: Watch,
        advance: Callable[[], object] = lambda: None,
    ) -> None:
        self._opener = opener
        self._task = task
        self._watch = watch
        self._advance = advance
        self._stopping = threading.Event()
        self._late: list[tuple[Work, Result]] = []

    def over(self, works: Sequence[Work], jobs: int, close: Callable[[], object]) -> Outcome:
        """Segment the pictures, several at once, and return what became of them.

        Args:
            jobs: pictures at once. 1: in the thread of the caller.
            close: ends the work of the other threads, if the user interrupts the run.
        """
        outcome = Outcome()
        try:
            one_by_one = jobs == 1 or len(works) == 1
            ended = self._one_by_one(works) if one_by_one else self._at_once(works, jobs, close)
            with closing(ended):
                for work, result in ended:
                    self._count(outcome, work, result)
                    self._advance()
                    if outcome.stopped is not None:
                        break
        except KeyboardInterrupt:
            outcome.interrupted = True
        for work, result in self._late:
            self._count(outcome, work, result)
        counted = outcome.done + outcome.skipped + len(outcome.failed)
        outcome.left = len(works) - counted
        order = {work.source: index for index, work in enumerate(works)}
        outcome.failed = dict(sorted(outcome.failed.items(), key=lambda item: order[item[0]]))
        return outcome

    def _one_by_one(self, works: Sequence[Work]) -> Generator[tuple[Work, Result], None, None]:
        for work in works:
            yield work, self._result(work)

    def _at_once(
        self, works: Sequence[Work], jobs: int, close: Callable[[], object]
    ) -> Generator[tuple[Work, Result], None, None]:
        pool = ThreadPoolExecutor(jobs, thread_name_prefix="picture")
        waiting: dict[Future[Result], Work] = {}
        try:
            coming = iter(works)
            while True:
                # No more than `jobs` wait for a thread, so that an interrupt ends the run soon.
                for work in coming:
                    waiting[pool.submit(self._result, work)] = work
                    if len(waiting) >= jobs:
                        break
                if not waiting:
                    return
                ended, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in ended:
                    yield waiting.pop(future), future.result()
        finally:
            if waiting:
                self._stopping.set()
                close()
            pool.shutdown(cancel_futures=True)
            # Some have ended well in the meantime, and their files are complete. `shutdown`
            # cancels a picture that no thread of the pool has taken yet.
            late = [
                (work, future.result())
                for future, work in waiting.items()
                if not future.cancelled()
            ]
            self._late = [(work, end) for work, end in late if not isinstance(end, Exception)]

    def _count(self, outcome: Outcome, work: Work, result: Result) -> None:
        if result is None:
            outcome.skipped += 1
        elif isinstance(result, int):
            outcome.done += 1
            outcome.objects += result
        elif _is_hopeless(result):
            outcome.stopped = in_words(result, work.source)
        else:
            outcome.failed[work.source] = in_words(result, work.source)

    def _result(self, work: Work) -> Result:
        try:
            return self._segment(work)
        except InvalidField as error:
            if error.field == "page" and self._task.pages is None:
                return ValueError(
                    f"{error.message.partition(':')[0]}: use {self._task.pages_option}"
                )
            return error
        except (*FAILURES, NotWritten) as error:
            return error
        except RuntimeError as error:
            # The client was closed, or a call of the library broke off.
            if self._stopping.is_set():
                return error
            raise

    def _segment(self, work: Work) -> int | None:
        """Write the files of a picture. Return the objects in it; None if they existed."""
        if self._task.pages is None and self._is_complete(work, None):
            return None
        count: int | None = None
        for page, suffix in self._pages(work.source):
            if self._task.pages is not None and self._is_complete(work, suffix):
                continue
            with self._watch(work.source.name) as progress:
                picture = self._opener.picture(work.source, page)
                found = self._task.find(picture, progress)
            for output in self._task.outputs.values():
                path = path_of(work, output, suffix)
                try:
                    output.write(found, path)
                except (OSError, RuntimeError) as error:  # GDAL's are RuntimeErrors
                    if self._stopping.is_set():
                        raise
                    raise NotWritten(path, error) from error
            count = (count or 0) + len(found)
        return count

    def _pages(self, source: Path) -> list[tuple[int | None, str | None]]:
        """Return the pages to segment, each with what its files' names have more."""
        wanted = self._task.pages
        if wanted is None:
            return [(None, None)]
        try:
            own, pages = pictures_in(source.read_bytes())
        except Unreadable as error:
            raise ValueError(str(error)) from error
        chosen = own if isinstance(wanted, str) else list(wanted)
        if pages == 1:
            return [(page, None) for page in chosen]
        width = len(str(pages - 1))
        return [(page, f".page{page:0{width}}") for page in chosen]

    def _is_complete(self, work: Work, suffix: str | None) -> bool:
        """Return whether all files exist, and none is older than the picture."""
        if self._task.again:
            return False
        try:
            changed = work.source.stat().st_mtime
            paths = (path_of(work, output, suffix) for output in self._task.outputs.values())
            return all(path.stat().st_mtime >= changed for path in paths)
        except FileNotFoundError:
            return False


def _is_hopeless(error: Exception) -> bool:
    """Return whether every further picture would fail as well."""
    if isinstance(error, NotWritten):
        return error.hopeless
    return isinstance(error, HOPELESS) and not isinstance(error, BrokenOff)


def in_words(error: Exception, source: Path) -> str:
    """Return one line that says what went wrong."""
    if isinstance(error, SamserveError):
        text = error.message
    elif isinstance(error, FileNotFoundError) and error.filename is not None:
        text = f"there is no file {error.filename}"
    elif isinstance(error, OSError) and error.strerror:
        where = "" if error.filename in (None, str(source)) else f"{error.filename}: "
        text = f"{where}{error.strerror}"
    elif isinstance(error, MemoryError):
        text = "this machine has too little memory for it"
    else:
        text = str(error) or type(error).__name__
    return " ".join(text.split())
