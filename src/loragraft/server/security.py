"""Who may ask: an API key where one is set, and only pages of this server's own.

A site can let its name mean this machine (DNS rebinding). For a browser its page is then of the server's own origin,
and only the Host header tells. So without a key the server answers to addresses and local names alone.
"""

from __future__ import annotations

import hmac
import ipaddress

from starlette.types import ASGIApp, Receive, Scope, Send

from loragraft.server.errors import ApiError

#: What is served without a key: the page itself (which asks for the key) and the health check.
_OPEN_PATHS = ("/", "/health", "/page/")


class Guard:
    """Refuses requests without the key, and those that a browser sends on behalf of another site."""

    def __init__(self, app: ASGIApp, api_key: str | None, *, any_host: bool = False) -> None:
        """`any_host`: whether the server may be called by any name."""
        self._app = app
        self._any_host = any_host or api_key is not None
        self._key = None if api_key is None else api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (refused := self._refused(scope)):
            await refused.response(scope["path"])(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refused(self, scope: Scope) -> ApiError | None:
        headers = dict(scope["headers"])
        if sum(name == b"host" for name, _ in scope["headers"]) > 1:
            return ApiError("the request has several Host headers")
        origin = headers.get(b"origin")
        if origin is not None and origin.partition(b"://")[2] != headers.get(b"host"):
            return ApiError("requests from other sites' pages are refused", status=403, code="cross_origin")
        if not (self._any_host or is_local(headers.get(b"host", b"").decode("latin-1"))):
            return ApiError(
                "requests to this name are refused: call the server by its address or localhost, or start it with "
                "--api-key KEY or --no-auth",
                status=403,
                code="unknown_host",
            )
        path = scope["path"]
        if self._key is None or path in _OPEN_PATHS or path.startswith("/page/"):
            return None
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer":
            given = headers.get(b"x-api-key", b"")
        if hmac.compare_digest(given.strip(), self._key):
            return None
        return ApiError(
            "the API key is missing or wrong: send it as Authorization: Bearer KEY",
            status=401,
            kind="authentication_error",
            code="invalid_api_key",
        )


def is_local(host: str) -> bool:
    """Whether a Host header is an address, or a name that nobody elsewhere can give a meaning to."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() and not host.endswith("]") else host
    name = name.removeprefix("[").removesuffix("]").rstrip(".").lower()
    if "." not in name or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
