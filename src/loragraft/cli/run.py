"""`loragraft run`: continue a prompt."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

import loragraft as lg
from loragraft.cli import console
from loragraft.cli.command import command, flag, option
from loragraft.cli.options import BACKEND, LORA, MODEL, PROMPT, PROMPT_FILE, THREADS, prompt_of

if TYPE_CHECKING:
    from loragraft.load import BackendName

_PROBABILITY = click.FloatRange(min=0, max=1)


@command(
    'loragraft run model.gguf -p "Once upon a time"',
    'loragraft run model.gguf --lora adapter -p "ROMEO:" -n 200 --temp 0',
    'loragraft run ./hf-folder --lora a=0.5 --lora b=0.5 -p "Hello" --seed 7',
    "cat prompt.txt | loragraft run model.gguf -f -",
)
@MODEL
@PROMPT
@PROMPT_FILE
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
    help="Keep the K likeliest tokens; 0: all.",
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
    help="Drop tokens this much less likely than the likeliest.",
)
@option(
    "--seed",
    "-s",
    type=click.IntRange(min=0),
    metavar="N",
    default_text="drawn",
    help="For the same text again.",
)
@flag("--echo/--no-echo", default=True, help="Print the prompt before its continuation.")
@BACKEND
@THREADS
def run(
    model: Path,
    prompt: str | None,
    file: Path | None,
    lora: tuple[tuple[Path, float], ...],
    predict: int,
    temp: float,
    top_k: int,
    top_p: float,
    min_p: float,
    seed: int | None,
    echo: bool,
    backend: BackendName,
    threads: int | None,
) -> None:
    """Continue a prompt, printing the text as it is made.

    The prompt is taken as it is: no chat template is applied. Texts of control tokens in it (<|eot_id|>) count as
    these tokens.
    """
    text = prompt_of(prompt, file)
    loaded = lg.load(model, lora, backend=backend, threads=threads)
    for note in loaded.notes:
        console.info(note)
    stream = loaded.generate(
        text, max_tokens=predict, temperature=temp, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed
    )
    if echo:
        console.write(text)
    start = time.perf_counter()
    for piece in stream:
        console.write(piece)
    seconds = time.perf_counter() - start
    console.result()
    if len(stream.ids) == stream.limit < predict:
        console.info(f"stopped: the model's context of {loaded.context_length} tokens is full")
    if temp > 0 and seed is None:
        console.info(f"seed {stream.seed}")
    console.detail(f"{len(stream.ids)} tokens in {seconds:.2f} s, {len(stream.ids) / seconds:.1f} tokens/s")
