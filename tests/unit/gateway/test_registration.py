"""The gateway's part of a registration: it is complete, or it leaves nothing.

A small program replaces the process that registers weights, and a subclass of the client replaces
TorchServe, because both must fail in every way here. tests/server uses the real ones.
"""

from __future__ import annotations

import asyncio
import fcntl
import sys
import textwrap
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import SecretStr

from samserve.errors import (
    Conflict,
    Forbidden,
    InvalidField,
    InvalidWeights,
    NotFound,
    SamserveError,
    TooLarge,
    Unauthorized,
    Unreachable,
)
from samserve_gateway.readiness import Readiness
from samserve_gateway.registration import RegisterRequest, Registration
from samserve_gateway.settings import Settings
from samserve_gateway.torchserve import Answer, TorchServe, TorchServeError
from samserve_gateway.weights import Weights

TOKEN = "a token of some length"
DEFAULT = {"type": "vit_t", "name": "default", "url": "https://example.org/mobile_sam.pt"}
ASKED = RegisterRequest(type="vit_t", name="mine", url="mine.pt")

PLACES_ALL = """
kept = Path(request["weights_dir"], "registered")
(kept / "vit_t.mine.pt").touch()
(kept / "vit_t.mine.json").touch()
(kept / "vit_t.mine-compiled").mkdir()
(kept / "vit_t.mine-compiled" / "encoder.xml").touch()
Path(request["model_store"], "vit_t.mine.mar").touch()
Path(request["models_dir"], "vit_t.mine").mkdir(parents=True)
say(registered={})
"""


class Lanes(TorchServe):
    """A TorchServe whose lanes have no workers.

    Attributes:
        refuses: lanes that cannot be created.
        mute: lanes that do not answer.
        making: set once the creation of a lane has begun.
    """

    def __init__(self) -> None:
        super().__init__("", "", Path())
        own = {"minWorkers": 2, "maxWorkers": 3, "batchSize": 4, "maxBatchDelay": 1, "workers": []}
        self.there: dict[str, dict[str, Any]] = {"vit_t": own, "vit_t-automask": own}
        self.refuses: set[str] = set()
        self.mute: set[str] = set()
        self.making = asyncio.Event()

    async def lanes(self) -> list[str]:
        return list(self.there)

    async def lane(self, name: str) -> dict[str, Any]:
        return self.there[name]

    async def worker_description(self, name: str) -> dict[str, Any]:
        if name in self.mute:
            raise TorchServeError("no answer", 504)
        return {"weights": DEFAULT if name == "vit_t" else {**DEFAULT, **ASKED.model_dump()}}

    async def register(self, name: str, archive: str, **settings: Any) -> None:
        if name in self.refuses:
            raise TorchServeError("Failed to start workers", 500)

        async def make() -> None:
            self.making.set()
            await asyncio.sleep(0.1)
            self.there[name] = {"archive": archive, "settings": settings, "workers": []}

        # TorchServe creates the lane even if the request is cancelled.
        await asyncio.shield(asyncio.create_task(make()))

    async def unregister(self, name: str) -> None:
        self.there.pop(name, None)

    async def predict(self, lane: str, *_: Any) -> Answer:
        return Answer(500 if lane in self.mute else 200, {}, b"")


