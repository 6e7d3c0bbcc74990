"""The server as an ASGI application: which path is whose."""

from __future__ import annotations

import logging
import mimetypes
from collections.abc import Awaitable, Callable
from importlib.resources import files

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from loragraft.server.adapters import Adapters
from loragraft.server.chat import ChatCompletions
from loragraft.server.completions import Completions
from loragraft.server.constraints import Grammars
from loragraft.server.conversing import Conversing
from loragraft.server.embeddings import Embeddings
from loragraft.server.errors import ApiError
from loragraft.server.listing import Listing
from loragraft.server.messages import Messages
from loragraft.server.responses import Responses
from loragraft.server.security import Guard
from loragraft.server.state import State

log = logging.getLogger("loragraft.server")
Endpoint = Callable[[HttpRequest], Awaitable[Response]]

#: What the page may do: run its own scripts and styles, talk to its own server, and nothing else.
_PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def create_app(state: State) -> Starlette:
    """The application that serves `state`. The scheduler must run; stopping it is the caller's business."""
    grammars = Grammars(state.model.tokenizer)
    conversing = Conversing(state, grammars)
    messages = Messages(conversing)
    listing, adapters = Listing(state), Adapters(state)
    posts: dict[str, Endpoint] = {
        "/v1/chat/completions": ChatCompletions(state, grammars),
        "/v1/responses": Responses(conversing),
        "/v1/messages": messages,
        "/v1/messages/count_tokens": messages.count,
        "/v1/completions": Completions(state, grammars),
        "/v1/embeddings": Embeddings(state),
        "/v1/load_lora_adapter": adapters.load,
        "/v1/unload_lora_adapter": adapters.unload,
        "/lora-adapters": adapters.scale,
    }
    gets: dict[str, Endpoint] = {
        "/v1/models": listing.models,
        "/v1/models/{name:path}": listing.model,
        "/lora-adapters": adapters.listing,
        "/health": listing.health,
        "/metrics": listing.metrics,
        "/": page,
        "/page/{name}": page,
    }
    routes = [Route(path, _plain(endpoint), methods=["POST"]) for path, endpoint in posts.items()]
    routes += [Route(path, _plain(endpoint), methods=["GET"]) for path, endpoint in gets.items()]
    return Starlette(
        routes=routes,
        middleware=[Middleware(Guard, api_key=state.api_key, any_host=state.any_host)],
        exception_handlers={ApiError: _api_error, HTTPException: _http_error, Exception: _bug},
    )


def _plain(endpoint: Endpoint) -> Endpoint:
    """As a function: Starlette takes an object for an application of its own."""

    async def call(http: HttpRequest) -> Response:
        return await endpoint(http)

    return call


async def page(http: HttpRequest) -> Response:
    """The page and what it loads, from the package."""
    name = http.path_params.get("name", "index.html")
    found = files("loragraft.server").joinpath("page", name)
    if name != name.strip("./\\") or not found.is_file():
        raise HTTPException(404)
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    return Response(found.read_bytes(), 200, _PAGE_HEADERS, kind)


async def _api_error(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response(http.url.path)


async def _http_error(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = http.url.path
    known = any(getattr(route, "path", None) == f"/v1{path}" for route in http.app.routes)
    hint = f"; clients need /v1 in the base URL: /v1{path}" if known else ""
    what = {404: f"no such path: {path}{hint}", 405: f"{http.method} is not possible on {http.url.path}"}
    return ApiError(what.get(error.status_code, error.detail), status=error.status_code).response(
        http.url.path
    )


async def _bug(http: HttpRequest, error: Exception) -> Response:
    log.exception("a request failed", exc_info=error)
    return ApiError(
        "the server failed: this is a bug", status=500, kind="server_error", code="internal_error"
    ).response(http.url.path)
