"""The errors that a caller can cause, each with its HTTP status.

    SamserveError
    ├── InvalidRequest      400  the body cannot be read at all
    ├── Unauthorized        401  the key or the administrator's token is missing or wrong
    ├── Forbidden           403  this server allows nobody, or only administrators, to do that
    ├── NotFound            404  the model type or the weights are not loaded
    ├── NotAcceptable       406  there is no such output format
    ├── SlowBody            408  the body arrives too slowly
    ├── UnknownImage        409  the request has only a digest, and the image is not cached
    ├── Conflict            409  the weights are registered, or another registration runs
    ├── TooLarge            413  the body, the image or the weights are over the limit
    ├── Heavy               421  the prompt lane does not take so much work
    ├── UnsupportedMediaType 415 the body has a charset that is not supported
    │   └── UnsupportedEncoding  the body has a Content-Encoding that is not supported
    ├── TooManyRequests     429  a client has more requests than its share, or sent wrong keys
    ├── HeaderTooLarge      431  a header has more bytes than TorchServe accepts
    ├── Unreachable         502  the weights could not be downloaded completely
    ├── Busy                503  the queue is full, or too many bodies are in memory
    ├── Cancelled           503  the client has disconnected
    ├── OutOfMemory         503  the device ran out of memory
    ├── NoRoom              507  weights need more disk or memory than there is, or are too many
    ├── TimedOut            504  the work took longer than the request allows
    └── InvalidField        422  the value of a field is wrong
        ├── InvalidImage    422  the bytes are not an image, or not a supported one
        └── InvalidWeights  422  the file is not a checkpoint of its model type

A bug of ours is an ordinary exception and is answered with status 500.
"""

from __future__ import annotations

from typing import Any, ClassVar

MAX_MESSAGE = 2000
"""Most characters of a message, and of the name of a field. Many messages repeat what was sent."""


class SamserveError(Exception):
    """The reason why a request cannot be answered.

    Args:
        message: one sentence for the person who sent the request.
        field: the path of the wrong field, as `prompts.2.bbox`; None: the whole body.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, field: str | None = None) -> None:
        message = _short(message)
        super().__init__(message)
        self.message = message
        self.field = None if field is None else _short(field)

    def body(self) -> dict[str, Any]:
        """Return the JSON answer. The gateway and the worker use the same form."""
        return error_body(self.code, self.message, self.field)


class InvalidRequest(SamserveError):
    status = 400
    code = "invalid_request"


class Unauthorized(SamserveError):
    status = 401
    code = "unauthorized"


class Forbidden(SamserveError):
    status = 403
    code = "forbidden"


class NotFound(SamserveError):
    status = 404
    code = "not_found"


class NotAcceptable(SamserveError):
    status = 406
    code = "not_acceptable"


class SlowBody(SamserveError):
    status = 408
    code = "request_timeout"


class UnknownImage(SamserveError):
    status = 409
    code = "unknown_image"


class Conflict(SamserveError):
    status = 409
    code = "conflict"


class TooLarge(SamserveError):
    status = 413
    code = "too_large"


class Heavy(SamserveError):
    status = 421
    code = "heavy"


class UnsupportedMediaType(SamserveError):
    status = 415
    code = "unsupported_media_type"


class UnsupportedEncoding(UnsupportedMediaType):
    pass


class TryLater(SamserveError):
    """The reason why a request cannot be answered now.

    Args:
        retry_after_s: whole seconds after which the client may try again.
    """

    def __init__(self, message: str, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class TooManyRequests(TryLater):
    status = 429
    code = "too_many_requests"


class Busy(TryLater):
    status = 503
    code = "busy"


class HeaderTooLarge(SamserveError):
    status = 431
    code = "header_too_large"


class NoRoom(SamserveError):
    status = 507
    code = "insufficient_storage"


class Unreachable(SamserveError):
    status = 502
    code = "unreachable"


class Cancelled(SamserveError):
    status = 503
    code = "cancelled"


class OutOfMemory(SamserveError):
    status = 503
    code = "out_of_memory"


class TimedOut(SamserveError):
    status = 504
    code = "timeout"


class InvalidField(SamserveError):
    status = 422
    code = "invalid_field"


class InvalidImage(InvalidField):
    code = "invalid_image"


class InvalidWeights(InvalidField):
    code = "invalid_weights"


def quoted(value: str) -> str:
    """Return a text that the client sent in quotes, cut after 100 characters."""
    return repr(value) if len(value) <= 100 else f"{value[:100]!r}…"


def error_body(code: str, message: str, field: str | None = None) -> dict[str, Any]:
    """Return `{"error": {"code", "message", "field"}}`."""
    return {"error": {"code": code, "message": message, "field": field}}


def _short(text: str) -> str:
    return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 1] + "…"
