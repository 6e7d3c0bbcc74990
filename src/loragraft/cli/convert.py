"""`loragraft convert`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from loragraft.cli import console
from loragraft.cli.options import Json, Threads
from loragraft.cli.progress import progress
from loragraft.cli.quantize_options import as_json, show_result
from loragraft.cli.units import plural

EXAMPLES = (
    "loragraft convert Llama-3.2-1B -o Llama-3.2-1B-F16.gguf",
    "loragraft convert Llama-3.1-8B-NVFP4 -o Llama-3.1-8B-NVFP4.gguf",
    "loragraft convert my-adapter --base Llama-3.2-1B -o my-adapter.gguf",
)


def command(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE", help="A Hugging Face model folder, or a PEFT adapter's (with --base)."
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="OUT.gguf", help="The file to write.", show_default=False),
    ],
    kind: Annotated[
        str | None,
        typer.Option(
            "--type",
            metavar="TYPE",
            help="F32, F16, BF16, or any type of `loragraft quantize`.",
            show_default="F16; weights that are quantized stay so",
        ),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(
            "--base", metavar="BASE", help="The model that an adapter is for: a folder or a GGUF file."
        ),
    ] = None,
    dequantize: Annotated[
        bool,
        typer.Option("--dequantize", help="Turn quantized weights that GGUF cannot carry into floats."),
    ] = False,
    threads: Threads = None,
    to_json: Json = False,
) -> None:
    """Convert a Hugging Face model, or a PEFT adapter, to GGUF.

    NVFP4 weights of ModelOpt and compressed-tensors checkpoints are repacked without loss, FP8 weights become the type
    that is asked for. An adapter keeps its exact scale, also of rsLoRA and alpha_pattern.
    """
    from loragraft.convert import convert, convert_adapter, is_adapter
    from loragraft.errors import UnsupportedError
    from loragraft.quants.filetypes import file_type

    if is_adapter(source):
        if base is None:
            raise typer.BadParameter("name the model that the adapter is for", param_hint="'--base'")
        if kind not in (None, "F32") or dequantize:
            raise typer.BadParameter("an adapter is written as F32", param_hint="'--type'")
        with progress() as bars:
            adapter = convert_adapter(source, base, output, progress=bars)
        if to_json:
            console.result(
                json.dumps({"path": str(adapter.path), "pairs": adapter.pairs, "tensors": adapter.tensors})
            )
        else:
            scales = "scales multiplied in" if adapter.baked else "scales by alpha / rank"
            console.info(f"{adapter.path}: {plural(adapter.pairs, 'pair')}, {scales}")
        return
    if base is not None:
        raise typer.BadParameter(f"{source} is no adapter", param_hint="'--base'")
    try:
        target = None if kind is None else file_type(kind)
    except UnsupportedError as problem:
        raise typer.BadParameter(str(problem), param_hint="'--type'") from None
    with progress() as bars:
        report = convert(source, output, type=target, dequantize=dequantize, threads=threads, progress=bars)
    if to_json:
        console.result(json.dumps(as_json(report), indent=1))
    else:
        show_result(report)
