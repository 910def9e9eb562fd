"""A request's body with the lanes that answer it, and the headers with which it goes there."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Request

from samserve.errors import HeaderTooLarge
from samserve.serving import headers, logs

from .bodies import Body

MAX_ACCEPT_BYTES = 2**12
"""TorchServe accepts 8 KiB of headers in all. It refuses longer ones without saying why."""


@dataclass(frozen=True)
class RoutedBody:
    """A request's body, and which lanes answer it.

    Attributes:
        family: the family of lanes.
        stands_in: whether the family's model type stands in for the one that the body names.
    """

    body: Body
    family: str
    stands_in: bool


def body_headers(body: Body) -> dict[str, str]:
    """Return the headers that name the request to the logs, and its picture to a balancer."""
    names = {headers.REQUEST_ID: logs.request_id() or ""}
    if body.reference is not None:
        names[headers.IMAGE_DIGEST] = body.reference.removeprefix("sha256:")
    return names


def headers_for_lane(request: Request, routed: RoutedBody) -> dict[str, str]:
    """Return the headers for the worker: the output formats that the client reads, and STAND_IN.

    Raises:
        HeaderTooLarge: the client's Accept header has more bytes than TorchServe accepts.
    """
    accept = ", ".join(request.headers.getlist("accept"))
    size = len(accept.encode())
    if size > MAX_ACCEPT_BYTES:
        raise HeaderTooLarge(
            f"The header Accept has {size} bytes; it may have {MAX_ACCEPT_BYTES}.", "Accept"
        )
    return {**stand_in_headers(routed), **({"Accept": accept} if accept else {})}


def stand_in_headers(routed: RoutedBody) -> dict[str, str]:
    return {headers.STAND_IN: "true"} if routed.stands_in else {}
