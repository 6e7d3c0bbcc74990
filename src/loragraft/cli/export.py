"""`loragraft export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import click

import loragraft as lg
from loragraft.cli import console
from loragraft.cli.command import PLACE, command, option
from loragraft.cli.options import JSON, LORA, MODEL, THREADS, WORKERS, Parsed
from loragraft.cli.progress import progress
from loragraft.cli.quantize_options import MAX_MEMORY, RESUME
from loragraft.units import bytes_text, plural


@command(
    "loragraft export Llama-3.1-8B-NVFP4.gguf -o Llama-3.1-8B-NVFP4",
    "loragraft export Llama-3.1-8B --lora my-adapter --format compressed-tensors -o merged-NVFP4",
)
@MODEL
@option("--output", "-o", required=True, type=PLACE, metavar="DIR", help="The folder to make.")
@option(
    "--format",
    "layout",
    type=click.Choice(["modelopt", "compressed-tensors", "mxfp4"]),
    default="modelopt",
    help="How the checkpoint names and scales its weights; mxfp4 is gpt-oss' own.",
)
@option(
    "--max-shard-size",
    "max_bytes",
    type=Parsed("loragraft.formats.split:parse_size"),
    metavar="N(M|G)",
    default_text="5G",
    help="Largest size of one file (decimal units).",
)
@LORA
@MAX_MEMORY
@RESUME
@THREADS
@WORKERS
@JSON
def export(
    model: Path,
    output: Path,
    layout: Literal["modelopt", "compressed-tensors", "mxfp4"],
    max_bytes: int | None,
    lora: tuple[tuple[Path, float], ...],
    max_memory: int | None,
    resume: bool,
    threads: int | None,
    workers: str | None,
    as_json: bool,
) -> None:
    """Write a Hugging Face checkpoint in NVFP4, for vLLM, TensorRT-LLM and SGLang.

    Adapters are merged first. Weights that are already NVFP4 keep their codes and scales bit for bit, unless they
    share a scale (q/k/v, gate/up) with a weight that is not NVFP4 yet. All other weights are quantized. If the source
    has no activation scales, the checkpoint is weight-only (W4A16). gpt-oss gets its own layout: experts in MXFP4, all
    else in BF16.
    """
    from loragraft.verbs.export import MAX_SHARD_BYTES

    with progress() as bars:
        report = lg.export(
            model,
            output,
            format=layout,
            adapters=lora,
            max_shard_bytes=max_bytes or MAX_SHARD_BYTES,
            max_memory=max_memory << 20 if max_memory else None,
            resume=resume,
            threads=threads,
            workers=workers,
            progress=bars,
        )
    if as_json:
        facts = {
            "algorithm": report.algorithm,
            "carried_over": report.carried_over,
            "quantized": report.quantized,
            "files": report.files,
        }
        console.result(json.dumps({"path": str(report.path), **facts, "bytes": report.size}))
    else:
        console.info(
            f"{report.path}: {report.algorithm}, {report.carried_over} matrices carried over, "
            f"{report.quantized} quantized, {bytes_text(report.size)}"
            + (f" in {plural(report.files, 'file')}" if report.files > 1 else "")
        )
