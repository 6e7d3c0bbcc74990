"""POST /v1/embeddings: the hidden states behind the last norm, pooled and brought to length 1."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial

import numpy as np
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from loragraft.arrays import Floats
from loragraft.inference.scheduler.request import Embedded, Request
from loragraft.server import answers
from loragraft.server.bodies import read_body
from loragraft.server.completions import prompts_of
from loragraft.server.errors import naming_fields, unhonoured
from loragraft.server.options import nobody
from loragraft.server.running import Running, receipt, receipt_header, unless_gone
from loragraft.server.schema import EmbeddingRequest
from loragraft.server.state import State

#: Texts of one request that wait in the queue together: others find room there.
_AT_ONCE = 64
#: What this API calls our fields.
_NAMES = {"prompt": "input"}


class Embeddings:
    """The endpoint, for one served model."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def __call__(self, http: HttpRequest) -> Response:
        body = await read_body(http, EmbeddingRequest, self._state.limits)
        if body.dimensions is not None:
            raise unhonoured("dimensions", body.dimensions, "the model's width is the only size")
        adapters = self._state.adapters_of(body.model, body.lora)
        read = partial(prompts_of, most=self._state.limits.texts)
        with naming_fields(_NAMES):
            texts = await unless_gone(self._state.aside.run(read, self._state, body.input, "input"), http)
        running = [
            Running(
                self._state,
                Request(
                    ids,
                    emit=nobody,
                    adapters=adapters,
                    max_tokens=0,
                    embed=body.pooling,
                    timeout=self._state.limits.seconds,
                ),
                body,
            )
            for ids in texts
        ]
        vectors: list[Floats] = []
        for few in (running[at : at + _AT_ONCE] for at in range(0, len(running), _AT_ONCE)):
            async with AsyncExitStack() as stack:
                with naming_fields(_NAMES):
                    for each in few:
                        await stack.enter_async_context(each)
                with naming_fields(_NAMES):
                    vectors += await unless_gone(_vectors(few), http)
        tokens = sum(len(each.request.prompt) for each in running)
        whole = {
            "object": "list",
            "model": body.model,
            "data": [
                {"object": "embedding", "index": index, "embedding": _encoded(vector, body.encoding_format)}
                for index, vector in enumerate(vectors)
            ],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            "loragraft": receipt(running[0].adapters, running[0].done),
        }
        return answers.answer(whole, receipt_header(running[0].adapters))


async def _vectors(running: Sequence[Running]) -> list[Floats]:
    vectors = []
    for each in running:
        await each.started()
        async for event in each:
            if isinstance(event, Embedded):
                vectors.append(event.vector)
    return vectors


def _encoded(vector: Floats, form: str) -> list[float] | str:
    if form == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return [float(value) for value in np.asarray(vector)]
