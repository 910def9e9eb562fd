"""The gateway's part of a registration: it is complete, or it leaves nothing.

The process and TorchServe are replaced, because both must fail in every way here. tests/server uses
the real ones.
"""

from __future__ import annotations

import asyncio
import fcntl
from pathlib import Path

import psutil
import pytest

from samserve.errors import (
    Conflict,
    InvalidField,
    InvalidWeights,
    NotFound,
    SamserveError,
    TooLarge,
    Unreachable,
)
from samserve_gateway.registration import RegisterRequest, Registration
from samserve_gateway.settings import Settings
from samserve_gateway.torchserve import TorchServeError
from tests.support.registration import ASKED, DEFAULT, PLACES_ALL, TOKEN, Bench


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def test_lanes_like_those_of_the_type(bench: Bench) -> None:
    bench.job(PLACES_ALL)
    assert bench.register() == "mine (mine.pt) is registered."
    for lane in ("vit_t.mine", "vit_t.mine-automask"):
        made = bench.torchserve.there[lane]
        assert made["archive"] == "vit_t.mine"
        del made["settings"]["timeout_s"]
        assert made["settings"] == {"workers": 2, "batch_size": 4, "max_batch_delay": 1}
    assert asyncio.run(bench.weights.family("vit_t", "mine.pt")) == "vit_t.mine"
    assert not bench.weights.joining
    assert bench.registration.progress() is None
    assert not [name for name in bench.left() if name.startswith(".")]


@pytest.mark.parametrize("lane", ["vit_t.mine", "vit_t.mine-automask"])
@pytest.mark.parametrize("way", ["refuses", "mute"])
def test_a_lane_that_cannot_be_made_leaves_nothing(bench: Bench, lane: str, way: str) -> None:
    """Neither lane is left, and the next registration of the name succeeds."""
    bench.job(PLACES_ALL)
    getattr(bench.torchserve, way).add(lane)
    with pytest.raises(TorchServeError):
        bench.register()
    assert bench.left() == set()
    with pytest.raises(NotFound):
        asyncio.run(bench.weights.family("vit_t", "mine"))
    getattr(bench.torchserve, way).clear()
    bench.register()


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("invalid_field", InvalidField),
        ("invalid_weights", InvalidWeights),
        ("too_large", TooLarge),
        ("unreachable", Unreachable),
    ],
)
def test_what_the_job_refuses(bench: Bench, code: str, error: type[SamserveError]) -> None:
    said = {"code": code, "message": "Why.", "field": "url"}
    bench.job(f"say(error={said!r})")
    with pytest.raises(error) as refused:
        bench.register()
    assert refused.value.body() == {"error": said}
    # The beginning of a download is kept only if a later request can continue it.
    kept = {".parts", "beginning"} if error is Unreachable else set()
    assert bench.left() == kept


@pytest.mark.parametrize("end", ["sys.exit(3)", "os.kill(os.getpid(), 9)", "1 / 0"])
def test_a_job_that_dies(bench: Bench, end: str) -> None:
    bench.job(PLACES_ALL.replace("say(registered={})", end))
    with pytest.raises(RuntimeError, match="ended with status"):
        bench.register()
    assert bench.left() == set()


def test_the_job_is_not_told_the_token(bench: Bench) -> None:
    bench.job(
        """
        told = {"code": "too_large", "message": str([dict(os.environ), sys.argv, request])}
        say(error={**told, "field": None})
        """
    )
    with pytest.raises(TooLarge) as refused:
        bench.register()
    assert "PATH" in refused.value.message
    assert TOKEN not in refused.value.message


SLEEPS = """
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
say(message="half", percent=50, pids=[os.getpid(), child.pid])
time.sleep(600)
"""


async def half_done(registration: Registration) -> list[int]:
    """Wait until the process has reported progress. Return the pids of it and its child."""
    while not (progress := registration.progress()) or "pids" not in progress:
        await asyncio.sleep(0.01)
    pids: list[int] = progress["pids"]
    assert all(psutil.pid_exists(pid) for pid in pids)
    return pids


def gone(pids: list[int]) -> bool:
    alive = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    return not psutil.wait_procs(alive, timeout=5)[1]


def test_cancelling_ends_every_process(bench: Bench) -> None:
    bench.job(SLEEPS)

    async def cancelled() -> tuple[str, list[int]]:
        work = asyncio.create_task(bench.registration.register(ASKED))
        pids = await half_done(bench.registration)
        for _ in range(3):
            bench.registration.cancel()
        return await work, pids

    said, pids = asyncio.run(cancelled())
    assert said == "The registration of mine (mine.pt) was cancelled."
    assert gone(pids)
    assert bench.left() == set()
    bench.job(PLACES_ALL)
    assert "is registered" in bench.register()


