"""`loragraft combine`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

import loragraft as lg
from loragraft.cli.adapter_output import TO, show_adapter
from loragraft.cli.combine_options import combine_options
from loragraft.cli.command import FILE, OUTPUT, argument, command, option
from loragraft.cli.intake_options import intake_options
from loragraft.cli.options import JSON, LORA
from loragraft.cli.progress import progress

if TYPE_CHECKING:
    from loragraft.adapters.combine import Combination
    from loragraft.huggingface.intake import Intake


@command(
    "loragraft combine Llama-3.2-1B --lora style --lora facts=0.5 -o both",
    "loragraft combine base.gguf --lora a.gguf --lora b.gguf --method ties --density 0.5 -o ties.gguf",
    "loragraft combine Llama-3.2-1B --lora a --lora b --method svd --rank 16 --to mlx -o mlx-adapter",
)
@argument(
    "base", metavar="BASE", type=FILE, help="The model that the adapters are for: its names and shapes."
)
@LORA
@combine_options("--method", "cat, the exact sum", "--combine")  # as merge calls it
@option(
    "--output", "-o", required=True, type=OUTPUT, metavar="OUT", help="The GGUF or the new folder to write."
)
@TO
@JSON
@intake_options
def combine(
    base: Path,
    lora: tuple[tuple[Path, float], ...],
    combination: Combination | None,
    output: Path,
    to: str | None,
    as_json: bool,
    intake: Intake,
) -> None:
    """Make one adapter of several: their sum, cut to a rank, or by TIES, DARE, magnitude.

    The methods are those of PEFT's add_weighted_adapter, with its results. cat is the exact sum. svd is the best
    approximation of it at a rank. linear sums the As and the Bs separately, which is not the sum of the adapters.
    """
    if not lora:
        raise click.UsageError("name the adapters with --lora, once for each")
    with progress() as bars:
        report = lg.combine(base, lora, output, combination or "cat", to=to, intake=intake, progress=bars)
    show_adapter(report, as_json)
