"""An AsyncClient has the calls of `samserve.Client` as coroutines, on aiohttp.

async with samserve.AsyncClient() as client:
    picture = await client.picture("cells.png")
    cells = await picture.automask(points_per_side=16)
"""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, Literal, TypeVar, overload

import aiohttp
from numpy.typing import ArrayLike

from samserve.bars import reporting
from samserve.objects.collection import Objects
from samserve.objects.interface import Progress
from samserve.objects.segmented import SegmentedObject
from samserve.pictures.sources import PictureFile, Source, read_source

from . import exchanges
from .address import address_of
from .client import CONNECT_S, TIMEOUT_S, broken, distrusted, silent, state_of, unreachable
from .connections import POOL_SIZE
from .errors import ServerUnreachable, UnexpectedAnswer
from .picture import PictureCore
from .status import ServerStatus, status
from .wire import EVENTS, Answer, Call, Exchange, Lines, Wait

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from samserve.parameters import AutomaskKeywords

T = TypeVar("T")


class AsyncClient:
    """A client of one server for asyncio. If a task is cancelled, so is the server's work.

    Args:
        url, key, model_type, weights, timeout, patience, verify: as those of `samserve.Client`.
    """

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        model_type: str | None = None,
        weights: str | None = None,
        timeout: float = TIMEOUT_S,
        patience: float = 60.0,
        verify: bool | str = True,
    ) -> None:
        self._address = address_of(url, key)
        self._server = state_of(self._address, model_type, weights, timeout, patience)
        self._verify = verify
        self._http: aiohttp.ClientSession | None = None

    @property
    def url(self) -> str:
        """The server's address."""
        return self._address.url

    async def picture(self, source: Source, page: int | None = None) -> AsyncPicture:
        """Return a picture in which the server finds objects; see `Client.picture`."""
        return AsyncPicture(self, await asyncio.to_thread(read_source, source, page))

    async def info(self) -> ServerStatus:
        """Return what the server says about itself: version, models, and how busy it is."""
        return await self._run(status(self._server))

    async def close(self) -> None:
        """Close all connections."""
        if self._http is not None:
            await self._http.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _session(self) -> aiohttp.ClientSession:
        # Made here and not earlier, because aiohttp wants a running loop.
        if self._http is None:
            trusted: bool | ssl.SSLContext = bool(self._verify)
            if isinstance(self._verify, str):
                trusted = ssl.create_default_context(cafile=self._verify)
            self._http = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=POOL_SIZE, ssl=trusted),
                trust_env=not self._address.is_loopback,
            )
        return self._http

    async def _run(self, exchange: Exchange[T]) -> T:
        """Make the calls of an exchange, and return what it returns."""
        try:
            step = next(exchange)
            while True:
                if isinstance(step, Wait):
                    await asyncio.sleep(step.seconds)
                    step = exchange.send(None)
                    continue
                try:
                    answer = await self._answer(step)
                except ServerUnreachable as error:
                    step = exchange.throw(error)
                else:
                    step = exchange.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            exchange.close()

    async def _answer(self, call: Call) -> Answer:
        try:
            return await self._request(call)
        except aiohttp.ClientSSLError as exc:
            raise distrusted(self.url, exc) from exc
        except aiohttp.ClientPayloadError as exc:
            raise broken(self.url) from exc
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as exc:
            raise unreachable(self.url) from exc
        except TimeoutError as exc:  # aiohttp's timeouts are of this class
            raise silent(self.url, call) from exc
        except aiohttp.ClientConnectionError as exc:
            raise broken(self.url) from exc
        except aiohttp.ClientError as exc:
            raise UnexpectedAnswer(f"{self.url} cannot be asked: {type(exc).__name__}.") from exc

    async def _request(self, call: Call) -> Answer:
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_S, sock_read=call.timeout_s
        )
        async with self._session().request(
            call.method,
            self.url + call.path,
            data=call.body or None,
            headers={"Accept-Encoding": "identity", **call.headers},
            timeout=timeout,
            allow_redirects=False,
        ) as response:
            headers = {name.lower(): value for name, value in response.headers.items()}
            if call.on_line is None or not headers.get("content-type", "").startswith(EVENTS):
                return Answer(response.status, headers, await response.read())
            lines = Lines(call.on_line)
            async for part in response.content.iter_any():
                lines.feed(part)
            return Answer(response.status, headers, b"")


class AsyncPicture(PictureCore):
    """A picture that a server segments, for asyncio; see `samserve.SegmentablePicture`."""

    def __init__(self, client: AsyncClient, file: PictureFile) -> None:
        super().__init__(client._server, file)
        self._client = client

    async def prepare(self) -> None:
        """Send the picture now, so that the first call finds it encoded."""
        await self._client._run(exchanges.prepare(self._server, self._sent))

    @overload
    async def segment(
        self,
        box: ArrayLike | None = None,
        *,
        points: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        refine: SegmentedObject | None = None,
        multimask_output: Literal[False] = False,
        return_logits: bool = False,
    ) -> SegmentedObject: ...

    @overload
    async def segment(
        self,
        box: ArrayLike | None = None,
        *,
        points: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        refine: SegmentedObject | None = None,
        multimask_output: Literal[True],
        return_logits: bool = False,
    ) -> Objects: ...

    @overload
    async def segment(
        self, *, boxes: ArrayLike, multimask_output: bool = False, return_logits: bool = False
    ) -> Objects: ...

    async def segment(
        self,
        box: ArrayLike | None = None,
        *,
        points: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        boxes: ArrayLike | None = None,
        refine: SegmentedObject | None = None,
        multimask_output: bool = False,
        return_logits: bool = False,
    ) -> SegmentedObject | Objects:
        """Return the object of a prompt, or those of several; see `RemotePicture.segment`."""
        exchange = self._segment(
            box, points, labels, boxes, refine, multimask_output, return_logits
        )
        found = await self._client._run(exchange)
        return found if boxes is not None or multimask_output else found[0]

    async def automask(
        self, *, progress: Progress = None, **parameters: Unpack[AutomaskKeywords]
    ) -> Objects:
        """Return every object in the picture; see `RemotePicture.automask`."""
        with reporting(progress, self.frame.name or "automask") as report:
            return await self._client._run(self._automask(parameters, report))