def test_cancelling_while_a_lane_is_being_made(bench: Bench) -> None:
    bench.job(PLACES_ALL)

    async def cancelled() -> str:
        work = asyncio.create_task(bench.registration.register(ASKED))
        await bench.torchserve.making.wait()
        bench.registration.cancel()
        said = await work
        await asyncio.sleep(0.2)
        return said

    assert asyncio.run(cancelled()) == "The registration of mine (mine.pt) was cancelled."
    assert bench.left() == set()


def test_a_client_that_goes_cancels(bench: Bench) -> None:
    bench.job(SLEEPS)

    async def left_alone() -> list[int]:
        work = asyncio.create_task(bench.registration.register(ASKED))
        pids = await half_done(bench.registration)
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        return pids

    assert gone(asyncio.run(left_alone()))
    assert bench.left() == set()
    assert bench.registration.progress() is None


def test_one_at_a_time(bench: Bench) -> None:
    bench.job(SLEEPS)

    async def two() -> None:
        work = asyncio.create_task(bench.registration.register(ASKED))
        await half_done(bench.registration)
        with pytest.raises(Conflict):
            await bench.registration.register(ASKED)
        bench.registration.cancel()
        await work

    asyncio.run(two())
    with (bench.weights_dir / "registered" / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Conflict):
            bench.register()
    bench.job(PLACES_ALL)
    bench.register()


def test_cancelling_nothing(bench: Bench) -> None:
    bench.registration.cancel()
    bench.job(PLACES_ALL)
    assert "is registered" in bench.register()


@pytest.mark.parametrize(
    ("name", "url", "field"),
    [
        ("mine", "other.pt", "name"),
        ("other", "mine.pt", "url"),
        ("other", DEFAULT["url"], "url"),
        ("other", "mine", "url"),
    ],
)
def test_what_is_registered_already(bench: Bench, name: str, url: str, field: str) -> None:
    bench.job(PLACES_ALL)
    bench.register()
    before = bench.left()
    with pytest.raises(Conflict) as refused:
        asyncio.run(bench.registration.register(RegisterRequest(type="vit_t", name=name, url=url)))
    assert refused.value.field == field
    assert bench.left() == before


def test_files_of_that_name_are_not_touched(bench: Bench) -> None:
    """The files may belong to weights whose lanes are missing at the moment."""
    (bench.weights_dir / "registered").mkdir()
    (bench.weights_dir / "registered" / "vit_t.mine.pt").write_text("precious")
    bench.job(PLACES_ALL)
    with pytest.raises(Conflict):
        bench.register()
    assert (bench.weights_dir / "registered" / "vit_t.mine.pt").read_text() == "precious"


def test_what_a_killed_gateway_left_is_cleared_away(bench: Bench) -> None:
    left = bench.weights_dir / "registered" / ".incoming-x"
    left.mkdir(parents=True)
    (left / "half").touch()
    bench.job(PLACES_ALL)
    bench.register()
    assert not left.exists()


def test_a_bad_token_stops_the_start_and_is_not_told() -> None:
    with pytest.raises(ValueError, match="admin_token") as refused:
        Settings.from_environ({"SAMSERVE_ADMIN_TOKEN": "shrt"})
    assert "shrt" not in str(refused.value)
    assert TOKEN not in repr(Settings.from_environ({"SAMSERVE_ADMIN_TOKEN": TOKEN}))


@pytest.mark.parametrize("origins", ["github.com", "ftp://x", "https://x/path", "https://a@b"])
def test_what_is_no_origin(origins: str) -> None:
    with pytest.raises(ValueError, match="weights_origins"):
        Settings.from_environ({"SAMSERVE_WEIGHTS_ORIGINS": f"https://github.com {origins}"})


# Which weights


def test_a_lane_that_cannot_be_asked_is_in_nobodys_way(bench: Bench) -> None:
    bench.torchserve.there |= {"vit_t.other": {}, "vit_t.mine": {}}
    bench.torchserve.mute = {"vit_t.other"}

    async def choose(wanted: str | None) -> str:
        return await bench.weights.family("vit_t", wanted)

    assert asyncio.run(choose(None)) == "vit_t"
    assert asyncio.run(choose("mine")) == "vit_t.mine"
    assert asyncio.run(choose(DEFAULT["url"])) == "vit_t"
    with pytest.raises(TorchServeError):  # the mute lane may have these weights
        asyncio.run(choose("unknown"))
    bench.torchserve.mute = set()
    with pytest.raises(NotFound, match=r"'default' .*, 'mine' "):
        asyncio.run(choose("unknown"))


def test_a_gateway_removes_at_its_start_what_a_killed_one_has_left(bench: Bench) -> None:
    bench.registration.remove_leftovers()
    assert bench.left() == set()  # there is no folder yet
    folder = bench.weights_dir / "registered"
    (folder / ".incoming-x").mkdir(parents=True)
    (folder / ".incoming-x" / "vit_t.mine.pt").touch()
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another gateway registers weights there
        bench.registration.remove_leftovers()
        assert (folder / ".incoming-x").exists()
    bench.registration.remove_leftovers()
    assert bench.left() == set()
