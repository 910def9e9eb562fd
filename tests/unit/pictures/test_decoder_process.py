"""Pictures are decoded in a child process, and the worst of them costs one picture."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from samserve.errors import InvalidField, InvalidImage, SamserveError, TooLarge
from samserve.pictures import decoder_process
from samserve.pictures.decoder_process import DecoderProcess, OutOfTime, TooHeavy
from samserve.pictures.decoding import decode_page
from tests.support.hostile_pictures import HOSTILE, interlaced_png
from tests.support.picture_files import HEIGHT, LIMIT, RGB, RGB_TAGS, SMOOTH, WIDTH, png, save, tiff
from tests.support.waiting import wait_for

ALL = 10**8


@pytest.fixture
def decoder() -> Iterator[DecoderProcess]:
    process = DecoderProcess()
    yield process
    process.close()


def read(decoder: DecoderProcess, data: bytes = b"", cpu_s: float = 60.0) -> np.ndarray:
    return decoder.decode(data or save(RGB, "PNG"), ALL, "image", 0, cpu_s=cpu_s).pixels


def still_works(decoder: DecoderProcess) -> bool:
    return np.array_equal(read(decoder), RGB)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_the_pixels_are_those_of_the_library(decoder: DecoderProcess, kind: str) -> None:
    for pixels in (RGB, SMOOTH, np.zeros((700, 900, 3), np.uint8) + 7):
        data = save(pixels, kind)
        decoded = decoder.decode(data, ALL, "image", 0, cpu_s=60)
        expected = decode_page(data, ALL, "image", 0)
        assert np.array_equal(decoded.pixels, expected.pixels)
        assert decoded.pages == expected.pages
        assert decoded.pixels.flags.writeable
        assert decoded.pixels.flags.c_contiguous
        assert 0 < decoder.used_s < 60


@pytest.mark.parametrize(
    ("data", "limit", "page", "error", "field"),
    [
        pytest.param(b"GIF89a", LIMIT, 0, InvalidImage, "prompts.2.b64mask", id="another kind"),
        pytest.param(save(RGB, "PNG")[:45], LIMIT, 0, InvalidImage, "prompts.2.b64mask", id="cut"),
        pytest.param(b"", LIMIT, 0, InvalidImage, "prompts.2.b64mask", id="no bytes"),
        pytest.param(save(RGB, "PNG"), 34, 0, TooLarge, "prompts.2.b64mask", id="too large"),
        pytest.param(png(99_999, 99_999, 8, 2), ALL, 0, TooLarge, "prompts.2.b64mask", id="a lie"),
        pytest.param(save(RGB, "TIFF"), LIMIT, 1, InvalidField, "page", id="no such page"),
    ],
)
def test_errors_are_those_of_the_library(
    decoder: DecoderProcess, data: bytes, limit: int, page: int, error: type, field: str
) -> None:
    with pytest.raises(SamserveError) as expected:
        decode_page(data, limit, "prompts.2.b64mask", page)
    with pytest.raises(error) as raised:
        decoder.decode(data, limit, "prompts.2.b64mask", page, cpu_s=60)
    assert raised.type is expected.type is error
    assert isinstance(raised.value, SamserveError)
    assert raised.value.body() == expected.value.body()
    assert raised.value.field == field
    assert still_works(decoder)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_picture_costs_no_more_than_its_time(decoder: DecoderProcess, name: str) -> None:
    """It is decoded, refused or stopped; the next picture is decoded as always."""
    with contextlib.suppress(InvalidImage, OutOfTime):
        decoder.decode(HOSTILE[name](), ALL, "image", 0, cpu_s=0.3)
    assert still_works(decoder)


def test_a_picture_that_takes_too_long_is_stopped(decoder: DecoderProcess) -> None:
    for _ in range(3):
        with pytest.raises(OutOfTime):
            read(decoder, interlaced_png(), cpu_s=0.05)
        assert still_works(decoder)


def test_a_decoder_that_waits_for_ever_is_stopped(decoder: DecoderProcess) -> None:
    """It uses no CPU time, so the clock on the wall stops it."""
    read(decoder)
    _, pid = decoder.pids
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(OutOfTime):
        read(decoder, cpu_s=0.02)
    assert still_works(decoder)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_a_crash_costs_one_picture(decoder: DecoderProcess, number: signal.Signals) -> None:
    slow = interlaced_png()
    read(decoder)
    _, pid = decoder.pids
    process = psutil.Process(pid)
    idle_s = process.cpu_times().user

    def crash() -> None:
        wait_for(lambda: process.cpu_times().user > idle_s + 0.1)
        process.send_signal(number)

    killer = threading.Thread(target=crash)
    killer.start()
    with pytest.raises(InvalidImage, match="decoder") as raised:
        read(decoder, slow)
    killer.join()
    assert raised.value.field == "image"
    assert (number.name in raised.value.message) == (number != signal.SIGKILL)
    assert still_works(decoder)


@pytest.mark.parametrize("which", [0, 1], ids=["the first process", "the decoder"])
def test_a_process_that_ends_between_pictures_is_replaced(
    decoder: DecoderProcess, which: int
) -> None:
    read(decoder)
    pid = decoder.pids[which]
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie")
    time.sleep(0.1)  # the first process forks a decoder anew
    assert still_works(decoder)
    assert pid not in decoder.pids


def test_a_picture_beyond_the_memory_is_refused() -> None:
    decoder = DecoderProcess(address_space=400 * 2**20)
    try:
        assert still_works(decoder)
        for data in (interlaced_png(), save(Image.new("RGB", (9000, 9000)), "JPEG")):
            with pytest.raises((TooLarge, InvalidImage)):
                read(decoder, data)
            assert still_works(decoder)
        with pytest.raises(TooLarge, match="more memory than the limit, 400 MiB"):
            read(decoder, save(Image.new("RGB", (9000, 9000)), "PNG"))
    finally:
        decoder.close()


def test_a_heavy_picture_is_not_decoded(decoder: DecoderProcess) -> None:
    """Its header says so; a picture over the limit stays an error."""
    wide = tiff([b""], RGB_TAGS, size=(700, 600))
    files = [save(Image.new("RGB", (700, 600)), kind) for kind in ("PNG", "JPEG", "WEBP", "BMP")]
    for data in (*files, wide):
        with pytest.raises(TooHeavy) as heavy:
            decoder.decode(data, ALL, "image", 0, cpu_s=60, light_pixels=700 * 600 - 1)
        assert heavy.value.pixels == 700 * 600
        with pytest.raises(TooLarge):
            decoder.decode(data, 100, "image", 0, cpu_s=60, light_pixels=10)
    decoded = decoder.decode(
        save(RGB, "PNG"), ALL, "image", 0, cpu_s=60, light_pixels=HEIGHT * WIDTH
    )
    assert np.array_equal(decoded.pixels, RGB)


def test_memory_comes_back_after_a_large_picture(decoder: DecoderProcess) -> None:
    read(decoder, save(Image.new("RGB", (8000, 8000)), "PNG"))
    assert still_works(decoder)
    _, pid = decoder.pids
    assert psutil.Process(pid).memory_info().rss < 150 * 2**20
    for fd in (decoder._input, decoder._output):
        assert os.fstat(fd).st_size < 2**20


def test_threads_take_turns(decoder: DecoderProcess) -> None:
    wrong: list[int] = []

    def work(grey: int) -> None:
        pixels = np.full((50 + grey, 40, 3), grey, np.uint8)
        for _ in range(5):
            if not np.array_equal(read(decoder, save(pixels, "PNG")), pixels):
                wrong.append(grey)

    threads = [threading.Thread(target=work, args=(grey,)) for grey in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_child_has_no_tokens_files_or_core_dumps(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SAMSERVE_ADMIN_TOKEN", "secret")
    with (tmp_path / "open").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        decoder = DecoderProcess()
        try:
            read(decoder)
            for pid in decoder.pids:
                process = psutil.Process(pid)
                assert not any(name.startswith("SAMSERVE") for name in process.environ())
                assert process.open_files() == []
                assert process.rlimit(psutil.RLIMIT_CORE) == (0, 0)
                assert process.rlimit(psutil.RLIMIT_AS)[0] == decoder_process.ADDRESS_SPACE
                assert process.num_threads() == 1
        finally:
            decoder.close()


def test_the_child_ends_with_its_worker() -> None:
    """Even if the worker is killed while a picture is decoded."""
    code = """if True:
        import sys
        from samserve.pictures.decoder_process import DecoderProcess
        from tests.support.hostile_pictures import interlaced_png
        decoder = DecoderProcess()
        decoder._child.ready()
        print(*decoder.pids, flush=True)
        decoder.decode(interlaced_png(), 10**8, "image", 0, cpu_s=60)
    """
    worker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert worker.stdout is not None
    children = [psutil.Process(int(pid)) for pid in worker.stdout.readline().split()]
    assert len(children) == 2
    wait_for(lambda: children[1].cpu_times().user > 0.05)
    worker.kill()
    worker.wait()
    worker.stdout.close()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


def test_close_ends_the_child() -> None:
    decoder = DecoderProcess()
    read(decoder)
    children = [psutil.Process(pid) for pid in decoder.pids]
    decoder.close()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
