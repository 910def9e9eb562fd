"""This program decodes pictures for a worker, in a process that can be stopped.

    python -m samserve.pictures.decoder_child CHANNEL INPUT OUTPUT ADDRESS_SPACE WORKER

`decoder_process.DecoderProcess` starts it and talks to it. The arguments are three open files, a
number of bytes, and the worker's process id.

The program's first process imports the codecs and decodes nothing. It forks the decoder, and forks
it anew whenever the decoder has ended. So a picture that crashes the decoder, or is stopped, costs
the next picture a fork and no start of Python. The first process has one thread, so that it may
fork.

The decoder takes jobs from a channel of messages. It reads the file's bytes from one file in
memory, and writes the pixels into another.

What bounds the decoder, whatever a picture makes of it:

- The address space has a limit (RLIMIT_AS), and so have the files that it writes (RLIMIT_FSIZE).
- The worker stops it when it has used its CPU time.
- It writes no core dumps, and it ends with its parent. It has no other open files, and none of
  the worker's environment variables but those that Python needs.
- If the machine runs out of memory, the kernel ends it before other processes.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import sys
from pathlib import Path
from typing import Any

import imagecodecs

from samserve import parents
from samserve.errors import SamserveError

from .decoding import declared_pixels, decode_page

MAX_MESSAGE = 2**16
"""The largest message on the channel, in bytes."""

WORN_OUT_BYTES = 2**28
"""A decoder that has taken so much memory ends after its picture. That gives the memory back."""

_LEAVE = 3  # the exit status of a decoder whose worker has closed the channel


def main() -> None:
    channel_fd, input_fd, output_fd, address_space, worker = (int(text) for text in sys.argv[1:])
    parents.die_with_parent(worker)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))
    resource.setrlimit(resource.RLIMIT_FSIZE, (address_space, address_space))
    with contextlib.suppress(OSError):  # there is no such file outside Linux
        Path("/proc/self/oom_score_adj").write_text("1000")
    # imagecodecs imports a codec when it is first used.
    _ = imagecodecs.jpeg8_decode, imagecodecs.lerc_decode, imagecodecs.webp_decode
    _ = imagecodecs.packints_decode, imagecodecs.delta_decode, imagecodecs.floatpred_decode
    _ = imagecodecs.bitorder_decode, imagecodecs.lzw_decode, imagecodecs.zlib_decode
    _ = imagecodecs.packbits_decode, imagecodecs.lzma_decode, imagecodecs.zstd_decode
    channel = socket.socket(fileno=channel_fd)
    this = os.getpid()
    while True:
        decoder = os.fork()
        if decoder == 0:
            parents.die_with_parent(this)
            _be_quiet()
            channel.send(json.dumps({"decoder": os.getpid()}).encode())
            _decode_all(channel, input_fd, output_fd)
        _, status = os.waitpid(decoder, 0)
        code = os.waitstatus_to_exitcode(status)
        if code == _LEAVE:
            return
        channel.send(json.dumps({"ended": decoder, "status": code}).encode())


def _be_quiet() -> None:
    """Discard what codecs print about a picture."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os.close(nowhere)


def _decode_all(channel: socket.socket, input_fd: int, output_fd: int) -> None:
    """Decode pictures until the worker closes the channel, or this process takes much memory."""
    while True:
        message = channel.recv(MAX_MESSAGE)
        if not message:
            os._exit(_LEAVE)
        job = json.loads(message)
        try:
            answer = _decoded(job, input_fd, output_fd)
        except SamserveError as exc:
            answer = {"error": type(exc).__name__, "message": exc.message, "field": exc.field}
        except MemoryError:
            answer = {"error": "MemoryError"}
        # Pages that the decoder has taken stay with it, so a fresh one is cheaper than to keep it.
        leaves = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > WORN_OUT_BYTES
        channel.send(json.dumps({"job": job["job"], "leaves": leaves, **answer}).encode())
        if leaves:
            os._exit(0)


def _decoded(job: dict[str, Any], input_fd: int, output_fd: int) -> dict[str, Any]:
    """Decode the picture of a job, and write its pixels into the output.

    Raises:
        SamserveError: see `decode_page`.
        MemoryError: it takes more memory than the limit.
    """
    data = os.pread(input_fd, job["size"], 0)
    pixels = declared_pixels(data, job["page"])
    if pixels is not None and job["light_pixels"] < pixels <= job["max_pixels"]:
        return {"too_heavy": pixels}
    decoded = decode_page(data, job["max_pixels"], job["field"], job["page"])
    del data
    content = decoded.pixels.data.cast("B")
    written = 0
    while written < len(content):
        written += os.pwrite(output_fd, content[written:], written)
    height, width, _ = decoded.pixels.shape
    return {"height": height, "width": width, "pages": decoded.pages}


if __name__ == "__main__":
    main()
