"""The runs of llama-quantize recorded in `golden/*-quantize.json`: for each its options and what came out."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from functools import cache
from typing import Any

from paths import data

#: Golden file -> (how many runs it has, the GGUF that was quantized, the importance matrix of its `+imatrix` runs).
FILES = {
    "llama-merged": (72, "gguf/llama-kjv.merged-f16.gguf", "gguf/llama-kjv.merged.imatrix.gguf"),
    "odd-shapes": (40, "gguf/odd-f16.gguf", None),
    "qwen3moe": (40, "gguf/qwen3moe-8x-f16.gguf", None),
    "starcoder2": (40, "gguf/starcoder2-bias-f16.gguf", None),
}


@dataclass(frozen=True)
class Run:
    """One run: `options` as (name, value) pairs, `refused` the peer's reason or None."""

    file: str
    name: str
    target: str
    imatrix: bool
    options: tuple[tuple[str, str], ...]
    refused: str | None
    result: dict[str, Any]

    def option(self, name: str) -> list[str]:
        return [value for key, value in self.options if key == name]

    @property
    def types(self) -> dict[str, str]:
        return {name: tensor["type"] for name, tensor in self.result["tensors"].items()}


def _run(file: str, name: str, result: dict[str, Any]) -> Run:
    target, *words = shlex.split(name.replace(" +imatrix", ""))
    options = []
    while words:
        key = words.pop(0)
        takes_none = key in ("--pure", "--leave-output-tensor")
        options.append((key, "" if takes_none else words.pop(0)))
    refused = result["refused"][0].rsplit("quantize: ", 1)[1] if "refused" in result else None
    return Run(file, name, target, " +imatrix" in name, tuple(options), refused, result)


@cache
def runs(file: str) -> tuple[Run, ...]:
    """All runs of one golden file; skips the test if the file is not here."""
    golden = json.loads(data(f"golden/{file}-quantize.json").read_text())["runs"]
    assert len(golden) == FILES[file][0]
    return tuple(_run(file, name, result) for name, result in golden.items())
