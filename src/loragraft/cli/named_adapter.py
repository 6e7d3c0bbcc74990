"""Adapters that are given a name: [NAME=]ADAPTER[=STRENGTH]."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click


class NamedAdapter(click.ParamType):  # type: ignore[type-arg]
    """(name, path, strength). Without a name, an adapter is called what its file or folder is called."""

    name = "adapter"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = Path(value)
        if path.exists() or "=" not in value:
            return path.name.removesuffix(".gguf"), path, 1.0
        name, _, rest = value.partition("=")
        path, strength = Path(rest), 1.0
        if not path.exists() and "=" in rest:
            place, _, text = rest.rpartition("=")
            try:
                strength = float(text)
            except ValueError:
                strength = math.nan
            if not math.isfinite(strength):
                self.fail(f"{text!r} is not a number, expected NAME=ADAPTER=STRENGTH", param, ctx)
            path = Path(place)
        return name, path, strength
