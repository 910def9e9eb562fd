"""Weights registered while the server runs: fetched, checked, archived, given lanes; or nothing.

A job of its own, `scripts/register_weights.py`, does all but the last of these. It is another
process because it needs PyTorch, which the gateway does without; because it reads what
strangers wrote; and because it can be killed. The lanes then come about through TorchServe's
management API.

Whatever goes wrong on the way, or who cancels it, nothing of it is left: no lane, no file. Only
of a download that broke off the beginning is kept, to be gone on from; one at most.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hmac
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
    Forbidden,
    InvalidField,
    InvalidWeights,
    SamserveError,
    TooLarge,
    Unauthorized,
    Unreachable,
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

from .readiness import Readiness
from .settings import ADMIN_TOKEN, Settings
from .torchserve import TorchServe, TorchServeError
from .weights import Weights

logger = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "samserve.archives.register")
"""The process that fetches and checks the weights, and builds their archive."""

LOAD_TIMEOUT_S = 330.0
"""Longer than the models' startupTimeout, so that TorchServe's own answer is heard."""

_JOBS_ERRORS: dict[str, type[SamserveError]] = {
    kind.code: kind for kind in (InvalidField, InvalidWeights, TooLarge, Unreachable)
}


def _check_name(name: str) -> str:
    if not WEIGHTS_NAME.fullmatch(name):
        raise ValueError(
            "must be 1 to 64 letters, digits, '-' and '_', the first a letter or a digit; "
            "neither 'default' nor ending in '-automask'"
        )
    return name


class RegisterRequest(JsonBody):
    """`POST /sam/weights/`: weights to be registered."""

    type: str = Field(description="Model type that they are of; it must be loaded.")
    name: Annotated[str, AfterValidator(_check_name)] = Field(
        description="What `checkpoint_url` may call them.", examples=["nuclei"]
    )
    url: str = Field(
        min_length=1,
        max_length=2048,
        description="Where they are: an address that the server allows, or a file within its "
        "weights folder, as `file:///…` or by its path there.",
        examples=["nuclei.pt"],
    )


class Registration:
    """Registers weights, one at a time.

    Args:
        weights: learns of them.
        readiness: asks their lanes once before anybody else does.
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

    def authorize(self, authorization: str | None) -> None:
        """Whether who sends this `Authorization` may register weights.

        Raises:
            Forbidden: nobody may.
            Unauthorized: it is not the administrator.
        """
        token = self._settings.admin_token
        if token is None:
            raise Forbidden(
                f"Registering weights is off. It is allowed to whoever sends the token that the "
                f"server was started with in {ADMIN_TOKEN}."
            )
        scheme, _, given = (authorization or "").partition(" ")
        # Headers are bytes, which arrive here as Latin-1.
        right = hmac.compare_digest(
            given.strip().encode("latin-1"), token.get_secret_value().encode()
        )
        if scheme.lower() != "bearer" or not right:
            raise Unauthorized("Send the administrator's token as Authorization: Bearer <token>.")

    async def register(self, asked: RegisterRequest) -> str:
        """Register, and say so; or say that it was cancelled.

        Raises:
            Conflict: another one is under way, or the name or the URL is registered already.
            SamserveError: the weights cannot be had, or are none of this type.
            TorchServeError: TorchServe does not take them.
        """
        if self._work is not None:
            raise Conflict("Other weights are being registered. Try again when they are.")
        self._stopping = False
        self._progress = {"message": f"{asked.name}: starting", "percent": 0}
        self._work = asyncio.create_task(self._register(asked))
        try:
            await asyncio.wait({self._work})
            if self._work.cancelled():
                return f"The registration of {asked.name} ({asked.url}) was cancelled."
            self._work.result()
            return f"{asked.name} ({asked.url}) is registered."
        finally:
            # Still at work where our own caller has gone.
            self.cancel()
            await asyncio.gather(self._work, return_exceptions=True)
            self._work = None

    def cancel(self) -> None:
        """End what is under way, and let it clear away what it has made."""
        if self._work is not None and not self._stopping:
            self._stopping = True  # only once: a second one would interrupt the clearing away
            self._work.cancel()

    def progress(self) -> dict[str, Any] | None:
        """samapi's `message` and `percent` of the registration under way; None without one."""
        return None if self._work is None else self._progress

    async def _register(self, asked: RegisterRequest) -> None:
        family = registered_family(asked.type, asked.name)
        with self._alone():
            await self._check_new(asked, family)
            incoming = Path(tempfile.mkdtemp(prefix=".incoming-", dir=self._folder))
            self._weights.joining.add(family)
            resumable = False
            try:
                await self._run_job(asked, family, incoming)
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
        """No other gateway registers weights in this folder within the block."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                raise Conflict("Another server registers weights in this folder.") from exc
            for left in self._folder.glob(".incoming-*"):  # by a gateway that was killed
                shutil.rmtree(left)
            yield

    async def _check_new(self, asked: RegisterRequest, family: str) -> None:
        for known in await self._weights.registered([asked.type]):
            for field, value in (("name", asked.name), ("url", asked.url)):
                if value in (known["name"], known["url"]):
                    raise Conflict(
                        f"{value!r} is registered for {asked.type} already, as "
                        f"{known['name']!r} ({known['url']}).",
                        field,
                    )
        if is_default_address(asked.type, asked.url):
            raise Conflict(
                f"{asked.url!r} is where {asked.type}'s own weights are published, which every "
                "request for it gets that names no others.",
                "url",
            )
        for path in self._files(family):
            if path.exists():
                raise Conflict(f"There is a file {path.name} already.", "name")

    def _files(self, family: str) -> list[Path]:
        """What the job leaves in the end."""
        made = (f"{family}-{made}" for made in MADE_FROM_WEIGHTS)
        own = [self._folder / name for name in (f"{family}.pt", f"{family}.json", *made)]
        archive = self._settings.model_store / f"{family}.mar"
        return [*own, archive, self._settings.models_dir / family]

    async def _run_job(self, asked: RegisterRequest, family: str, incoming: Path) -> None:
        """Returns when all files are where they belong.

        Raises:
            SamserveError: what the job says is wrong.
            RuntimeError: it ended without a word.
        """
        request = {
            **asked.model_dump(),
            "incoming": str(incoming),
            "parts": str(self._parts),
            "weights_dir": str(self._settings.weights_dir),
            "model_store": str(self._settings.model_store),
            "models_dir": str(self._settings.models_dir),
            "origins": self._settings.weights_origins.split(),
            "max_bytes": self._settings.weights_max_bytes,
        }
        process = await asyncio.create_subprocess_exec(
            *COMMAND,
            env={name: value for name, value in os.environ.items() if name != ADMIN_TOKEN},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # with what it starts, to be killed together
        )
        try:
            if process.stdin is None or process.stdout is None:
                raise RuntimeError("the job has no pipes")
            process.stdin.write(json.dumps(request).encode())
            process.stdin.close()
            async for line in process.stdout:
                event = json.loads(line)
                if "error" in event:
                    said = event["error"]
                    raise _JOBS_ERRORS[said["code"]](said["message"], said["field"])
                if "registered" in event:
                    return
                self._progress = event
            status = await process.wait()
            raise RuntimeError(f"the job that registers {family} ended with status {status}")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()

    async def _load(self, family: str) -> None:
        """Lanes for the archive, with as many workers as their type's own have.

        Raises:
            TorchServeError: TorchServe or a worker does not take it.
        """
        for lane in lanes_of([family]):
            self._progress = {"message": f"{lane}: starting workers", "percent": 100}
            like = await self._torchserve.lane(lane_of(model_type_of(lane), mode_of(lane)))
            making = asyncio.create_task(
                self._torchserve.register(
                    lane,
                    family,
                    workers=max(1, like["minWorkers"]),
                    batch_size=like["batchSize"],
                    max_batch_delay=like["maxBatchDelay"],
                    timeout_s=LOAD_TIMEOUT_S,
                )
            )
            try:
                await asyncio.shield(making)
            finally:
                # TorchServe goes on when nobody waits, and a lane can be ended only once it is
                # there.
                await asyncio.gather(making, return_exceptions=True)
            await self._readiness.ask(lane)

    async def _undo(self, family: str) -> None:
        """No lane, no file."""
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
