"""`loragraft compare`: which deployment keeps more of a fine-tune."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

import loragraft as lg
from loragraft.cli import console
from loragraft.cli.command import FILE, command, option
from loragraft.cli.options import (
    BACKEND,
    JSON,
    LORA,
    MAX_CHARS,
    TARGET,
    TEXT,
    THREADS,
    WINDOWS,
    context_option,
    read_text,
)
from loragraft.cli.progress import progress
from loragraft.cli.units import plural

if TYPE_CHECKING:
    from rich.table import Table

    from loragraft.compare import Comparison
    from loragraft.load import BackendName
    from loragraft.quants.filetypes import FileType


@command(
    "loragraft compare --base ./hf-folder --lora adapter --text valid.txt",
    "loragraft compare --base base.gguf --lora adapter=0.8 --text valid.txt --type Q5_K_M --context 256",
    "loragraft compare --base base.gguf --lora adapter --text valid.txt --windows 50 --json",
)
@option(
    "--base",
    required=True,
    type=FILE,
    metavar="BASE",
    help="The base model: a GGUF file or a Hugging Face folder.",
)
@TEXT
@LORA
@option("--type", "target", type=TARGET, default="Q4_K_M", metavar="TYPE", help="How to quantize.")
@option("--imatrix", type=FILE, metavar="FILE", help="An importance matrix, GGUF or .dat.")
@context_option(512)
@WINDOWS
@MAX_CHARS
@BACKEND
@THREADS
@option(
    "--work-dir",
    type=FILE,
    metavar="DIR",
    default_text="the system's place",
    help="Where to make temporary files.",
)
@JSON
def compare(
    base: Path,
    text: Path,
    lora: tuple[tuple[Path, float], ...],
    target: FileType,
    imatrix: Path | None,
    context: int,
    windows: int | None,
    max_chars: int | None,
    backend: BackendName,
    threads: int | None,
    work_dir: Path | None,
    as_json: bool,
) -> None:
    """Measure which deployment keeps more of a fine-tune: merged then quantized, or the adapter at run time.

    Reads a text with (a) the adapter merged, then quantized, (b) the adapter at run time on the quantized base, (c)
    the merged model at full precision, (d) the base without the adapter; and prints for each the perplexity, the mean
    KL divergence from (c), how often its likeliest token is also (c)'s, the share of the fine-tune kept, and its size.

    Perplexity is computed as llama-perplexity does: the text's tokens are cut into windows of --context tokens, each
    starting with BOS if the model uses one, and only the second half of each window is scored. The share kept is 1 -
    KL(x) / KL(d): all that the adapter changed is the distance from (d) to (c).
    """
    if not lora:
        raise click.UsageError("give at least one adapter with --lora")
    words = read_text(text, max_chars)
    with progress() as bars:
        result = lg.compare(
            base,
            lora,
            words,
            type=target.name,
            imatrix=imatrix,
            context=context,
            limit=windows,
            backend=backend,
            threads=threads,
            work_dir=work_dir,
            progress=bars,
        )
    if as_json:
        console.result(json.dumps(result.as_dict(), indent=2))
        return
    console.show(table(result))
    console.result(result.verdict)


def table(result: Comparison) -> Table:
    from rich import box
    from rich.table import Table

    from loragraft.compare import BASE

    first = next(iter(result.deployments.values())).perplexity
    scored = (
        f"{plural(first.tokens, 'prediction')} in the second halves of {plural(first.windows, 'window')} "
        f"of {result.context} tokens"
    )
    grid = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, caption=scored, caption_justify="left", caption_style="dim"
    )
    grid.add_column("deployment")
    for heading in ("perplexity", "mean KL", "same top-1", "kept", "size"):
        grid.add_column(heading, justify="right")
    base = result.deployments[BASE].divergence
    for letter, row in zip("abcd", result.deployments.values(), strict=True):
        measured = ["", "", ""]
        if row.divergence is not None and base is not None:
            share = f"{100 * (1 - row.divergence.mean / base.mean):.1f} %" if base.mean > 0 else ""
            measured = [
                f"{row.divergence.mean:.5f}",
                f"{100 * row.divergence.same_top:.1f} %",
                "" if row.divergence is base else share,
            ]
        perplexity = f"{row.perplexity.value:.2f} ± {row.perplexity.error:.2f}"
        grid.add_row(f"({letter}) {row.label}", perplexity, *measured, f"{row.size / 1e6:.1f} MB")
    return grid
