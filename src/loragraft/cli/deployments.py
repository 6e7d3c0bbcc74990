"""The table of measured deployments that `compare` and `budget` print."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from loragraft.units import bytes_text, plural

if TYPE_CHECKING:
    from rich.table import Table

    from loragraft.evaluate.deployment import Deployment


def deployments_table(rows: Iterable[Deployment], context: int) -> Table:
    from rich import box
    from rich.table import Table

    from loragraft.evaluate.verdict import percent_text

    rows = list(rows)
    first = rows[0].perplexity
    scored = (
        f"{plural(first.tokens, 'prediction')} in the second halves of {plural(first.windows, 'window')} "
        f"of {plural(context, 'token')}"
    )
    if any(row.engine is not None for row in rows):
        scored += "; KL as run: with activations rounded to 8 bits, all others with float ones"
    grid = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
        caption=scored,
        caption_justify="left",
        caption_style="dim",
    )
    grid.add_column("deployment", overflow="fold")
    run = any(row.engine is not None for row in rows)
    engine = ["KL as run"] if run else []
    for heading in ("perplexity", "mean KL", *engine, "same top-1", "kept", "size"):
        grid.add_column(heading, justify="right", overflow="fold")
    for row in rows:
        grid.add_row(
            row.label,
            f"{row.perplexity.value:.2f} ± {row.perplexity.error:.2f}",
            "" if row.divergence is None else f"{row.divergence.mean:.5f}",
            *([] if not run else ["" if row.engine is None else f"{row.engine.mean:.5f}"]),
            "" if row.divergence is None else f"{100 * row.divergence.same_top:.1f} %",
            "" if row.kept is None else percent_text(row.kept),
            bytes_text(row.size),
        )
    return grid
