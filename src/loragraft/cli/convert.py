"""`loragraft convert`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

import loragraft as lg
from loragraft.cli import console
from loragraft.cli.adapter_output import show_adapter, to_option
from loragraft.cli.command import FILE, OUTPUT, argument, command, flag, option
from loragraft.cli.intake_options import intake_options
from loragraft.cli.options import JSON, TARGET, THREADS, WORKERS
from loragraft.cli.progress import progress
from loragraft.cli.quantize_report import report_as_json, show_result

if TYPE_CHECKING:
    from loragraft.huggingface.intake import Intake
    from loragraft.quants.filetypes import FileType


@command(
    "loragraft convert Llama-3.2-1B -o Llama-3.2-1B-F16.gguf",
    "loragraft convert Llama-3.1-8B-NVFP4 -o Llama-3.1-8B-NVFP4.gguf",
    "loragraft convert my-adapter --base Llama-3.2-1B -o my-adapter.gguf",
    "loragraft convert my-adapter.gguf --base Llama-3.2-1B --to peft -o my-adapter",
)
@argument(
    "source",
    metavar="SOURCE",
    type=FILE,
    help="A Hugging Face model folder, or an adapter (with --base): a PEFT or mlx-lm folder, or a GGUF.",
)
@option(
    "--output",
    "-o",
    required=True,
    type=OUTPUT,
    metavar="OUT",
    help="The GGUF to write; of an adapter that becomes PEFT's or mlx-lm's, the new folder.",
)
@option(
    "--type",
    "target",
    type=TARGET,
    metavar="TYPE",
    default_text="F16; weights that are quantized stay so",
    help="F32, F16, BF16, or any type of `loragraft quantize`.",
)
@option(
    "--base", type=FILE, metavar="BASE", help="The model that an adapter is for: a folder or a GGUF file."
)
@to_option("gguf")
@flag("--dequantize", help="Dequantize weights whose quantization GGUF cannot hold.")
@THREADS
@WORKERS
@JSON
@intake_options
def convert(
    source: Path,
    output: Path,
    target: FileType | None,
    base: Path | None,
    to: str | None,
    dequantize: bool,
    threads: int | None,
    workers: str | None,
    as_json: bool,
    intake: Intake,
) -> None:
    """Convert a Hugging Face model to GGUF, or an adapter to GGUF, PEFT or mlx-lm.

    NVFP4 weights of ModelOpt and compressed-tensors checkpoints are repacked without loss. FP8 weights become the type
    that you ask for. An adapter keeps its exact scale, with rsLoRA and alpha_pattern too. From
    GGUF it comes back with the tensors that it had.
    """
    from loragraft.verbs.convert import is_adapter

    if base is not None or is_adapter(source):
        if base is None:
            raise click.UsageError(f"{source} is an adapter: name the model that it is for with --base")
        if str(target or "F32") != "F32" or dequantize:
            raise click.UsageError("an adapter is written as F32, without --type or --dequantize")
        with progress() as bars:
            adapter = lg.convert_adapter(source, base, output, to=to or "gguf", intake=intake, progress=bars)
        show_adapter(adapter, as_json)
        return
    if to not in (None, "gguf"):
        raise click.UsageError(f"--to {to} is for adapters, and {source} holds none")
    with progress() as bars:
        report = lg.convert(
            source,
            output,
            type=target,
            dequantize=dequantize,
            intake=intake,
            threads=threads,
            workers=workers,
            progress=bars,
        )
    if as_json:
        console.result(json.dumps(report_as_json(report), indent=1))
    else:
        show_result(report)
