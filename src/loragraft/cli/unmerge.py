"""`loragraft unmerge`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

import loragraft as lg
from loragraft.cli import console
from loragraft.cli.command import FILE, OUTPUT, argument, command, option
from loragraft.cli.intake_options import intake_options
from loragraft.cli.options import JSON, TARGET, THREADS, AdapterParam
from loragraft.cli.progress import progress
from loragraft.cli.quantize_options import quantize_options
from loragraft.cli.quantize_report import report_as_json, show_result

if TYPE_CHECKING:
    from loragraft.huggingface.intake import Intake
    from loragraft.quants.filetypes import FileType
    from loragraft.streaming.options import QuantizeOptions


class _Merged(AdapterParam):
    """ADAPTER[=SCALE] as (path, scale), or the path alone: then the model says its scale."""

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> object:
        path, scale = super().convert(value, param, ctx)
        return path if str(path) == value else (path, scale)


@command(
    "loragraft unmerge merged-F16.gguf --lora my-adapter -o base-F16.gguf",
    "loragraft unmerge merged-F16.gguf --lora style.gguf=0.7 --type Q4_K_M -o without-style.gguf",
)
@argument("model", metavar="MODEL", type=FILE, help="The merged model, a GGUF or a Hugging Face folder.")
@option(
    "--lora",
    multiple=True,
    required=True,
    type=_Merged(),
    metavar="ADAPTER[=SCALE]",
    help="The adapter to take out, with the strength that it was merged at (if left out, as the model says, else 1).",
)
@option("--output", "-o", required=True, type=OUTPUT, metavar="OUT.gguf", help="The file to write.")
@option(
    "--type",
    "target",
    type=TARGET,
    metavar="TYPE",
    default_text="the model's, if it is a float type, else as for merge",
    help="Any type of `loragraft quantize`.",
)
@THREADS
@JSON
@intake_options
@quantize_options
def unmerge(
    model: Path,
    lora: tuple[object, ...],
    output: Path,
    target: FileType | None,
    threads: int | None,
    as_json: bool,
    options: QuantizeOptions,
    intake: Intake,
) -> None:
    """Take adapters that were merged into a model out of it again.

    Their deltas are subtracted, so what is left is the base as far as the merged file's type holds it. A model that
    loragraft merged says what is in it: another adapter is refused. Adapters that replaced something cannot be taken
    out.
    """
    with progress() as bars:
        report = lg.unmerge(
            model,
            lora,  # type: ignore[arg-type]
            output,
            type=target,
            options=options,
            intake=intake,
            threads=threads,
            progress=bars,
        )
    if as_json:
        console.result(json.dumps(report_as_json(report), indent=1))
    else:
        show_result(report)
