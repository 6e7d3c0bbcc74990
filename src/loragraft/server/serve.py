"""Serves a model until it is told to stop."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from loragraft.errors import LoragraftError
from loragraft.inference.model import Model
from loragraft.inference.scheduler.loop import Scheduler
from loragraft.inference.scheduler.shelf import Shelf, plain_only
from loragraft.opening import load_adapter
from loragraft.server.app import create_app
from loragraft.server.metrics import Metrics
from loragraft.server.names import is_name
from loragraft.server.protocol import PunctualProtocol, most_connections
from loragraft.server.state import Limits, State
from loragraft.server.watching import Watcher
from loragraft.system.mapped import check_intact

Named = tuple[str, Path, float]
"""An adapter for the command line: its name, where it lies, its strength when asked for by name."""

_BACKLOG = 2048  # uvicorn's


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """How to serve. `adapter_memory`: bytes for adapters; `drain_seconds`: how long replies under way may take to end
    when the server is told to stop; `lookup`: guess tokens ahead where it pays."""

    host: str = "127.0.0.1"
    port: int = 8080
    api_key: str | None = None
    no_auth: bool = False
    alias: str | None = None
    adapters_dir: Path | None = None
    adapter_memory: int | None = None
    sequences: int = 64
    waiting: int = 256
    drain_seconds: float = 30.0
    lookup: bool = True
    limits: Limits = field(default_factory=Limits)


def check_exposure(options: ServeOptions) -> None:
    """Raises LoragraftError where others could reach the server without a key."""
    try:
        local = ipaddress.ip_address(options.host).is_loopback
    except ValueError:
        local = options.host == "localhost"
    if not (local or options.api_key or options.no_auth):
        raise LoragraftError(
            options.host,
            "others can reach this address",
            expected="an API key",
            hint="pass --api-key KEY, or --no-auth if everybody may use the server",
        )


def make_state(model: Model, adapters: Sequence[Named], options: ServeOptions) -> State:
    """Everything but the sockets. The scheduler is not started yet."""
    metrics = Metrics()
    shelf = Shelf(
        model.program,
        lambda path: plain_only(load_adapter(path, model.source, invoked=True)),
        most_bytes=options.adapter_memory,
    )
    for name, path, strength in adapters:
        if not is_name(name):
            raise LoragraftError(
                "--lora",
                "bad name",
                found=name[:80],
                expected="printable characters, without / and :, no space at the ends",
            )
        shelf.register(name, path, strength)
    scheduler = Scheduler(
        model.program,
        model.tokenizer,
        shelf,
        context=model.context_length,
        subject=model.path.name,
        sequences=options.sequences,
        waiting=options.waiting,
        lookup=options.lookup,
        telemetry=metrics,
        check=partial(check_intact, model.path),
    )
    name = options.alias or model.path.name.removesuffix(".gguf")
    state = State(
        model,
        scheduler,
        metrics,
        name,
        options.adapters_dir,
        options.api_key,
        options.limits,
        options.no_auth,
    )
    metrics.watch("loragraft_requests_waiting", "Requests that wait", lambda: float(scheduler.queued))
    metrics.watch("loragraft_requests_running", "Requests that run", lambda: float(scheduler.active))
    metrics.watch("loragraft_prefixes", "Prefixes kept", lambda: float(scheduler.prefixes))
    metrics.watch("loragraft_adapter_bytes", "Memory of loaded adapters", lambda: float(shelf.bytes))
    return state


def serve(
    model: Model,
    adapters: Sequence[Named] = (),
    options: ServeOptions | None = None,
    *,
    ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve `model` until SIGINT or SIGTERM; replies under way are finished. `ready` is called with the server's
    address once it listens (port 0 takes a free one).

    Raises LoragraftError for an adapter that cannot be loaded, an address that is not available, or one that others can
    reach without a key.
    """
    options = options or ServeOptions()
    check_exposure(options)
    _log_bugs()
    listening = _listen(options.host, options.port)
    state = make_state(model, adapters, options)
    for name, _, _ in adapters:  # what is wrong with them shows now, not at the first request
        state.shelf.preload(name)
    taken = (state.name, *(name for name, _, _ in adapters))
    watcher = None if options.adapters_dir is None else Watcher(options.adapters_dir, state.shelf, taken)
    if watcher is not None:
        watcher.start()
    app = create_app(state)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        host = f"[{options.host}]" if ":" in options.host else options.host
        ready(f"http://{host}:{listening.getsockname()[1]}")
        yield

    app.router.lifespan_context = lifespan
    state.scheduler.start()
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=round(options.drain_seconds),
        timeout_keep_alive=30,
        http=PunctualProtocol,
        ws="none",
        limit_concurrency=most_connections(),
    )
    try:
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        if watcher is not None:
            watcher.stop()
        state.aside.close()
        state.scheduler.stop(options.drain_seconds)
        listening.close()


def _log_bugs() -> None:
    """What fails inside goes to stderr with its traceback; what libraries say stays away."""
    for name in ("loragraft.server", "loragraft.scheduler"):
        log = logging.getLogger(name)
        if not log.handlers:
            log.addHandler(logging.StreamHandler())
        log.propagate = False
        log.setLevel(logging.WARNING)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(_BACKLOG)  # the address is told before uvicorn comes to it
    except OSError as error:
        raise LoragraftError(
            f"{host}:{port}", f"cannot listen here ({error.strerror})", hint="choose another --port"
        ) from None
    return listening