class Bench:
    """A registration with its folders, its process and its TorchServe."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.weights_dir, self.store = folder / "weights", folder / "store"
        self.weights_dir.mkdir()
        self.store.mkdir()
        self.models_dir = folder / "models"
        self._job = folder / "register.py"
        command = (sys.executable, str(self._job))
        monkeypatch.setattr("samserve_gateway.registration.COMMAND", command)
        monkeypatch.setenv("SAMSERVE_ADMIN_TOKEN", TOKEN)
        self.torchserve = Lanes()
        settings = Settings(
            weights_dir=self.weights_dir,
            model_store=self.store,
            models_dir=self.models_dir,
            admin_token=SecretStr(TOKEN),
        )
        self.weights = Weights(self.torchserve)
        readiness = Readiness(self.torchserve, settings, self.weights.joining)
        self.registration = Registration(self.torchserve, self.weights, readiness, settings)

    def job(self, program: str) -> None:
        """Set the program that the process runs after it has read its request."""
        beginning = """
            import json, os, subprocess, sys, time
            from pathlib import Path
            request = json.load(sys.stdin)
            def say(**event):
                print(json.dumps(event), flush=True)
            Path(request["incoming"], "half").touch()
            parts = Path(request["parts"])
            parts.mkdir(exist_ok=True)
            (parts / "beginning").touch()
        """
        self._job.write_text(textwrap.dedent(beginning) + textwrap.dedent(program))

    def register(self) -> str:
        return asyncio.run(self.registration.register(ASKED))

    def left(self) -> set[str]:
        """Return the files and lanes besides those of before the registration."""
        folders = (self.weights_dir, self.store, self.models_dir)
        files = [path for folder in folders for path in folder.rglob("*")]
        names = {path.name for path in files if path.name not in ("registered", ".lock")}
        return names | set(self.torchserve.there) - {"vit_t", "vit_t-automask"}


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


# Who may


@pytest.mark.parametrize("given", [f"Bearer {TOKEN}", f"bearer  {TOKEN}"])
def test_the_administrator(bench: Bench, given: str) -> None:
    bench.registration.authorize(given)


@pytest.mark.parametrize(
    "given",
    [None, "", TOKEN, "Bearer", "Bearer ", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer é"],
)
def test_somebody_else(bench: Bench, given: str | None) -> None:
    with pytest.raises(Unauthorized):
        bench.registration.authorize(given)


@pytest.mark.parametrize("environ", [{}, {"SAMSERVE_ADMIN_TOKEN": ""}])
def test_nobody_without_a_token(environ: dict[str, str]) -> None:
    settings = Settings.from_environ(environ)
    weights = Weights(Lanes())
    readiness = Readiness(Lanes(), settings, set())
    with pytest.raises(Forbidden, match="SAMSERVE_ADMIN_TOKEN"):
        Registration(Lanes(), weights, readiness, settings).authorize(f"Bearer {TOKEN}")


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


PUBLISHED = {
    "vit_t": "https://github.com/ChaoningZhang/MobileSAM/raw/master/weights/mobile_sam.pt",
    "vit_b": "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_b_01ec64.pth",
    "vit_l": "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_l_0b3195.pth",
    "sam2_l": "https://dl.fbaipublicfiles.com/segment_anything_2/092824/sam2.1_hiera_large.pt",
}


def test_samapis_address_is_the_types_own_weights(bench: Bench) -> None:
    async def choose(wanted: str) -> str:
        return await bench.weights.family("vit_t", wanted)

    for _ in range(2):  # the second time it is known
        assert asyncio.run(choose(PUBLISHED["vit_t"])) == "vit_t"
    with pytest.raises(NotFound):
        asyncio.run(choose(PUBLISHED["vit_b"]))
    registered = RegisterRequest(type="vit_t", name="mine", url=PUBLISHED["vit_t"])
    with pytest.raises(Conflict, match="own weights are published") as refused:
        asyncio.run(bench.registration.register(registered))
    assert refused.value.field == "url"
    assert bench.left() == set()


def test_weights_registered_with_that_address_come_first(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Older servers allowed such a registration."""
    bench.torchserve.there["vit_t.mine"] = {}
    described = {"vit_t": DEFAULT, "vit_t.mine": {**DEFAULT, "name": "mine"}}
    described["vit_t.mine"]["url"] = PUBLISHED["vit_t"]

    async def describe(name: str) -> dict[str, Any]:
        return {"weights": described[name]}

    monkeypatch.setattr(bench.torchserve, "worker_description", describe)
    for _ in range(2):
        chosen = asyncio.run(bench.weights.family("vit_t", PUBLISHED["vit_t"]))
        assert chosen == "vit_t.mine"


# Types that are not loaded

OFFERED = ["vit_h", "vit_l", "vit_b", "vit_t", "sam2_l", "sam2_bp", "sam2_s", "sam2_t", "sam3"]
"""The model types that QuPath's extension offers."""


