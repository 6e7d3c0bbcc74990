"""Errors as OpenAI's API has them: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec
from starlette.responses import Response

from loragraft.errors import (
    AdapterError,
    BusyError,
    ContextError,
    LoragraftError,
    PoolError,
    TimeLimitError,
    UnknownAdapterError,
)

RETRY_SECONDS = 2
_MOST_TEXT = 1000  # characters of a message; some quote what the client sent

_ANTHROPIC = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class ApiError(Exception):
    """A request that is refused: what the client reads, and the HTTP status."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        kind: str = "invalid_request_error",
    ) -> None:
        super().__init__(message)
        message = message if len(message) <= _MOST_TEXT else message[:_MOST_TEXT] + " ..."
        self.message, self.status, self.param, self.code, self.kind = message, status, param, code, kind

    def renamed(self, names: Mapping[str, str]) -> ApiError:
        """The same error, with its field called as this client's API calls it: `names` has ours and theirs."""
        if self.param is None:
            return self
        first = next(
            (name for name in names if self.param == name or self.param.startswith(f"{name}.")), None
        )
        if first is None:
            return self
        param = names[first] + self.param.removeprefix(first)
        message = self.message
        if message.startswith(self.param):
            message = param + message.removeprefix(self.param)
        return ApiError(message, status=self.status, param=param, code=self.code, kind=self.kind)

    @property
    def body(self) -> dict[str, object]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    @property
    def anthropic(self) -> dict[str, object]:
        """As Anthropic's API has errors."""
        kind = _ANTHROPIC.get(self.status, "invalid_request_error" if self.status < 500 else "api_error")
        return {"type": "error", "error": {"type": kind, "message": self.message}}

    def response(self, path: str = "") -> Response:
        """For a request to `path`, whose API has its own form of errors."""
        body = self.anthropic if path.startswith("/v1/messages") else self.body
        headers = {"retry-after": str(RETRY_SECONDS)} if self.status == 429 else {}
        return Response(msgspec.json.encode(body), self.status, headers, "application/json")


def api_error(error: LoragraftError) -> ApiError:
    """What the library refused, for the client. A message names no more of this machine than the client gave."""
    text = _without_places(error)
    if isinstance(error, BusyError):
        return ApiError(text, status=429, kind="rate_limit_error", code="busy")
    if isinstance(error, TimeLimitError):
        return ApiError(text, status=504, kind="timeout_error", code="timeout")
    if isinstance(error, PoolError):
        return ApiError(text, status=503, kind="server_error", code="out_of_memory")
    if isinstance(error, ContextError):
        return ApiError(text, param=error.subject, code="context_length_exceeded")
    if isinstance(error, UnknownAdapterError):
        return ApiError(text, status=404, param="model", code="model_not_found")
    if isinstance(error, AdapterError):
        return ApiError(text, param="model", code="adapter_error")
    return ApiError(text, param=error.subject if error.subject.isidentifier() else None)


@contextmanager
def naming_fields(names: Mapping[str, str]) -> Iterator[None]:
    """Errors raised inside call fields as the client's API does (`ApiError.renamed`)."""
    try:
        yield
    except ApiError as error:
        raise error.renamed(names) from None


def _without_places(error: LoragraftError) -> str:
    """The message, with files named and not the folders that they lie in."""
    folder = str(Path(error.subject).parent)
    return str(error).replace(folder + os.sep, "") if os.sep in folder else str(error)


def unhonoured(param: str, found: object, reason: str) -> ApiError:
    """For a field that this server knows and does not honour."""
    return ApiError(f"{param}: {reason}: found {found!r}", param=param, code="unsupported_value")
