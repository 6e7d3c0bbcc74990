"""`loragraft check`."""

from __future__ import annotations

import json
import math
import re
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import loragraft as lg
from loragraft.cli import console
from loragraft.cli.command import command
from loragraft.cli.measure_options import Measured, measure_options
from loragraft.cli.options import HTML, JSON, LORA, MODEL, check_html, plot_option, reported
from loragraft.cli.progress import progress
from loragraft.units import count_text, digits_text, plural, ranges_text

if TYPE_CHECKING:
    from rich.table import Table

    from loragraft.verbs.check import Conformance, LinearReport

_BLOCK = re.compile(r"blk\.(\d+)\.")


@command(
    "loragraft check model-NVFP4.gguf",
    "loragraft check ./modelopt-folder --lora ./adapter --text valid.txt",
    "loragraft check model.gguf --lora adapter.gguf --text valid.txt --plot errors.svg --json > report.json",
)
@MODEL
@LORA
@measure_options(
    context=256, windows=8, threads=False, text="Measure every wrong order on this text (UTF-8)."
)
@plot_option("the error of every linear")
@HTML
@JSON
def check(
    model: Path,
    lora: tuple[tuple[Path, float], ...],
    measured: Measured | None,
    plot: Path | None,
    html: Path | None,
    as_json: bool,
) -> None:
    """Report how every linear is computed, and measure what each wrong order would cost.

    For every linear: its type, weight scale, adapters and bias, the order in which they are applied, and what
    llama.cpp's published graph would do with it (abort, drop the scale, or be right). With --text, the model also runs
    with each order deliberately broken. Printed for each: perplexity, mean KL divergence from the right order, and how
    often both pick the same most likely token. These runs are in float32 on the reference backend, so they are slow and
    need four bytes of memory per weight. Blocks that are alike share a line unless --verbose is given. A weight that is
    not finite is an error.
    """
    if plot is not None and measured is None:
        raise click.UsageError("--plot needs --text: the errors are measured on it")
    from loragraft.evaluate.picture import check_picture
    from loragraft.verbs.check import save_picture

    check_html(html)
    if plot is not None:
        check_picture(plot)
    how = None if measured is None else measured.measurement
    with nullcontext() if measured is None else measured.named(), progress() as bars:
        report = lg.check(model, lora, text=how, progress=bars)
    if plot is not None:
        save_picture(report, plot)
        console.info(f"wrote {plot}")
    reported(report, html)
    for note in report.notes:
        console.info(note)
    if as_json:
        console.result(json.dumps(_finite(asdict(report)), indent=1, allow_nan=False, default=str))
        return
    console.show(_linears(report))
    console.sentences(_summary(report))
    if report.runs:
        console.result()
        console.show(_runs(report))
        console.sentences(_reading(report))


def _linears(report: Conformance) -> Table:
    """One row for all blocks whose linear is computed alike; with --verbose one for every linear."""
    table = console.table("linear", "type", ">weight scale", ">rank", "order", "llama.cpp")
    rows: dict[tuple[str, ...], list[LinearReport]] = {}
    for linear in report.linears:
        name = linear.name if console.is_verbose() else _BLOCK.sub("blk.*.", linear.name)
        ranks = "+".join(map(str, linear.ranks))
        tied = "" if linear.weight == f"{linear.name}.weight" else " (tied)"
        key = name + tied, linear.type, ranks, ", ".join(linear.order), linear.llama_cpp
        rows.setdefault(key, []).append(linear)
    for (name, kind, ranks, order, outcome), alike in rows.items():
        blocks = [int(found[1]) for linear in alike if (found := _BLOCK.match(linear.name))]
        scales = [scale for linear in alike for scale in linear.scale or ()]
        shown = name.replace("blk.*.", f"blk.{ranges_text(blocks)}.")
        table.add_row(shown, kind, _span(scales), ranks, order, outcome)
    return table


def _span(numbers: list[float]) -> str:
    ends = [f"{end(numbers):.3g}" for end in (min, max)] if numbers else []
    return " to ".join(dict.fromkeys(ends))


def _summary(report: Conformance) -> str:
    from loragraft.graph.llama_cpp import COMMIT

    lines = [f"{plural(len(report.linears), 'linear')} of {report.arch}; here every one is right."]
    wrong: dict[tuple[str, str, str], int] = {}
    for linear in report.linears:
        if linear.llama_cpp != "right":
            key = linear.llama_cpp, linear.why, linear.source
            wrong[key] = wrong.get(key, 0) + 1
    lines += [
        f"llama.cpp {COMMIT}: {outcome} on {n} ({why}; {source})"
        for (outcome, why, source), n in wrong.items()
    ]
    return "\n".join(lines)


def _runs(report: Conformance) -> Table:
    table = console.table("order", ">linears", ">perplexity", ">mean KL", ">same top-1", names=False)
    for run in report.runs:
        table.add_row(
            run.name,
            str(run.linears or ""),
            f"{digits_text(run.perplexity, 4)} ± {digits_text(run.perplexity_error, 2)}",
            f"{run.mean_kl:.4g}",
            f"{100 * run.same_top:.1f} %",
        )
    return table


def _reading(report: Conformance) -> str:
    from loragraft.verbs.check import PUBLISHED, RIGHT

    mistakes = [run for run in report.runs if run.linears and run.name != PUBLISHED]
    if not mistakes:
        return "No linear has a weight scale, so every order gives the same result (up to rounding)."
    worst = max(mistakes, key=lambda run: run.mean_kl if math.isfinite(run.mean_kl) else math.inf)
    right = next(run for run in report.runs if run.name == RIGHT)
    return (
        f"On {count_text(report.tokens)} tokens the worst mistake ({worst.name}) turns a perplexity of "
        f"{digits_text(right.perplexity, 4)} into {digits_text(worst.perplexity, 4)}."
    )


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
