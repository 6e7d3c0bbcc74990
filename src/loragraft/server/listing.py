"""GET /v1/models, /health, /metrics, /props: what there is."""

from __future__ import annotations

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from loragraft import __version__
from loragraft.server import answers
from loragraft.server.answers import Json
from loragraft.server.errors import ApiError
from loragraft.server.state import State


class Listing:
    """The endpoints, for one served model."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def models(self, http: HttpRequest) -> Response:
        return answers.answer({"object": "list", "data": self._models()})

    async def model(self, http: HttpRequest) -> Response:
        name = http.path_params["name"]
        for model in self._models():
            if name in (model["id"], f"{self._state.name}:{model['id']}"):
                return answers.answer(model)
        raise ApiError(f"model: no model {name!r} here", status=404, param="model", code="model_not_found")

    def _models(self) -> list[Json]:
        base: Json = {
            "id": self._state.name,
            "object": "model",
            "created": self._state.started,
            "owned_by": "loragraft",
            "max_model_len": self._state.scheduler.context,
            "chat": self._state.model.has_template,
        }
        return [
            base,
            *(
                {**base, "id": one.name, "parent": self._state.name, "loaded": one.loaded}
                for one in self._state.shelf.listed()
            ),
        ]

    async def health(self, http: HttpRequest) -> Response:
        scheduler = self._state.scheduler
        return answers.answer(
            {"status": "ok", "version": __version__, "running": scheduler.active, "waiting": scheduler.queued}
        )

    async def metrics(self, http: HttpRequest) -> Response:
        return Response(self._state.metrics.text(), 200, media_type="text/plain; version=0.0.4")
