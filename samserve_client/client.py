"""A Client finds objects in pictures with a samserve server.

client = samserve.Client("http://127.0.0.1:8000")
picture = client.picture("cells.tif")
cell = picture.segment(box=(10, 20, 200, 180))
cells = picture.automask(points_per_side=16, progress=True)
cells.to_geojson("cells.geojson")
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal, TypeVar, overload

import requests
from numpy.typing import ArrayLike

from samserve.bars import reporting
from samserve.errors import TimedOut
from samserve.objects.collection import Objects
from samserve.objects.interface import Progress
from samserve.objects.segmented import SegmentedObject
from samserve.pictures.sources import PictureFile, Source, read_source

from . import exchanges
from .address import Address, address_of
from .connections import Adapter, NoOtherKey
from .errors import BrokenOff, ServerUnreachable, UnexpectedAnswer
from .exchanges import ServerState
from .picture import PictureCore
from .status import ServerStatus, status
from .wire import EVENTS, Answer, Call, Exchange, Lines, Wait

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from samserve.parameters import AutomaskKeywords

T = TypeVar("T")

CONNECT_S = 10.0
TIMEOUT_S = 150.0
"""The server itself gives up on a prompt after 120 s, and says why."""


class Client:
    """A client of one server. Threads may share it; it keeps its connections open.

    Args:
        url: the server's address. None: the variable SAMSERVE_URL, or http://127.0.0.1:8000.
        key: an API key. None: the variable SAMSERVE_API_KEY, or none.
        model_type: a model type, such as `vit_t` or `sam2_t`. None: the one that the server has
            loaded; of several, the fastest.
        weights: the name of registered weights. None: the model type's own.
        timeout: seconds to wait for an answer, but for that of an automask, which has `timeout_s`.
        patience: seconds to wait in all for a server that is busy, before an error is raised.
        verify: False: trust any certificate. A path: the file of the certificates to trust.

    Raises:
        ValueError: the address or the key cannot be one.
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
        self._closed = False
        self._adapter = Adapter()
        self._http = requests.Session()
        self._http.mount("http://", self._adapter)
        self._http.mount("https://", self._adapter)
        self._http.auth = NoOtherKey()
        self._http.verify = verify
        self._http.trust_env = not self._address.is_loopback

    @property
    def url(self) -> str:
        """The server's address."""
        return self._address.url

    def picture(self, source: Source, page: int | None = None) -> RemotePicture:
        """Return a picture in which the server finds objects. It is sent when it is first needed.

        Args:
            source: a path, a URL, the bytes of an image file, a PIL image, or an array: H×W grey or
                H×W×3 RGB, of bool, integers or floats.
            page: the page of a TIFF, from 0. None: the only one.

        Raises:
            OSError: the file cannot be read.
            InvalidImage: it is no picture.
            InvalidField: it has several pages and `page` is None, or it has no such page.
        """
        return RemotePicture(self, read_source(source, page))

    def info(self) -> ServerStatus:
        """Return what the server says about itself: version, models, and how busy it is."""
        return self._run(status(self._server))

    def close(self) -> None:
        """Close all connections. Calls of other threads end with an error, their work, too."""
        self._closed = True
        self._adapter.end_all()
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, exchange: Exchange[T]) -> T:
        """Make the calls of an exchange, and return what it returns."""
        try:
            step = next(exchange)
            while True:
                if isinstance(step, Wait):
                    time.sleep(step.seconds)
                    step = exchange.send(None)
                    continue
                try:
                    answer = self._answer(step)
                except ServerUnreachable as error:
                    step = exchange.throw(error)
                else:
                    step = exchange.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            exchange.close()

    def _answer(self, call: Call) -> Answer:
        if self._closed:
            raise RuntimeError("This client is closed.")
        try:
            return self._request(call)
        except requests.Timeout as exc:
            if isinstance(exc, requests.ConnectTimeout):
                raise unreachable(self.url) from exc
            raise silent(self.url, call) from exc
        except requests.exceptions.SSLError as exc:
            raise distrusted(self.url, exc) from exc
        except requests.ConnectionError as exc:
            raise unreachable(self.url) from exc
        except requests.exceptions.ChunkedEncodingError as exc:
            raise broken(self.url) from exc
        except requests.RequestException as exc:
            raise UnexpectedAnswer(f"{self.url} cannot be asked: {type(exc).__name__}.") from exc

    def _request(self, call: Call) -> Answer:
        # Without compression: a picture's outlines are small beside the time that packing takes.
        with self._http.request(
            call.method,
            self.url + call.path,
            data=call.body or None,
            headers={"Accept-Encoding": "identity", **call.headers},
            timeout=(CONNECT_S, call.timeout_s),
            allow_redirects=False,
            stream=True,
        ) as response:
            headers = {name.lower(): value for name, value in response.headers.items()}
            if call.on_line is None or not headers.get("content-type", "").startswith(EVENTS):
                return Answer(response.status_code, headers, response.content)
            lines = Lines(call.on_line)
            for part in response.iter_content(None):
                lines.feed(part)
            return Answer(response.status_code, headers, b"")


