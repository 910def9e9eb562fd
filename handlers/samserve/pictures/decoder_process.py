"""A DecoderProcess decodes pictures in a child process, within limits of CPU time and memory.

The codecs are C libraries, and strangers choose the bytes that they read. In the worker itself, a
picture that crashes a codec would end the worker, and a picture that takes a minute could not be
stopped. In a child, such a picture costs one request. `decoder_child` is the child's side.

The file's bytes and the pixels pass through two files in memory, so that nothing is pickled. The
pixels are copied out of theirs: the child could still change or cut it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import samserve
from samserve.errors import InvalidField, InvalidImage, SamserveError, TooLarge

from .decoding import Decoded

logger = logging.getLogger(__name__)

ADDRESS_SPACE = 3 * 2**30
"""The limit of the child's address space in bytes."""

START_TIMEOUT_S = 60.0
"""The longest wait for a child. It starts in less than a second."""

_WALL_FACTOR = 10
"""A child that waits more than it computes is stopped after so many times its CPU time."""

_KEPT_BYTES = 2**25
"""The files in memory give back what is beyond this size after a picture."""

_MAX_MESSAGE = 2**16
_LONGEST_POLL_S = 0.25
_THREADS = 2  # some codecs use two, so CPU time can pass twice as fast as the clock's

_ERRORS: dict[str, type[SamserveError]] = {
    error.__name__: error for error in (InvalidField, InvalidImage, TooLarge)
}
"""The errors of `decode_page`."""

_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "LANG", "TMPDIR", "HOME", "PYTHONHOME")


class OutOfTime(Exception):
    """Decoding a picture has taken all its CPU time, and was stopped."""


class TooHeavy(Exception):
    """The header of a picture declares more pixels than may be decoded here."""

    def __init__(self, pixels: int) -> None:
        super().__init__(pixels)
        self.pixels = pixels


class DecoderError(RuntimeError):
    """The child process cannot be started."""


class DecoderProcess:
    """A child process that decodes one picture at a time; safe between threads.

    It is started at once, so that the first picture need not wait, and again whenever it has ended.

    Args:
        address_space: the limit of the child's address space in bytes.

    Attributes:
        used_s: the CPU time in seconds that the last picture took, whatever became of it.
    """

    def __init__(self, address_space: int = ADDRESS_SPACE) -> None:
        self.used_s = 0.0
        self._address_space = address_space
        self._lock = threading.Lock()
        self._input = _file_in_memory("samserve-picture")
        self._output = _file_in_memory("samserve-pixels")
        self._jobs = 0
        self._child: _Child | None = None
        self._start()

    def close(self) -> None:
        """End the child."""
        with self._lock:
            if self._child is not None:
                self._child.close()
                self._child = None
            for fd in (self._input, self._output):
                os.close(fd)
            self._input = self._output = -1

    @property
    def pids(self) -> list[int]:
        """The ids of the child's processes."""
        return [] if self._child is None else self._child.pids

    def decode(
        self,
        data: bytes,
        max_pixels: int,
        field: str,
        page: int,
        *,
        cpu_s: float,
        light_pixels: int | None = None,
    ) -> Decoded:
        """Decode a page of an image file, as `decoding.decode_page` does.

        Args:
            cpu_s: the CPU time after which the child is stopped.
            light_pixels: a picture with more pixels, by its header, is not decoded.

        Raises:
            OutOfTime: it took more than `cpu_s`.
            TooHeavy: it has more than `light_pixels`.
            SamserveError: see `decode_page`; also if the child crashes or needs too much memory.
            DecoderError: the child cannot be started.
        """
        with self._lock:
            child = self._child if self._child is not None and self._child.ready() else None
            child = child or self._start()
            self._jobs += 1
            job = {
                "job": self._jobs,
                "size": len(data),
                "max_pixels": max_pixels,
                "light_pixels": max_pixels if light_pixels is None else light_pixels,
                "field": field,
                "page": page,
            }
            _write(self._input, data)
            try:
                return self._answer(child.ask(job, cpu_s), max_pixels, field)
            finally:
                self.used_s = child.used_s
                for fd in (self._input, self._output):
                    if os.fstat(fd).st_size > _KEPT_BYTES:
                        os.ftruncate(fd, 0)

    def _start(self) -> _Child:
        if self._child is not None:
            self._child.close()
        self._child = _Child(self._input, self._output, self._address_space)
        return self._child

    def _answer(self, answer: dict[str, Any], max_pixels: int, field: str) -> Decoded:
        """Return what the child decoded, or raise the error that it reports."""
        if "too_heavy" in answer:
            raise TooHeavy(answer["too_heavy"])
        if "status" in answer:
            raise InvalidImage(_why_it_ended(answer["status"]), field)
        error = answer.get("error")
        if error == "MemoryError":
            raise TooLarge(
                f"decoding the image takes more memory than the limit, "
                f"{self._address_space // 2**20} MiB",
                field,
            )
        if error is not None:
            raise _ERRORS[error](answer["message"], answer["field"])
        height, width = answer["height"], answer["width"]
        if height * width > max_pixels:
            raise DecoderError(f"The picture decoder made {width} x {height} pixels.")
        return Decoded(_read(self._output, height, width), answer["pages"])


