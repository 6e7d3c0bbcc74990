"""The option that says which form an adapter is written in, and what is printed of one that was."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from loragraft.cli import console
from loragraft.cli.command import option
from loragraft.units import plural

if TYPE_CHECKING:
    from loragraft.verbs.adapter_files import AdapterReport


def to_option(default_text: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return option(
        "--to",
        type=click.Choice(["gguf", "peft", "mlx"]),
        default_text=default_text,
        help="The form of the adapter to write: a GGUF, or a new folder of PEFT or mlx-lm.",
    )


TO = to_option("gguf where OUT ends in .gguf, else peft")


def show_adapter(report: AdapterReport, as_json: bool) -> None:
    if as_json:
        facts = {
            "path": str(report.path),
            "kind": report.kind,
            "pairs": report.pairs,
            "tensors": report.tensors,
        }
        console.result(json.dumps(facts))
        return
    scales = ""
    if report.kind == "gguf":
        scales = ", scales multiplied in" if report.baked else ", scales by alpha / rank"
    console.info(f"{report.path}: {plural(report.pairs, 'pair')}{scales}")