class RemotePicture(PictureCore):
    """A picture that a server segments; see `samserve.SegmentablePicture`."""

    def __init__(self, client: Client, file: PictureFile) -> None:
        super().__init__(client._server, file)
        self._client = client

    def prepare(self) -> None:
        """Send the picture now, so that the first call finds it encoded."""
        self._client._run(exchanges.prepare(self._server, self._sent))

    @overload
    def segment(
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
    def segment(
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
    def segment(
        self, *, boxes: ArrayLike, multimask_output: bool = False, return_logits: bool = False
    ) -> Objects: ...

    def segment(
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
        """Return the object that a box, points, or both point out; or the objects in several boxes.

        Args:
            box: (x0, y0, x1, y1) in pixels of the picture.
            points: [(x, y), …].
            labels: for each point 1 (on the object) or 0 (beside it). None: all are 1.
            boxes: several boxes. They give one object each, in their order.
            refine: an object of an earlier call with `return_logits`. The points, old and new
                ones, then correct its mask.
            multimask_output: return SAM's three masks of each prompt as Objects. Masks without
                pixels are left out; `prompt_idx` says which box an object answers.
            return_logits: keep what `refine` needs, 128 kB an object. It is on with `refine`.

        Returns:
            One object, or Objects with `boxes` or `multimask_output`. If nothing was found, the
            object has no pixels: its area is 0.

        Raises:
            SamserveError: an argument is wrong, or the server refuses (`samserve_client.errors`).
        """
        exchange = self._segment(
            box, points, labels, boxes, refine, multimask_output, return_logits
        )
        found = self._client._run(exchange)
        return found if boxes is not None or multimask_output else found[0]

    def automask(
        self, *, progress: Progress = None, **parameters: Unpack[AutomaskKeywords]
    ) -> Objects:
        """Return every object in the picture. If this call ends early, so does the server's work.

        Args:
            progress: True shows a bar; a function is called with (points done, points in all).
            parameters: the fields of `samserve.AutomaskParameters`, such as `points_per_side`.

        Raises:
            TypeError: there is no such parameter.
            SamserveError: a parameter is wrong, or the server refuses.
        """
        with reporting(progress, self.frame.name or "automask") as report:
            return self._client._run(self._automask(parameters, report))


def state_of(
    address: Address, model_type: str | None, weights: str | None, timeout: float, patience: float
) -> ServerState:
    """Return what a new client knows of its server."""
    headers = {} if address.key is None else {"Authorization": f"Bearer {address.key}"}
    return ServerState(address.url, headers, model_type, weights, timeout, patience)


def unreachable(url: str) -> ServerUnreachable:
    """Return the error of a server that does not answer."""
    return ServerUnreachable(
        f"No server answers at {url}. `samserve serve` starts one on this machine; another one is "
        "named by --server, SAMSERVE_URL or samserve.Client(url)."
    )


def broken(url: str) -> BrokenOff:
    """Return the error of an answer that ended too early."""
    return BrokenOff(f"The connection to {url} broke off. Try again.")


def silent(url: str, call: Call) -> TimedOut:
    """Return the error of a server that took too long."""
    return TimedOut(f"{url} has sent nothing for {call.timeout_s:g} s.")


def distrusted(url: str, reason: Exception) -> UnexpectedAnswer:
    """Return the error of a server whose certificate is not trusted."""
    if "WRONG_VERSION_NUMBER" in str(reason):
        return UnexpectedAnswer(f"{url} does not speak HTTPS. Use http:// in its address.")
    return UnexpectedAnswer(
        f"The certificate of {url} is not trusted, or it speaks no HTTPS: {reason}. "
        "samserve.Client(verify=…) takes the file of a certificate to trust."
    )
