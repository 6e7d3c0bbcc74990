"""`loragraft extract`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

import loragraft as lg
from loragraft.cli import console
from loragraft.cli.adapter_output import TO
from loragraft.cli.command import FILE, OUTPUT, argument, command, flag, option
from loragraft.cli.intake_options import intake_options
from loragraft.cli.options import JSON, THREADS
from loragraft.cli.progress import progress
from loragraft.units import plural

if TYPE_CHECKING:
    from loragraft.huggingface.intake import Intake


@command(
    "loragraft extract Llama-3.2-1B Llama-3.2-1B-Instruct -o instruct --rank 32",
    "loragraft extract base-Q8_0.gguf tuned-Q8_0.gguf -o tuned-lora.gguf --energy 0.95",
)
@argument("base", metavar="BASE", type=FILE, help="A Hugging Face folder or a GGUF.")
@argument("tuned", metavar="TUNED", type=FILE, help="The tuned model, a folder or a GGUF of the same sizes.")
@option(
    "--output", "-o", required=True, type=OUTPUT, metavar="OUT", help="The GGUF or the new folder to write."
)
@option("--rank", type=click.IntRange(1), metavar="R", help="The rank of every pair, at most.")
@option(
    "--energy",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="E",
    help="Take the smallest rank that keeps this part of each weight's difference (of its squared norm).",
)
@flag("--norms", help="Carry norms that differ, as whole tensors.")
@flag("--embeddings", help="Make pairs for the embedding and the output too.")
@TO
@THREADS
@JSON
@intake_options
def extract(
    base: Path,
    tuned: Path,
    output: Path,
    rank: int | None,
    energy: float | None,
    norms: bool,
    embeddings: bool,
    to: str | None,
    threads: int | None,
    as_json: bool,
    intake: Intake,
) -> None:
    """Make an adapter of the difference of two models.

    The difference of each weight becomes the pair of that rank that is nearest to it. Both models may be quantized. For
    each weight, the share of the difference that is kept is printed. What differs but is not carried over is named.
    """
    if rank is None and energy is None:
        raise click.UsageError("say how much to keep: --rank 16, or --energy 0.95")
    with progress() as bars:
        report = lg.extract(
            base,
            tuned,
            output,
            rank=rank,
            energy=energy,
            norms=norms,
            embeddings=embeddings,
            to=to,
            intake=intake,
            threads=threads,
            progress=bars,
        )
    if as_json:
        console.result(json.dumps({**asdict(report), "path": str(report.path)}, indent=1))
        return
    table = console.table("weight", ">rank", ">energy kept", ">difference / weight")
    for one in report.modules:
        table.add_row(console.cell(one.target), str(one.rank), f"{one.energy:.4f}", f"{one.relative:.4f}")
    console.show(table)
    whole = f", {plural(len(report.whole), 'whole tensor')}" if report.whole else ""
    console.info(
        f"{report.path}: {plural(len(report.modules), 'pair')}{whole}, {100 * report.energy:.2f} % of the difference's "
        "energy kept"
    )
