"""What takes time before a request can be queued, aside from the event loop, which serves everybody."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from loragraft.errors import BusyError
from loragraft.server.errors import ApiError, api_error

T = TypeVar("T")


class Aside:
    """Two threads for templates and tokens, one more for requests with a grammar: compiling it may take seconds.
    `waiting`: calls that may wait for them; more are refused."""

    def __init__(self, waiting: int) -> None:
        self._threads = ThreadPoolExecutor(2, "aside")
        self._slow = ThreadPoolExecutor(1, "grammars")
        self._most = waiting
        self._count = 0

    def close(self) -> None:
        """Refuse nothing more: what waits is given up."""
        for threads in (self._threads, self._slow):
            threads.shutdown(wait=False, cancel_futures=True)

    async def run(self, function: Callable[..., T], *args: Any, slow: bool = False) -> T:
        """`function(*args)`; `slow`: it compiles a grammar.

        Raises what it raises; ApiError where too many wait, or what came is nested too deeply.
        """
        if self._count >= self._most:
            raise api_error(BusyError("server", "too many requests are being read", found=self._count))
        self._count += 1
        try:
            threads = self._slow if slow else self._threads
            return await asyncio.get_running_loop().run_in_executor(threads, partial(function, *args))
        except RecursionError:
            raise ApiError("the request is nested too deeply") from None
        finally:
            self._count -= 1
