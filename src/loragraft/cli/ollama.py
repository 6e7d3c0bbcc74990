"""`loragraft ollama`."""

from __future__ import annotations

from pathlib import Path

import loragraft as lg
from loragraft.cli import console
from loragraft.cli.command import FILE, OUTPUT, argument, command, option


@command(
    "loragraft ollama tuned.Q4_K_M.gguf --name me/poet",
    "loragraft ollama base.Q4_K_M.gguf --lora poet.gguf -o Modelfile.poet",
)
@argument("model", metavar="MODEL.gguf", type=FILE, help="The model.")
@option(
    "--lora",
    multiple=True,
    type=FILE,
    metavar="ADAPTER.gguf",
    help="A GGUF adapter to apply at run time. May be given several times.",
)
@option("--name", metavar="NAME", help="Create the model of this name, where Ollama is installed.")
@option(
    "--output",
    "-o",
    type=OUTPUT,
    metavar="FILE",
    default_text="Modelfile, beside the model",
    help="The Modelfile to write.",
)
def ollama(model: Path, lora: tuple[Path, ...], name: str | None, output: Path | None) -> None:
    """Write a Modelfile for Ollama: the model, its chat template, its sampling defaults and its adapters.

    The chat template of a GGUF is a Jinja program; Ollama runs Go templates. A template that puts fixed texts around
    each message is rewritten for Go, and checked against the original on conversations of several turns. If a template
    does more, a note says so, and Ollama falls back on the template that it recognises.
    """
    report = lg.ollama(model, lora, output=output, name=name)
    for note in report.notes:
        console.info(note)
    console.info(f"wrote {report.path}")
    if report.created:
        console.result(f"created {report.created}: ollama run {report.created}")
    else:
        console.result(report.text.rstrip())
