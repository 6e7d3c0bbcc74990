"""The command line: parse, call a verb of the library, print.

One file per command, imported when the command is used; `command.py` says what a command is.
"""

from __future__ import annotations

import importlib
import io
import sys
from typing import Any

import click

from loragraft import __version__
from loragraft.cli import console
from loragraft.cli.command import Command, help_if_bare, section
from loragraft.cli.exits import reported
from loragraft.system import interrupts

#: Every command under its panel of `loragraft --help`: its name, which is its module's and function's too, and what it
#: is for, which is the first paragraph of its help.
PANELS: dict[str, dict[str, str]] = {
    "Graft": {
        "merge": "Merge LoRA adapters into a model and quantize the sum, in one pass.",
        "quantize": "Quantize a GGUF model: llama-quantize's types, options and bytes.",
        "convert": "Convert a Hugging Face model to GGUF, or an adapter to GGUF, PEFT or mlx-lm.",
        "export": "Write a Hugging Face checkpoint in NVFP4, for vLLM, TensorRT-LLM and SGLang.",
        "combine": "Make one adapter of several: their sum, cut to a rank, or by TIES, DARE, magnitude.",
        "extract": "Make an adapter of the difference of two models.",
        "unmerge": "Take adapters that were merged into a model out of it again.",
        "imatrix": "Collect an importance matrix on a text, for quantizing with --imatrix.",
    },
    "Measure": {
        "compare": "Measure which deployment keeps more of a fine-tune: merged then quantized, or the adapter at run "
        "time.",
        "budget": "Choose the type of every tensor so that a model of a given size keeps the most of a fine-tune.",
        "check": "Report how every linear is computed, and measure what each wrong order would cost.",
        "perplexity": "Print a model's perplexity on a text, computed as llama-perplexity does.",
    },
    "Use": {
        "run": "Continue a prompt, printing the text as it is made.",
        "chat": "Talk to a model in the terminal.",
        "serve": "Serve a model over HTTP: OpenAI's API, adapters by name, and a page to talk to it.",
        "ollama": "Write a Modelfile for Ollama: the model, its chat template, its sampling defaults and its adapters.",
        "tokenize": "Print the tokens of a text, one per line: id and text.",
        "devices": "List what models can run on: the processor and the GPUs, their memory and what each can run.",
    },
    "Files": {
        "inspect": "Show what a file holds: its metadata and its tensors.",
        "split": "Divide a GGUF model into several files, as llama-gguf-split does.",
        "join": "Join the files of a split GGUF model into one, as llama-gguf-split --merge does.",
    },
    "Shell": {
        "completion": "Print the script that lets a shell complete commands, options and files.",
    },
}
COMMANDS = tuple(name for commands in PANELS.values() for name in commands)


class _App(click.Group):
    """The group of all commands, which imports a command when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> Command | None:
        if name not in COMMANDS:
            return None
        found: Command = getattr(importlib.import_module(f"loragraft.cli.{name}"), name)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if self.get_command(ctx, args[0]) is None and not ctx.resilient_parsing:
            from difflib import get_close_matches

            near = get_close_matches(args[0], COMMANDS, 1)
            ctx.fail(f"no such command {args[0]!r}." + (f" Did you mean {near[0]!r}?" if near else ""))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for panel, commands in PANELS.items():
            section(formatter, panel, commands.items())

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        help_if_bare(ctx, args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        with reported():  # before click.Group.main sees a KeyboardInterrupt, which it would print a line for
            return super().invoke(ctx)

    def main(self, *args: Any, **settings: Any) -> Any:
        settings = {**settings, "standalone_mode": False, "color": console.colours(sys.stdout)}
        with reported():
            code = super().main(*args, **settings)
        sys.exit(code)


app = _App(
    name="loragraft",
    help="Get a LoRA fine-tune onto a quantized model without losing it.",
    epilog="Each command has its own help with examples: loragraft merge --help\n\n"
    "A model of an architecture that is not known here: make GGUFs of it and of the adapter with llama.cpp's "
    "convert_hf_to_gguf.py and convert_lora_to_gguf.py, then: loragraft merge base.gguf --lora adapter.gguf",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
click.version_option(__version__, message="loragraft %(version)s", help="Print the version and exit.")(app)


def main() -> None:
    """Run the command line of this process and exit: 0, 1 for an error the user can act on, 2 for wrong usage."""
    interrupts.install()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name need not be text
    app(prog_name="loragraft")
