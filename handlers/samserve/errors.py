"""Everything a caller can have done wrong, each with its HTTP status.

    SamserveError
    ├── InvalidRequest      400  the body cannot be read at all
    ├── Unauthorized        401  the administrator's token is missing or wrong
    ├── Forbidden           403  this server lets nobody do that
    ├── NotFound            404  the model type or the weights are not here
    ├── NotAcceptable       406  there is no such output format
    ├── UnknownImage        409  only a reference to the image was sent, and it is not kept
    ├── Conflict            409  the weights are registered already, or others are just now
    ├── TooLarge            413  the body, the image or the weights are over the limit
    ├── UnsupportedMediaType 415 the body is in an encoding that is not read here
    │   └── UnsupportedEncoding  as a whole: its Content-Encoding
    ├── HeaderTooLarge      431  a header has more bytes than can be passed on
    ├── Unreachable         502  the address of the weights did not give the whole file
    ├── Cancelled           503  nobody waits for the answer any more
    ├── OutOfMemory         503  the device's memory did not do, for this request, this time
    ├── TimedOut            504  the work took longer than the request allows
    └── InvalidField        422  one field's value is wrong
        ├── InvalidImage    422  the bytes are no image we read
        └── InvalidWeights  422  the file is no checkpoint of its type

Does not cover our own faults: those are ordinary exceptions, answered as 500.
"""

from __future__ import annotations

from typing import Any, ClassVar


class SamserveError(Exception):
    """A request that cannot be answered, and why.

    Args:
        message: one sentence for the person who sent it.
        field: the path of the offending field, as `prompts.2.bbox`; None for the body.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field

    def body(self) -> dict[str, Any]:
        """The JSON answer, the same from every door."""
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


class UnknownImage(SamserveError):
    status = 409
    code = "unknown_image"


class Conflict(SamserveError):
    status = 409
    code = "conflict"


class TooLarge(SamserveError):
    status = 413
    code = "too_large"


class UnsupportedMediaType(SamserveError):
    status = 415
    code = "unsupported_media_type"


class UnsupportedEncoding(UnsupportedMediaType):
    pass


class HeaderTooLarge(SamserveError):
    status = 431
    code = "header_too_large"


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


def error_body(code: str, message: str, field: str | None = None) -> dict[str, Any]:
    """`{"error": {"code", "message", "field"}}`."""
    return {"error": {"code": code, "message": message, "field": field}}
