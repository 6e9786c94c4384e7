"""What goes wrong with a request, in the shape that OpenAI's clients read.

In: an exception. Out: a status and an object `{"error": {message, type, param, code}}`. A mistake
of our own is told as such, without its details: those go to the log.
"""

from __future__ import annotations

import msgspec

from sterna.base.errors import DeviceError, RequestError, TokenizerError


class ErrorDetail(msgspec.Struct, kw_only=True):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(msgspec.Struct, kw_only=True):
    """What every answer with a status of 400 or more holds."""

    error: ErrorDetail


class HttpError(RequestError):
    """A request refused with a status; `headers` go out with it."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        *,
        code: str | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(message, param, code=code)
        self.status = status
        self.headers = headers


_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


def status_of(error: BaseException) -> int:
    if isinstance(error, HttpError):
        return error.status
    if isinstance(error, RequestError | TokenizerError):  # a template may refuse a conversation
        return 400
    return 503 if isinstance(error, DeviceError) else 500


def body_of(error: BaseException) -> ErrorBody:
    status = status_of(error)
    kind = "server_error" if status >= 500 else _TYPES.get(status, "invalid_request_error")
    return ErrorBody(
        error=ErrorDetail(
            message="the server made a mistake; its log says which"
            if status == 500
            else str(error),
            type=kind,
            param=error.param if isinstance(error, RequestError) else None,
            code=error.code if isinstance(error, RequestError) else None,
        )
    )