@pytest.mark.parametrize("model_type", OFFERED)
@pytest.mark.parametrize(
    ("loaded", "reason"),
    [
        (["vit_t"], "choose vit_t"),
        (["vit_t", "vit_b"], "choose vit_t or vit_b"),
        (["vit_t", "vit_b", "vit_h"], "choose vit_t, vit_b or vit_h"),
        ([], "nothing is loaded"),
    ],
)
def test_every_type_that_qupath_offers_has_an_entry(
    bench: Bench, model_type: str, loaded: list[str], reason: str
) -> None:
    bench.torchserve.there = {lane: {} for name in loaded for lane in (name, f"{name}-automask")}
    listed = asyncio.run(bench.weights.choices(model_type))
    if model_type in loaded:
        assert listed != []
        assert "not" not in listed[0]["name"]
        return
    where = "not loaded" if model_type.startswith("vit") else "not on this server"
    url = listed[0]["url"]
    assert listed == [{"type": model_type, "name": f"{where}: {reason}", "url": url}]
    assert url
    assert url not in PUBLISHED.values()
    bench.torchserve.there["vit_t"] = {}
    if model_type == "vit_t":  # it has been loaded since, and QuPath still has the address
        assert asyncio.run(bench.weights.family("vit_t", url)) == "vit_t"
        return
    with pytest.raises(NotFound):  # another type with that address
        asyncio.run(bench.weights.family("vit_t", url))


@pytest.mark.parametrize("model_type", ["vit_x", "vit_t-automask", "vit_t.mine", "", "sam2"])
def test_a_type_that_nobody_has_heard_of(bench: Bench, model_type: str) -> None:
    for weights in (bench.weights, Weights(bench.torchserve, "vit_t", ["vit_t"])):
        assert asyncio.run(weights.choices(model_type)) == []
        with pytest.raises(NotFound, match=r"no model type .* Loaded: vit_t"):
            asyncio.run(weights.answering(model_type))


@pytest.mark.parametrize("model_type", [name for name in OFFERED if name.startswith("sam")])
def test_sam_2_and_3_are_refused_for_what_they_are(bench: Bench, model_type: str) -> None:
    said = rf"{model_type} is not part of this server.*only vit_t, .*Loaded: vit_t\."
    with pytest.raises(NotFound, match=said) as refused:
        asyncio.run(bench.weights.answering(model_type))
    assert refused.value.field == "type"


@pytest.fixture
def standing_in(bench: Bench) -> Weights:
    """Weights with the stand-in vit_t, which has registered weights, too."""
    bench.torchserve.there["vit_t.mine"] = {}
    return Weights(bench.torchserve, "vit_t", ["vit_t"])


@pytest.mark.parametrize("model_type", [name for name in OFFERED if name != "vit_t"])
def test_a_stand_in_answers(standing_in: Weights, model_type: str) -> None:
    async def choose(wanted: str | None) -> str:
        answering = await standing_in.answering(model_type)
        return await standing_in.family(answering, wanted, model_type)

    listed = asyncio.run(standing_in.choices(model_type))
    assert [(entry["type"], entry["name"]) for entry in listed] == [
        (model_type, f"vit_t in place of {model_type}"),
        (model_type, f"vit_t mine in place of {model_type}"),
    ]
    own, mine = listed
    for wanted in (None, own["url"], own["name"], "default", PUBLISHED["vit_t"]):
        assert asyncio.run(choose(wanted)) == "vit_t"
    for wanted in (mine["url"], mine["name"], "mine"):
        assert asyncio.run(choose(wanted)) == "vit_t.mine"
    for name, address in PUBLISHED.items():
        if name == model_type:
            assert asyncio.run(choose(address)) == "vit_t"
        elif name != "vit_t":
            with pytest.raises(NotFound, match="vit_t stands in"):
                asyncio.run(choose(address))
    with pytest.raises(NotFound, match=f"registered for {model_type}, for which vit_t stands in"):
        asyncio.run(choose("https://example.org/other.pt"))


