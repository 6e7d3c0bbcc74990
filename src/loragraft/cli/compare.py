"""`loragraft compare`: which deployment keeps more of a fine-tune."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loragraft.cli import console
from loragraft.cli.options import (
    Backend,
    Context,
    Json,
    Lora,
    MaxChars,
    Text,
    Threads,
    Windows,
    parse_lora,
    read_text,
)
from loragraft.cli.progress import progress
from loragraft.cli.units import plural

if TYPE_CHECKING:
    from rich.table import Table

    from loragraft.compare import Comparison

EXAMPLES = (
    "loragraft compare --base ./hf-folder --lora adapter --text valid.txt",
    "loragraft compare --base base.gguf --lora adapter=0.8 --text valid.txt --type Q5_K_M --context 256",
    "loragraft compare --base base.gguf --lora adapter --text valid.txt --windows 50 --json",
)


def command(
    base: Annotated[
        Path, typer.Option("--base", help="The base model: a GGUF file or a Hugging Face folder.")
    ],
    text: Text,
    lora: Lora = None,
    quantization: Annotated[str, typer.Option("--type", metavar="TYPE", help="How to quantize.")] = "Q4_K_M",
    imatrix: Annotated[
        Path | None,
        typer.Option("--imatrix", help="An importance matrix, GGUF or .dat.", show_default=False),
    ] = None,
    context: Context = 512,
    windows: Windows = None,
    max_chars: MaxChars = None,
    backend: Backend = "native",
    threads: Threads = None,
    work_dir: Annotated[
        Path | None,
        typer.Option("--work-dir", help="Where to make temporary files.", show_default="the system's place"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure which deployment keeps more of a fine-tune: merged then quantized, or the adapter at run time.

    Reads a text with (a) the adapter merged, then quantized, (b) the adapter at run time on the quantized base, (c)
    the merged model at full precision, (d) the base without the adapter; and prints for each the perplexity, the mean
    KL divergence from (c), how often its likeliest token is also (c)'s, the share of the fine-tune kept, and its size.

    Perplexity is computed as llama-perplexity does: the text's tokens are cut into windows of --context tokens, each
    starting with BOS if the model uses one, and only the second half of each window is scored. The share kept is 1 -
    KL(x) / KL(d): all that the adapter changed is the distance from (d) to (c).
    """
    adapters = parse_lora(lora)
    if not adapters:
        raise typer.BadParameter("give at least one adapter", param_hint="'--lora'")
    words = read_text(text, max_chars)

    from loragraft.compare import compare
    from loragraft.errors import UnsupportedError
    from loragraft.quants.filetypes import file_type

    try:
        file_type(quantization)
    except UnsupportedError as problem:
        raise typer.BadParameter(str(problem), param_hint="'--type'") from None

    with progress() as bars:
        result = compare(
            base,
            adapters,
            words,
            type=quantization,
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
