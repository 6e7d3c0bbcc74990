"""`loragraft convert`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

import loragraft as lg
from loragraft.cli import console
from loragraft.cli.command import FILE, OUTPUT, argument, command, flag, option
from loragraft.cli.intake_options import intake_options
from loragraft.cli.options import JSON, TARGET, THREADS, WORKERS
from loragraft.cli.progress import progress
from loragraft.cli.quantize_report import report_as_json, show_result
from loragraft.units import plural

if TYPE_CHECKING:
    from loragraft.huggingface.intake import Intake
    from loragraft.quants.filetypes import FileType


@command(
    "loragraft convert Llama-3.2-1B -o Llama-3.2-1B-F16.gguf",
    "loragraft convert Llama-3.1-8B-NVFP4 -o Llama-3.1-8B-NVFP4.gguf",
    "loragraft convert my-adapter --base Llama-3.2-1B -o my-adapter.gguf",
)
@argument(
    "source",
    metavar="SOURCE",
    type=FILE,
    help="A Hugging Face model folder, or an adapter's (with --base).",
)
@option("--output", "-o", required=True, type=OUTPUT, metavar="OUT.gguf", help="The file to write.")
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
    dequantize: bool,
    threads: int | None,
    workers: str | None,
    as_json: bool,
    intake: Intake,
) -> None:
    """Convert a Hugging Face model, or a PEFT adapter, to GGUF.

    NVFP4 weights of ModelOpt and compressed-tensors checkpoints are repacked without loss. FP8 weights become the type
    that you ask for. An adapter keeps its exact scale, with rsLoRA and alpha_pattern too.
    """
    from loragraft.verbs.convert import is_adapter

    if base is not None or is_adapter(source):
        if base is None:
            raise click.UsageError(f"{source} is an adapter: name the model that it is for with --base")
        if str(target or "F32") != "F32" or dequantize:
            raise click.UsageError("an adapter is written as F32, without --type or --dequantize")
        _convert_adapter(source, base, output, intake, as_json)
        return
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


def _convert_adapter(source: Path, base: Path, output: Path, intake: Intake, as_json: bool) -> None:
    with progress() as bars:
        adapter = lg.convert_adapter(source, base, output, intake=intake, progress=bars)
    if as_json:
        facts = {"path": str(adapter.path), "pairs": adapter.pairs, "tensors": adapter.tensors}
        console.result(json.dumps(facts))
    else:
        scales = "scales multiplied in" if adapter.baked else "scales by alpha / rank"
        console.info(f"{adapter.path}: {plural(adapter.pairs, 'pair')}, {scales}")
