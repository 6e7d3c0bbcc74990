"""`loragraft check`."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import loragraft as lg
from loragraft.cli import console
from loragraft.cli.command import FILE, command, option
from loragraft.cli.options import JSON, LORA, MAX_CHARS, MODEL, context_option, named, plot_option, read_text
from loragraft.cli.progress import progress
from loragraft.units import count_text, plural

if TYPE_CHECKING:
    from rich.table import Table

    from loragraft.check import Conformance


@command(
    "loragraft check model-NVFP4.gguf",
    "loragraft check ./modelopt-folder --lora ./adapter --text valid.txt",
    "loragraft check model.gguf --lora adapter.gguf --text valid.txt --plot errors.svg --json > report.json",
)
@MODEL
@LORA
@option("--text", "-f", type=FILE, metavar="FILE", help="Measure every wrong order on this text (UTF-8).")
@context_option(256)
@option(
    "--windows",
    type=click.IntRange(min=1),
    default=8,
    metavar="N",
    help="Measure on the first N windows.",
)
@MAX_CHARS
@plot_option("the error of every linear")
@JSON
def check(
    model: Path,
    lora: tuple[tuple[Path, float], ...],
    text: Path | None,
    context: int,
    windows: int,
    max_chars: int | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Report how every linear is computed, and measure what each wrong order would cost.

    For every linear: its type, weight scale, adapters and bias, the order in which they are applied, and whether
    llama.cpp's published graph would abort, drop the scale or be right on it. With --text, the same model is run with
    the order deliberately broken, and perplexity and KL divergence are printed beside the right ones. This runs in
    float32 on the reference backend: slow, and four bytes of memory for each weight.
    """
    if plot is not None and text is None:
        raise click.UsageError("--plot needs --text: the errors are measured on it")
    from loragraft.check import save_picture
    from loragraft.evaluate.picture import check_picture

    if plot is not None:
        check_picture(plot)
    content = None if text is None else read_text(text, max_chars)
    with nullcontext() if text is None else named(text), progress() as bars:
        report = lg.check(model, lora, text=content, context=context, limit=windows, progress=bars)
    if plot is not None:
        save_picture(report, plot)
        console.info(f"wrote {plot}")
    for note in report.notes:
        console.info(note)
    if as_json:
        console.result(json.dumps(_finite(asdict(report)), indent=1, allow_nan=False, default=str))
        return
    console.show(_linears(report))
    console.result(_summary(report))
    if report.runs:
        console.result()
        console.show(_runs(report))
        console.result(_reading(report))


def _table(*headings: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading.lstrip(">"), justify="right" if heading.startswith(">") else "left")
    return table


def _linears(report: Conformance) -> Table:
    table = _table("linear", "type", ">weight scale", ">rank", "order", "llama.cpp")
    for linear in report.linears:
        scale = "" if linear.scale is None else f"{linear.scale[0]:.3g}"
        if linear.scale is not None and linear.scale[0] != linear.scale[1]:
            scale += f" to {linear.scale[1]:.3g}"
        ranks = "+".join(map(str, linear.ranks))
        name = linear.name if linear.weight == f"{linear.name}.weight" else f"{linear.name} (tied)"
        table.add_row(name, linear.type, scale, ranks, ", ".join(linear.order), linear.llama_cpp)
    return table


def _summary(report: Conformance) -> str:
    from loragraft.llama_cpp import COMMIT

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
    table = _table("order", ">linears", ">perplexity", ">KL to right", ">same top token")
    for run in report.runs:
        table.add_row(
            run.name,
            str(run.linears or ""),
            f"{run.perplexity:.4g} ± {run.perplexity_error:.2g}",
            f"{run.mean_kl:.4g}",
            f"{100 * run.same_top:.1f} %",
        )
    return table


def _reading(report: Conformance) -> str:
    from loragraft.check import PUBLISHED, RIGHT

    mistakes = [run for run in report.runs if run.linears and run.name != PUBLISHED]
    if not mistakes:
        return "No linear has a weight scale, so every order gives the same result (up to rounding)."
    worst = max(mistakes, key=lambda run: run.mean_kl if math.isfinite(run.mean_kl) else math.inf)
    right = next(run for run in report.runs if run.name == RIGHT)
    return (
        f"On {count_text(report.tokens)} tokens the worst mistake ({worst.name}) turns a perplexity of "
        f"{right.perplexity:.4g} into {worst.perplexity:.4g}."
    )


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
