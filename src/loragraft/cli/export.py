"""`loragraft export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from loragraft.cli import console
from loragraft.cli.options import Json, Lora, Threads, parse_lora
from loragraft.cli.progress import progress
from loragraft.cli.units import bytes_text

EXAMPLES = (
    "loragraft export Llama-3.1-8B-NVFP4.gguf -o Llama-3.1-8B-NVFP4",
    "loragraft export Llama-3.1-8B --lora my-adapter --format compressed-tensors -o merged-NVFP4",
)


def command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A GGUF file or a Hugging Face folder.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="The folder to make.", show_default=False)
    ],
    kind: Annotated[
        Literal["modelopt", "compressed-tensors"],
        typer.Option("--format", help="How the checkpoint names and scales its weights."),
    ] = "modelopt",
    lora: Lora = None,
    threads: Threads = None,
    to_json: Json = False,
) -> None:
    """Write a Hugging Face checkpoint in NVFP4, for vLLM, TensorRT-LLM and SGLang.

    Weights that are NVFP4 already keep their codes and scales bit for bit, the others are quantized; adapters are added
    before. Without scales of the activations in the source the checkpoint is weight-only (W4A16).
    """
    from loragraft.export import export

    with progress() as bars:
        report = export(model, output, format=kind, adapters=parse_lora(lora), threads=threads, progress=bars)
    if to_json:
        facts = {
            "algorithm": report.algorithm,
            "carried_over": report.carried_over,
            "quantized": report.quantized,
        }
        console.result(json.dumps({"path": str(report.path), **facts, "bytes": report.size}))
    else:
        console.info(
            f"{report.path}: {report.algorithm}, {report.carried_over} matrices carried over, "
            f"{report.quantized} quantized, {bytes_text(report.size)}"
        )
