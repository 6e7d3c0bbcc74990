"""`loragraft chat`: talk to a model in a terminal, adapters switched and scaled while it runs."""

from __future__ import annotations

import json
import math
import shlex
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

import loragraft as lg
from loragraft.cli import console
from loragraft.cli.command import command, option
from loragraft.cli.named_adapter import NamedAdapter
from loragraft.cli.options import DEVICE, MODEL, THREADS
from loragraft.errors import LoragraftError

if TYPE_CHECKING:
    from loragraft.inference.conversation import Conversation, Turn

_HELP = """\
/lora             list the adapters and their strengths
/lora NAME X      give adapter NAME the strength X (0: off)
/load NAME PATH   add an adapter
/system TEXT      set what the system says (nothing: clear it)
/temp X           set the temperature (0: greedy)
/again            drop the last reply and make another
/new              begin a new conversation
/save FILE        save the conversation as JSON
/quit             end (also Ctrl-D)
Ctrl-C stops a reply. A line that ends in \\ goes on in the next."""


@command(
    "loragraft chat tuned.Q4_K_M.gguf",
    "loragraft chat base.Q4_K_M.gguf --lora poet=./poet --lora coder=./coder=0.5",
)
@MODEL
@option(
    "--lora",
    multiple=True,
    type=NamedAdapter(),
    metavar="[NAME=]ADAPTER[=STRENGTH]",
    help="An adapter, active from the start. May be given several times.",
)
@option("--system", metavar="TEXT", help="The system message.")
@option("--temp", type=click.FloatRange(min=0), default=0.8, metavar="T", help="Temperature; 0 is greedy.")
@option(
    "--predict", "-n", type=click.IntRange(min=1), default=512, metavar="N", help="Tokens of a reply at most."
)
@option(
    "--seed",
    "-s",
    type=click.IntRange(min=0),
    metavar="N",
    default_text="random",
    help="Set it to get the same replies again.",
)
@DEVICE
@THREADS
def chat(
    model: Path,
    lora: tuple[tuple[str, Path, float], ...],
    system: str | None,
    temp: float,
    predict: int,
    seed: int | None,
    device: str,
    threads: int | None,
) -> None:
    """Talk to a model in the terminal.

    Adapters are switched and scaled between replies, without loading anything again. /help lists the commands.
    """
    from loragraft.inference.conversation import Conversation

    loaded = lg.load(model, device=device, threads=threads)
    if not loaded.has_template:
        raise LoragraftError(
            model,
            "has no chat template",
            expected="a model that was trained to chat",
            hint=f"have it continue a text: loragraft run {shlex.quote(str(model))} -p TEXT",
        )
    for note in loaded.notes:
        console.info(note)
    with suppress(ImportError):
        import readline  # noqa: F401 (gives input() its history and keys)
    with Conversation(loaded, lora, system=system, temperature=temp, max_tokens=predict, seed=seed) as talk:
        _tell(talk)
        console.info("/help lists the commands; Ctrl-D ends.")
        while True:
            try:
                line = _read()
                if line is None or (line.startswith("/") and not _obey(talk, line)):
                    break
                if line.strip() and not line.startswith("/"):
                    _show(talk.say(line))
            except LoragraftError as error:
                console.error(str(error))
            except (
                KeyboardInterrupt
            ):  # before the first of a reply, while an adapter is loaded, behind the line
                console.result()


def _tell(talk: Conversation) -> None:
    """Print what there is to know of the adapters that were loaded."""
    while talk.notes:
        console.info(talk.notes.pop(0))


def _read() -> str | None:
    """What was typed; None at its end."""
    lines: list[str] = []
    while True:
        try:
            line = input(("… " if lines else "> ") if sys.stdin.isatty() else "")
        except EOFError:
            if sys.stdin.isatty():
                console.result()
            return "\n".join(lines) if lines else None
        except KeyboardInterrupt:
            console.result()
            lines = []
            continue
        if not line.endswith("\\"):
            return "\n".join([*lines, line])
        lines.append(line[:-1])


def _show(turn: Turn) -> None:
    """Print a reply as it is made; Ctrl-C stops it and keeps what there is."""
    start = time.perf_counter()
    try:
        for text in turn:
            console.write(text)
    except KeyboardInterrupt:
        turn.cancel()
    console.result()
    if turn.tokens:
        took = time.perf_counter() - start
        console.detail(
            f"{turn.tokens} tokens in {took:.2f} s; {turn.cached} of the prompt were known already"
        )


def _obey(talk: Conversation, line: str) -> bool:
    """Do what a command says; False ends the conversation."""
    words = line[1:].split(maxsplit=1)
    name, rest = (words[0] if words else "help"), (words[1].strip() if len(words) > 1 else "")
    match name:
        case "quit" | "exit":
            return False
        case "new":
            talk.restart()
        case "again":
            _show(talk.again())
        case "system":
            talk.system = rest or None
        case "temp":
            talk.temperature = _number(rest, "temperature", least=0.0)
        case "lora" if not rest:
            for adapter, strength in talk.strengths.items():
                console.result(f"{adapter}  {strength:g}")
            if not talk.strengths:
                console.result("no adapters; /load NAME PATH adds one")
        case "lora":
            adapter, _, given = rest.rpartition("=" if "=" in rest else " ")
            talk.set_strength(adapter.strip(), _number(given.strip(), "strength"))
        case "load":
            adapter, _, path = rest.partition(" ")
            talk.load(adapter, Path(path.strip()))
            _tell(talk)
        case "save":
            _save(talk, rest)
        case "help":
            console.result(_HELP)
        case _:
            raise LoragraftError(f"/{name}", "no such command", hint="/help lists them")
    return True


def _number(text: str, subject: str, least: float = -math.inf) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number >= least):
        kind = "such as 0.5" if least < 0 else f"a number from {least:g} on, such as 0.5"
        raise LoragraftError(
            subject, "not a number" if least < 0 else "out of range", found=repr(text), expected=kind
        )
    return number


def _save(talk: Conversation, name: str) -> None:
    from loragraft.system.output import OutputFile

    if not name:
        raise LoragraftError("/save", "needs a file's name")
    facts = {"model": talk.model, "adapters": talk.strengths, "messages": talk.messages}
    data = json.dumps(facts, ensure_ascii=False, indent=2).encode() + b"\n"
    with OutputFile(name, len(data)) as file:
        file.write_at(0, data)
    console.info(f"saved {name}")
