"""The endpoints that list, load, unload and scale adapters: llama-server's and vLLM's."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from math import isfinite
from pathlib import Path

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from loragraft.errors import LoragraftError, printable
from loragraft.inference.scheduler.shelf import Shelf
from loragraft.server import answers
from loragraft.server.bodies import read_body
from loragraft.server.errors import ApiError, api_error
from loragraft.server.names import MOST_NAME, is_name
from loragraft.server.schema import AdapterScale, LoadAdapter, UnloadAdapter
from loragraft.server.state import MOST_STRENGTH, State

_LOADS = ThreadPoolExecutor(1, "loads")
"""It waits for the shelf, which reads one adapter at a time."""

#: Adapters that clients may have loaded under names of their choice, beside those of the command line.
MOST_KNOWN = 1000


class Adapters:
    """The endpoints, for one served model."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._loads = count()

    async def listing(self, http: HttpRequest) -> Response:
        """GET /lora-adapters. `scale` is what a request to the base model gets that names no adapter."""
        return answers.answer(
            [
                {
                    "id": one.number,
                    "name": one.name,
                    "path": printable(one.path.name),
                    "scale": self._state.always.get(one.name, 0.0),
                    "default_strength": one.strength,
                    "loaded": one.loaded,
                    "bytes": one.size,
                }
                for one in self._state.shelf.listed()
            ]
        )

    async def scale(self, http: HttpRequest) -> Response:
        """POST /lora-adapters: the scales for requests that name no adapter; those not listed become 0."""
        items = await read_body(http, list[AdapterScale], self._state.limits)
        scales: dict[str, float] = {}
        for item in items:
            if not (isfinite(item.scale) and abs(item.scale) <= MOST_STRENGTH):
                raise ApiError(
                    f"scale: found {item.scale}, expected a number up to {MOST_STRENGTH:g}", param="scale"
                )
            scales[self._state.adapter_by_id(item.id, "id").name] = item.scale
        self._state.always = scales
        return answers.answer({"success": True})

    async def load(self, http: HttpRequest) -> Response:
        """POST /v1/load_lora_adapter."""
        body = await read_body(http, LoadAdapter, self._state.limits)
        self._check_free(body)
        path = self._inside(body.lora_path)
        shelf, trial = self._state.shelf, Shelf.trial_name(f"{next(self._loads)}/{body.lora_name}")
        shelf.register(trial, path)
        try:
            await asyncio.get_running_loop().run_in_executor(_LOADS, partial(shelf.preload, trial))
            self._check_free(body)  # another client may have loaded one meanwhile
            shelf.rename(trial, body.lora_name)
        except LoragraftError as error:
            raise api_error(error) from None
        finally:
            if shelf.knows(trial):
                shelf.unregister(trial)
        return answers.answer({"message": f"Success: LoRA adapter '{body.lora_name}' added successfully."})

    def _check_free(self, body: LoadAdapter) -> None:
        """Raises ApiError where no adapter can be loaded under this name."""
        name, shelf = body.lora_name, self._state.shelf
        if not is_name(name) or name == self._state.name:
            raise ApiError(
                f"lora_name: expected up to {MOST_NAME} printable characters without / and :, no space at either end, "
                "and not the name of the base",
                param="lora_name",
            )
        if shelf.knows(name) and not body.load_inplace:
            raise ApiError(
                f"lora_name: {name!r} is loaded; unload it first, or send load_inplace",
                param="lora_name",
                code="adapter_exists",
            )
        if len(shelf.listed()) >= MOST_KNOWN and not shelf.knows(name):
            raise ApiError(
                f"lora_name: there are {MOST_KNOWN} adapters; unload some first", param="lora_name"
            )

    async def unload(self, http: HttpRequest) -> Response:
        """POST /v1/unload_lora_adapter. Requests that run with it are finished."""
        body = await read_body(http, UnloadAdapter, self._state.limits)
        try:
            self._state.shelf.unregister(body.lora_name)
        except LoragraftError as error:
            raise ApiError(str(error), status=404, param="lora_name", code="adapter_not_found") from None
        self._state.always.pop(body.lora_name, None)
        return answers.answer({"message": f"Success: LoRA adapter '{body.lora_name}' removed successfully."})

    def _inside(self, path: str) -> Path:
        """`path` under the folder of adapters, links resolved. Anything else is refused, whether it exists or not."""
        folder = self._state.adapters_dir
        if folder is None:
            raise ApiError(
                "lora_path: adapters can be loaded only where the server was started with --adapters-dir",
                status=403,
                param="lora_path",
            )
        try:
            root = folder.resolve(strict=True)
            found = (root / path).resolve(strict=True)
        except (OSError, ValueError):
            found = None
        if found is None or not found.is_relative_to(root) or found == root:
            raise ApiError(
                "lora_path: no such adapter in the folder given by --adapters-dir",
                status=404,
                param="lora_path",
                code="adapter_not_found",
            )
        return found
