"""`loragraft merge`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

import loragraft as lg
from loragraft.cli import console
from loragraft.cli.combine_options import combine_options
from loragraft.cli.command import FILE, OUTPUT, argument, command, flag, option
from loragraft.cli.intake_options import intake_options
from loragraft.cli.options import COMPARISON, JSON, LORA, PUSH, TARGET, THREADS, WORKERS, check_push, pushed
from loragraft.cli.progress import progress
from loragraft.cli.quantize_options import quantize_options
from loragraft.cli.quantize_report import report_as_json, show_dry_run, show_result

if TYPE_CHECKING:
    from loragraft.adapters.combine import Combination
    from loragraft.huggingface.intake import Intake
    from loragraft.quants.filetypes import FileType
    from loragraft.streaming.options import QuantizeOptions


@command(
    "loragraft merge Llama-3.2-1B --lora my-adapter -o merged-Q4_K_M.gguf --type Q4_K_M",
    "loragraft merge base-F16.gguf --lora style.gguf=0.7 --lora facts.gguf -o merged-F16.gguf",
    "loragraft merge base-F16.gguf --lora a.gguf --lora b.gguf --combine ties --density 0.5 -o merged.gguf",
    "loragraft merge Llama-3.2-1B --lora my-adapter --type Q4_K_M --imatrix imatrix.gguf -o merged.gguf",
)
@argument(
    "base",
    metavar="BASE",
    type=FILE,
    help="A Hugging Face folder, or a GGUF file (or one of a split model); here, or by URL (hf://, s3://, gs://, https://).",
)
@LORA
@combine_options("--combine", "add one to the other")
@option("--output", "-o", type=OUTPUT, metavar="OUT.gguf", help="The file to write.")
@option(
    "--type",
    "target",
    type=TARGET,
    metavar="TYPE",
    default_text="F16, or NVFP4 for a base in NVFP4",
    help="Any type of `loragraft quantize`.",
)
@flag("--dequantize", help="Dequantize weights whose quantization GGUF cannot hold.")
@flag(
    "--base-as-trained",
    help="The adapter was trained on these quantized weights (QLoRA): merge into them, dequantized, and say so in the "
    "file.",
)
@flag("--dry-run", help="Only show what would be written.")
@THREADS
@WORKERS
@PUSH
@COMPARISON
@JSON
@intake_options
@quantize_options
def merge(
    base: Path,
    lora: tuple[tuple[Path, float], ...],
    combination: Combination | None,
    output: Path | None,
    target: FileType | None,
    dequantize: bool,
    base_as_trained: bool,
    dry_run: bool,
    threads: int | None,
    workers: str | None,
    push: str | None,
    comparison: Path | None,
    as_json: bool,
    options: QuantizeOptions,
    intake: Intake,
) -> None:
    """Merge LoRA adapters into a model and quantize the sum, in one pass.

    The output is byte for byte what you would get by merging to F16 and quantizing that file. The F16 file is never
    written. Without --lora, this converts the model.
    """
    if output is None and not dry_run:
        raise click.UsageError("name the file to write with --output")
    check_push(push, dry_run=dry_run, comparison=comparison)
    with progress() as bars:
        report = lg.merge(
            base,
            lora,
            None if dry_run else output,
            type=target,
            options=options,
            dequantize=dequantize,
            base_as_trained=base_as_trained,
            combination=combination,
            intake=intake,
            threads=threads,
            workers=workers,
            progress=bars,
        )
        pushed(report, push, base, bars, comparison)
    if as_json:
        console.result(json.dumps(report_as_json(report), indent=1))
    elif dry_run:
        show_dry_run(report)
    else:
        show_result(report)
