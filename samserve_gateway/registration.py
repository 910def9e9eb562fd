"""Registers weights while the server runs.

Another process, `samserve.archives.register`, downloads the weights, checks them and builds their
archive. It is a process of its own because it needs PyTorch, which the gateway does not load;
because it reads files that strangers wrote; and because it can be killed. The gateway then creates
the lanes through TorchServe's management API.

If a step fails, or the registration is cancelled, no lane and no file is left. The one exception
is a download that broke off: its beginning is kept, and the next registration of that address
continues it. At most one such beginning is kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from samserve.errors import (
    Conflict,
    InvalidField,
    InvalidWeights,
    NoRoom,
    SamserveError,
    TooLarge,
    Unreachable,
    quoted,
)
from samserve.model_types import MADE_FROM_WEIGHTS, is_default_address
from samserve.serving.lanes import (
    REGISTERED,
    WEIGHTS_NAME,
    lane_of,
    lanes_of,
    mode_of,
    model_type_of,
    registered_family,
)
from samserve.serving.requests import JsonBody

from . import registration_room as room
from .readiness import Readiness
from .settings import ADMIN_TOKEN, Settings
from .torchserve import TorchServe
from .torchserve_answers import TorchServeError
from .weights import Weights

logger = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "samserve.archives.register")
"""The process that downloads and checks the weights, and builds their archive."""

LOAD_TIMEOUT_S = 330.0
"""Longer than the models' startupTimeout, so that TorchServe answers first."""

_PROCESS_ERRORS: dict[str, type[SamserveError]] = {
    kind.code: kind for kind in (InvalidField, InvalidWeights, NoRoom, TooLarge, Unreachable)
}


def _check_name(name: str) -> str:
    if not WEIGHTS_NAME.fullmatch(name):
        raise ValueError(
            "must be 1 to 64 letters, digits, '-' and '_', the first a letter or a digit; "
            "neither 'default' nor ending in '-automask'"
        )
    return name


class RegisterRequest(JsonBody):
    """The body of `POST /sam/weights/`."""

    type: str = Field(description="Model type of the weights. It must be loaded.")
    name: Annotated[str, AfterValidator(_check_name)] = Field(
        description="Name of the weights, by which `checkpoint_url` chooses them.",
        examples=["nuclei"],
    )
    url: str = Field(
        min_length=1,
        max_length=2048,
        description="Location of the weights: an address that the server allows, or a file in its "
        "weights folder, as `file:///…` or as a path relative to that folder.",
        examples=["nuclei.pt"],
    )