def test_a_type_that_is_loaded_answers_itself(bench: Bench, standing_in: Weights) -> None:
    assert asyncio.run(standing_in.answering("vit_t")) == "vit_t"
    bench.torchserve.there["vit_b"] = {}
    assert asyncio.run(standing_in.answering("vit_b")) == "vit_b"
    del bench.torchserve.there["vit_b"]
    standing_in.forget("vit_b")  # as a refused request does
    assert asyncio.run(standing_in.answering("vit_b")) == "vit_t"


def test_nothing_stands_in_for_what_must_be_there(bench: Bench) -> None:
    """The type's TorchServe may be unreachable for a moment only."""
    weights = Weights(bench.torchserve, "vit_t", ["vit_t", "vit_b"])
    assert asyncio.run(weights.answering("vit_b")) == "vit_b"
    assert asyncio.run(weights.choices("vit_b"))[0]["name"] == "not loaded: choose vit_t"
    assert asyncio.run(weights.answering("vit_l")) == "vit_t"


def test_a_stand_in_that_is_not_there(bench: Bench, standing_in: Weights) -> None:
    bench.torchserve.there = {"vit_b": {}, "vit_b-automask": {}}
    said = r"vit_l is not loaded\. Loaded: vit_b\. SAMSERVE_STAND_IN names vit_t, which is not"
    with pytest.raises(NotFound, match=said):
        asyncio.run(standing_in.answering("vit_l"))
    assert asyncio.run(standing_in.choices("vit_l"))[0]["name"] == "not loaded: choose vit_b"


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"SAMSERVE_STAND_IN": "vit_x"}, "STAND_IN is 'vit_x', which is no model type"),
        ({"SAMSERVE_STAND_IN": "sam2_l"}, "STAND_IN is 'sam2_l', which is no model type"),
        ({"SAMSERVE_STAND_IN": "on"}, "STAND_IN is 'on', which is no model type"),
        ({"SAMSERVE_STAND_IN": "vit_b"}, "STAND_IN is vit_b, which is not among"),
    ],
)
def test_a_bad_stand_in_stops_the_start(environ: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Settings.from_environ(environ)


def test_a_good_stand_in() -> None:
    assert Settings.from_environ({}).stand_in is None
    assert Settings.from_environ({"SAMSERVE_STAND_IN": ""}).stand_in is None
    environ = {"SAMSERVE_STAND_IN": "vit_b", "SAMSERVE_MODELS": "vit_t vit_b"}
    assert Settings.from_environ(environ).stand_in == "vit_b"


def test_weights_that_are_being_registered_are_not_chosen(bench: Bench) -> None:
    bench.torchserve.there["vit_t.mine"] = {}
    bench.weights.joining.add("vit_t.mine")
    with pytest.raises(NotFound):
        asyncio.run(bench.weights.family("vit_t", "mine"))
    assert asyncio.run(bench.weights.registered(["vit_t"])) == [DEFAULT]
    bench.weights.joining.clear()
    assert asyncio.run(bench.weights.family("vit_t", "mine")) == "vit_t.mine"


def test_after_a_restart_with_a_stand_in_qupaths_old_list_still_works(bench: Bench) -> None:
    """QuPath requests the list when the user chooses a model, not when the server restarts."""
    bench.torchserve.there = {lane: {} for lane in ("vit_t", "vit_t-automask")}
    [entry] = asyncio.run(bench.weights.choices("vit_l"))
    restarted = Weights(bench.torchserve, "vit_t", ["vit_t"])
    assert asyncio.run(restarted.answering("vit_l")) == "vit_t"
    assert asyncio.run(restarted.family("vit_t", entry["url"], "vit_l")) == "vit_t"


def test_a_type_that_should_be_loaded_is_the_servers_fault(bench: Bench) -> None:
    """If the server is starting, or its model failed, advice to add the model would be wrong."""
    bench.torchserve.there = {}
    weights = Weights(bench.torchserve, None, ["vit_t"])
    with pytest.raises(TorchServeError, match="should have it") as failed:
        raise asyncio.run(weights.not_loaded("vit_t"))
    assert failed.value.status == 503
    with pytest.raises(NotFound, match="make serve MODELS"):
        raise asyncio.run(weights.not_loaded("vit_b"))