class _Child:
    """The running child: its channel, and the decoder that it has forked last."""

    def __init__(self, input_fd: int, output_fd: int, address_space: int) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, _KIND_OF_CHANNEL)
        self._channel = ours
        self._decoder: int | None = None
        self.used_s = 0.0
        with theirs:
            fds = [theirs.fileno(), input_fd, output_fd]
            command = [sys.executable, "-m", "samserve.pictures.decoder_child"]
            command += [str(number) for number in (*fds, address_space, os.getpid())]
            self._process = subprocess.Popen(
                command,
                pass_fds=fds,
                cwd="/",
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )

    @property
    def pids(self) -> list[int]:
        return [self._process.pid] + ([] if self._decoder is None else [self._decoder])

    def close(self) -> None:
        self._channel.close()
        self._process.kill()  # the decoder ends with it
        self._process.wait()

    def ready(self) -> bool:
        """Wait until there is a decoder. Return False if the child has ended.

        Raises:
            DecoderError: there is none in time.
        """
        deadline = time.monotonic() + START_TIMEOUT_S
        try:
            # What came since the last picture: the decoder may have ended, and been forked anew.
            while self._decoder is None or self._has_message():
                self._channel.settimeout(max(0.001, deadline - time.monotonic()))
                if self._receive() is None:
                    return False
        except TimeoutError as exc:
            raise DecoderError(f"No picture decoder after {START_TIMEOUT_S:g} s.") from exc
        return True

    def ask(self, job: dict[str, Any], cpu_s: float) -> dict[str, Any]:
        """Send a job to the decoder, and return its answer, or how the decoder has ended.

        Raises:
            OutOfTime: the decoder took more CPU time than `cpu_s`; it was stopped.
            DecoderError: the child has ended.
        """
        if not self.ready() or self._decoder is None:
            raise DecoderError("The picture decoder has ended; its worker's log says why.")
        decoder = self._decoder
        deadline = time.monotonic() + _WALL_FACTOR * cpu_s
        before = used_until = _cpu_s(decoder)
        self.used_s = 0.0
        try:
            self._channel.send(json.dumps(job).encode())
        except BrokenPipeError as exc:
            raise DecoderError("The picture decoder has ended.") from exc
        while True:
            used_until = _cpu_s(decoder, used_until)
            self.used_s = used_until - before
            left = cpu_s - self.used_s
            if left <= 0 or time.monotonic() > deadline:
                self._stop(decoder)
                raise OutOfTime
            self._channel.settimeout(min(max(left / _THREADS, 0.002), _LONGEST_POLL_S))
            try:
                answer = self._receive()
            except TimeoutError:
                continue
            if answer is None:
                return {"status": self._process.wait()}
            if answer.get("job") == job["job"] or answer.get("ended") == decoder:
                self.used_s = _cpu_s(decoder, used_until) - before
                if answer.get("leaves"):  # its successor will announce itself
                    self._decoder = None
                return answer

    def _stop(self, decoder: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(decoder, signal.SIGKILL)
        self._decoder = None

    def _has_message(self) -> bool:
        self._channel.setblocking(False)
        try:
            self._channel.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            pass  # `_receive` will say that the child has ended
        return True

    def _receive(self) -> dict[str, Any] | None:
        """Return the next message; None if the child has ended."""
        try:
            message = self._channel.recv(_MAX_MESSAGE)
        except ConnectionResetError:
            return None
        if not message:
            return None
        fields: dict[str, Any] = json.loads(message)
        if "decoder" in fields:
            self._decoder = fields["decoder"]
        elif fields.get("ended") == self._decoder:
            self._decoder = None
        return fields


# Messages keep their bounds, and a child that dies leaves no half of one. macOS lacks this kind;
# its messages are datagrams, which keep their bounds, too.
_KIND_OF_CHANNEL = socket.SOCK_SEQPACKET if sys.platform == "linux" else socket.SOCK_DGRAM


def _environment() -> dict[str, str]:
    """Return the child's environment variables: no tokens, and nothing that starts threads."""
    kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    package = str(Path(samserve.__file__).parents[1])
    path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    return {
        **kept,
        "PYTHONPATH": path,
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        # As in the gateway: new pages for each picture would cost more than decoding it.
        "MALLOC_MMAP_THRESHOLD_": str(2**25),
        "MALLOC_TRIM_THRESHOLD_": str(2**28),
    }


def _cpu_s(pid: int, ended: float = 0.0) -> float:
    """Return the CPU time of a process in seconds, or `ended` if it has ended.

    Where the system has no clock for another process's CPU time, this is the time of day.
    """
    if sys.platform != "linux":
        return time.monotonic()
    try:
        # The number of a process's clock, as the C function clock_getcpuclockid makes it.
        return time.clock_gettime(~pid << 3 | 2)
    except OSError:
        return ended


def _why_it_ended(status: int) -> str:
    if status == -signal.SIGKILL:
        return "the image's decoder was killed, probably because the machine's memory ran out"
    if status < 0:
        with contextlib.suppress(ValueError):
            return (
                f"the image crashes its decoder ({signal.Signals(-status).name}), so it is not read"
            )
    return f"the image ends its decoder with status {status}, so it is not read"


def _file_in_memory(name: str) -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _write(fd: int, data: bytes) -> None:
    content, written = memoryview(data), 0
    while written < len(content):
        written += os.pwrite(fd, content[written:], written)


def _read(fd: int, height: int, width: int) -> NDArray[np.uint8]:
    pixels = np.empty((height, width, 3), np.uint8)
    content, read = pixels.data.cast("B"), 0
    while read < len(content):
        count = os.preadv(fd, [content[read:]], read)
        if not count:
            raise DecoderError("The picture decoder has written too few pixels.")
        read += count
    return pixels
