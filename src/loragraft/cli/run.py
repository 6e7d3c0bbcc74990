"""`loragraft run`: continue a prompt."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

import loragraft as lg
from loragraft.cli import console
from loragraft.cli.command import command, flag, option
from loragraft.cli.intake_options import intake_options
from loragraft.cli.options import (
    ACTIVATIONS,
    BACKEND,
    DEVICE,
    JSON,
    LORA,
    MODEL,
    PROMPT,
    PROMPT_FILE,
    THREADS,
    as_text,
    prompt_of,
)
from loragraft.units import plural

if TYPE_CHECKING:
    from loragraft.huggingface.intake import Intake
    from loragraft.inference.measurement import Activations, BackendName

_PROBABILITY = click.FloatRange(min=0, max=1)


@command(
    'loragraft run model.gguf -p "Once upon a time"',
    'loragraft run model.gguf --lora adapter -p "ROMEO:" -n 200 --temp 0',
    'loragraft run ./hf-folder --lora a=0.5 --lora b=0.5 -p "Hello" --seed 7',
    'loragraft run tuned.Q4_K_M.gguf --chat -p "What is a quantized model?"',
    "cat prompt.txt | loragraft run model.gguf -f -",
)
@MODEL
@PROMPT
@PROMPT_FILE
@flag("--chat", "-c", help="The prompt is a user's message: put it in the model's chat template.")
@option("--system", metavar="TEXT", help="With --chat: the system message.")
@LORA
@option(
    "--predict",
    "-n",
    type=click.IntRange(min=0),
    default=128,
    metavar="N",
    help="Tokens to make at most.",
)
@option("--temp", type=click.FloatRange(min=0), default=0.8, metavar="T", help="Temperature; 0 is greedy.")
@option(
    "--top-k",
    type=click.IntRange(min=0),
    default=40,
    metavar="K",
    help="Keep the K most likely tokens; 0: all.",
)
@option(
    "--top-p",
    type=_PROBABILITY,
    default=0.95,
    metavar="P",
    help="Keep the fewest tokens that reach this probability.",
)
@option(
    "--min-p",
    type=_PROBABILITY,
    default=0.05,
    metavar="P",
    help="Drop tokens this much less likely than the most likely one.",
)
@option(
    "--seed",
    "-s",
    type=click.IntRange(min=0),
    metavar="N",
    default_text="random",
    help="Set it to get the same text again.",
)
@flag(
    "--echo/--no-echo",
    default=None,
    default_text="yes, without --chat",
    help="Print the prompt before its continuation.",
)
@BACKEND
@DEVICE
@ACTIVATIONS
@THREADS
@JSON
@intake_options
def run(
    model: Path,
    prompt: str | None,
    file: Path | None,
    chat: bool,
    system: str | None,
    lora: tuple[tuple[Path, float], ...],
    predict: int,
    temp: float,
    top_k: int,
    top_p: float,
    min_p: float,
    seed: int | None,
    echo: bool | None,
    backend: BackendName,
    device: str,
    activations: Activations | None,
    threads: int | None,
    as_json: bool,
    intake: Intake,
) -> None:
    """Continue a prompt, printing the text as it is made.

    Without --chat the prompt is taken as it is. Control tokens that it spells out (<|eot_id|>) are read as tokens. With
    --json one object is printed at the end: the text, counts of tokens, times and speeds.
    """
    if system is not None and not chat:
        raise click.UsageError("--system needs --chat")
    text = prompt_of(prompt, file)
    loaded = lg.load(
        model,
        lora,
        backend=backend,
        device=device,
        activations=activations or "auto",
        threads=threads,
        intake=intake,
    )
    for note in loaded.notes:
        console.info(note)
    said = [("system", None if system is None else as_text(system, "--system")), ("user", text)]
    messages = [{"role": role, "content": content} for role, content in said if content is not None]
    stream = loaded.generate(
        loaded.chat_prompt(messages) if chat else text,
        max_tokens=predict,
        temperature=temp,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
    )
    if not as_json and (echo or (echo is None and not chat)):
        console.write(text)
    start = first = time.perf_counter()
    pieces: list[str] = []
    for piece in stream:
        if not pieces:
            first = time.perf_counter()
        pieces.append(piece)
        if not as_json:
            console.write(piece)
    reading, making = first - start, time.perf_counter() - first
    made = len(stream.ids)
    full = made == stream.limit < predict
    if as_json:
        facts = {
            "prompt": text,
            "text": "".join(pieces),
            "prompt_tokens": stream.prompt_tokens,
            "tokens": made,
            "stopped_by": "context" if full else "length" if made == stream.limit else "model",
            "seed": stream.seed if temp > 0 else None,
            "seconds": {"prompt": reading, "text": making},
            "tokens_per_second": {
                "prompt": _rate(stream.prompt_tokens, reading),
                "text": _rate(made - 1, making),
            },
        }
        console.result(json.dumps(facts, ensure_ascii=False))
        return
    console.result()
    if full:
        console.info(f"stopped: the model's context of {loaded.context_length} tokens is full")
    if temp > 0 and seed is None:
        console.info(f"seed {stream.seed}")
    console.detail(
        f"prompt: {plural(stream.prompt_tokens, 'token')} in {reading:.2f} s; then {plural(made, 'token')} in "
        f"{making:.2f} s, {_rate(made - 1, making) or 0:.1f} tokens/s"
    )


def _rate(tokens: int, seconds: float) -> float | None:
    """Tokens per second. (The first token of a text comes with the reading of the prompt.)"""
    return tokens / seconds if tokens > 0 and seconds > 0 else None