class Registration:
    """Registers weights, one registration at a time.

    Args:
        weights: keeps the new family from being chosen until its lanes are ready.
        readiness: probes the new lanes before any client uses them.
    """

    def __init__(
        self, torchserve: TorchServe, weights: Weights, readiness: Readiness, settings: Settings
    ) -> None:
        self._torchserve = torchserve
        self._weights = weights
        self._readiness = readiness
        self._settings = settings
        self._folder = settings.weights_dir / REGISTERED
        self._work: asyncio.Task[None] | None = None
        self._stopping = False
        self._progress: dict[str, Any] = {}

    async def register(self, request: RegisterRequest) -> str:
        """Register weights. Return a sentence that says that they are registered, or cancelled.

        Raises:
            Conflict: another registration is under way, or the name or URL is registered already.
            NoRoom: there are too many weights, or too little memory or disk.
            SamserveError: the weights cannot be downloaded, or are not of this type.
            TorchServeError: TorchServe or a worker refuses the weights.
        """
        if self._work is not None:
            raise Conflict("Other weights are being registered. Try again when that has ended.")
        self._stopping = False
        self._progress = {"message": f"{request.name}: starting", "percent": 0}
        self._work = asyncio.create_task(self._register(request))
        try:
            await asyncio.wait({self._work})
            if self._work.cancelled():
                return f"The registration of {request.name} ({request.url[:100]}) was cancelled."
            self._work.result()
            return f"{request.name} ({request.url[:100]}) is registered."
        finally:
            # If the client has gone, this coroutine was cancelled and the work still runs.
            self.cancel()
            await asyncio.gather(self._work, return_exceptions=True)
            self._work = None

    def cancel(self) -> None:
        """Cancel the registration under way. It then removes its lanes and files."""
        if self._work is not None and not self._stopping:
            self._stopping = True  # cancelling a second time would interrupt the removal
            self._work.cancel()

    def progress(self) -> dict[str, Any] | None:
        """Return samapi's `message` and `percent`; None if no registration is under way."""
        return None if self._work is None else self._progress

    async def _register(self, request: RegisterRequest) -> None:
        family = registered_family(request.type, request.name)
        with self._alone():
            await self._check_new(request, family)
            room.check_number(self._folder, self._settings.max_weights)
            await room.check_memory(self._torchserve, request.type)
            incoming = Path(tempfile.mkdtemp(prefix=".incoming-", dir=self._folder))
            self._weights.joining.add(family)
            resumable = False
            try:
                await self._run_process(request, family, incoming)
                await self._load(family)
            except BaseException as error:
                resumable = isinstance(error, Unreachable)
                await self._undo(family)
                raise
            finally:
                self._weights.joining.discard(family)
                shutil.rmtree(incoming)
                if not resumable:
                    shutil.rmtree(self._parts, ignore_errors=True)

    @property
    def _parts(self) -> Path:
        return self._folder / ".parts"

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Lock the folder of registered weights against other gateways within the block.

        Raises:
            Conflict: another gateway has the lock.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                raise Conflict("Another server is registering weights in this folder.") from exc
            for incoming in self._folder.glob(".incoming-*"):  # left by a gateway that was killed
                shutil.rmtree(incoming)
            yield

    def remove_leftovers(self) -> None:
        """Remove what a registration has left whose gateway was killed. Do it at the start."""
        if self._folder.is_dir():
            with contextlib.suppress(Conflict), self._alone():
                pass  # `_alone` removes it

    async def _check_new(self, request: RegisterRequest, family: str) -> None:
        for known in await self._weights.registered([request.type]):
            for field, value in (("name", request.name), ("url", request.url)):
                if value in (known["name"], known["url"]):
                    raise Conflict(
                        f"{quoted(value)} is registered for {request.type} already, as "
                        f"{known['name']!r} ({known['url'][:100]}).",
                        field,
                    )
        if is_default_address(request.type, request.url):
            raise Conflict(
                f"{quoted(request.url)} is the address at which {request.type}'s own weights are "
                "published. Requests that choose no other weights use those.",
                "url",
            )
        for path in self._files(family):
            if path.exists():
                raise Conflict(f"A file {path.name} exists already.", "name")

    def _files(self, family: str) -> list[Path]:
        """Return the files and folders of registered weights."""
        derived = (f"{family}-{suffix}" for suffix in MADE_FROM_WEIGHTS)
        names = (f"{family}.pt", f"{family}.json", *derived)
        archive = self._settings.model_store / f"{family}.mar"
        unpacked = self._settings.models_dir / family
        return [*(self._folder / name for name in names), archive, unpacked]

    async def _run_process(self, request: RegisterRequest, family: str, incoming: Path) -> None:
        """Run the process that downloads the weights and builds their archive, to its end.

        Raises:
            SamserveError: the process says what is wrong with the weights.
            RuntimeError: the process ended without a result.
        """
        job = {
            **request.model_dump(),
            "incoming": str(incoming),
            "parts": str(self._parts),
            "weights_dir": str(self._settings.weights_dir),
            "model_store": str(self._settings.model_store),
            "models_dir": str(self._settings.models_dir),
            "origins": self._settings.weights_origins.split(),
            "max_bytes": self._settings.weights_max_bytes,
            "download_s": self._settings.weights_timeout_s,
            "min_rate": self._settings.weights_min_rate,
        }
        process = await asyncio.create_subprocess_exec(
            *COMMAND,
            str(os.getpid()),
            env={name: value for name, value in os.environ.items() if name != ADMIN_TOKEN},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # a process group, which is killed as a whole
        )
        try:
            if process.stdin is None or process.stdout is None:
                raise RuntimeError("the process has no pipes")
            process.stdin.write(json.dumps(job).encode())
            process.stdin.close()
            async for line in process.stdout:
                event = json.loads(line)
                if "error" in event:
                    error = event["error"]
                    raise _PROCESS_ERRORS[error["code"]](error["message"], error["field"])
                if "registered" in event:
                    return
                self._progress = event
            status = await process.wait()
            raise RuntimeError(f"the process that registers {family} ended with status {status}")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()

    async def _load(self, family: str) -> None:
        """Create the lanes of the archive, with as many workers as the lanes of its model type.

        Raises:
            TorchServeError: TorchServe or a worker refuses the archive.
        """
        for lane in lanes_of([family]):
            self._progress = {"message": f"{lane}: starting workers", "percent": 100}
            template = await self._torchserve.lane(lane_of(model_type_of(lane), mode_of(lane)))
            creating = asyncio.create_task(
                self._torchserve.register(
                    lane,
                    family,
                    workers=max(1, template["minWorkers"]),
                    batch_size=template["batchSize"],
                    max_batch_delay=template["maxBatchDelay"],
                    timeout_s=LOAD_TIMEOUT_S,
                )
            )
            try:
                await asyncio.shield(creating)
            finally:
                # TorchServe creates the lane even if the request is cancelled, and a lane can be
                # unregistered only after that.
                await asyncio.gather(creating, return_exceptions=True)
            await self._readiness.probe_now(lane)

    async def _undo(self, family: str) -> None:
        """Remove the lanes and the files of the family."""
        for lane in lanes_of([family]):
            try:
                await self._torchserve.unregister(lane)
            except TorchServeError as error:
                logger.warning("Lane %s could not be unregistered: %s", lane, error)
        self._weights.forget(family)
        for path in self._files(family):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
