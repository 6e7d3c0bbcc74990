"""`loragraft quantize`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

import loragraft as lg
from loragraft.cli import console
from loragraft.cli.command import FILE, argument, command, flag
from loragraft.cli.files import refuse_inputs
from loragraft.cli.options import (
    COMPARISON,
    JSON,
    PUSH,
    TARGET,
    THREAD_COUNT,
    THREADS,
    WORKERS,
    check_push,
    pushed,
)
from loragraft.cli.progress import progress
from loragraft.cli.quantize_options import quantize_options
from loragraft.cli.quantize_report import report_as_json, show_dry_run, show_result
from loragraft.quants.filetypes import BY_NAME, find_file_type

if TYPE_CHECKING:
    from loragraft.streaming.options import QuantizeOptions


@command(
    "loragraft quantize model-F16.gguf model-Q4_K_M.gguf Q4_K_M",
    "loragraft quantize --imatrix imatrix.gguf model-F16.gguf model-IQ2_XS.gguf IQ2_XS",
    "loragraft quantize --tensor-type attn_v=q8_0 --dry-run model-F16.gguf Q4_K_M",
    types=" ".join(BY_NAME),
)
@argument("model", metavar="IN.gguf", type=FILE, help="The model to quantize, or its URL.")
@argument(
    "words",
    metavar="[OUT.gguf] TYPE [THREADS]",
    nargs=-1,
    required=True,
    help="The file to write (if left out, ggml-model-TYPE.gguf beside the input), and the type, by llama-quantize's "
    "name or number.",
)
@flag("--dry-run", help="Only show what would be written.")
@THREADS
@WORKERS
@PUSH
@COMPARISON
@JSON
@quantize_options
def quantize(
    model: Path,
    words: tuple[str, ...],
    dry_run: bool,
    threads: int | None,
    workers: str | None,
    push: str | None,
    comparison: Path | None,
    as_json: bool,
    options: QuantizeOptions,
) -> None:
    """Quantize a GGUF model: llama-quantize's types, options and bytes.

    Types: {types}.
    """
    target, rest = find_file_type(words[0]), words[1:]
    if target is not None:
        output = model.with_name(f"ggml-model-{target}.gguf")
    else:
        output, target, rest = Path(words[0]), TARGET(rest[0] if rest else words[0]), rest[1:]
    if len(rest) > 1 or (rest and not rest[0].isdecimal()):
        raise click.UsageError(f"unexpected {rest[-1]!r} after the type")
    if rest and threads is None and int(rest[0]):
        threads = THREAD_COUNT(rest[0])
    check_push(push, dry_run=dry_run, comparison=comparison)
    context = click.get_current_context()
    if not dry_run:
        refuse_inputs(context.command.params, context.params, [output])
    with progress() as bars:
        report = lg.quantize(
            model,
            None if dry_run else output,
            target,
            options=options,
            threads=threads,
            workers=workers,
            progress=bars,
        )
        pushed(report, push, model, bars, comparison)
    if as_json:
        console.result(json.dumps(report_as_json(report), indent=1))
    elif dry_run:
        show_dry_run(report)
    else:
        show_result(report)
