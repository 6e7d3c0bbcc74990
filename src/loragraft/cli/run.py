"""`loragraft run`: continue a prompt."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from loragraft.cli import console
from loragraft.cli.options import (
    Backend,
    Lora,
    Threads,
    parse_lora,
    prompt_of,
)

EXAMPLES = (
    'loragraft run model.gguf -p "Once upon a time"',
    'loragraft run model.gguf --lora adapter -p "ROMEO:" -n 200 --temp 0',
    'loragraft run ./hf-folder --lora a=0.5 --lora b=0.5 -p "Hello" --seed 7',
    "cat prompt.txt | loragraft run model.gguf -f -",
)


def command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A GGUF file or a Hugging Face folder.")],
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", metavar="TEXT", help="The text to continue.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="Read the prompt from a file (- for stdin).")
    ] = None,
    lora: Lora = None,
    n: Annotated[
        int, typer.Option("--predict", "-n", min=0, metavar="N", help="Tokens to make at most.")
    ] = 128,
    temp: Annotated[
        float, typer.Option("--temp", min=0, metavar="T", help="Temperature; 0 is greedy.")
    ] = 0.8,
    top_k: Annotated[
        int, typer.Option("--top-k", min=0, metavar="K", help="Keep the K likeliest tokens; 0: all.")
    ] = 40,
    top_p: Annotated[
        float,
        typer.Option(
            "--top-p", min=0, max=1, metavar="P", help="Keep the fewest tokens that reach this probability."
        ),
    ] = 0.95,
    min_p: Annotated[
        float,
        typer.Option(
            "--min-p", min=0, max=1, metavar="P", help="Drop tokens this much less likely than the likeliest."
        ),
    ] = 0.05,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed", "-s", min=0, metavar="N", help="For the same text again.", show_default="drawn"
        ),
    ] = None,
    echo: Annotated[
        bool, typer.Option("--echo/--no-echo", help="Print the prompt before its continuation.")
    ] = True,
    backend: Backend = "native",
    threads: Threads = None,
) -> None:
    """Continue a prompt, printing the text as it is made.

    The prompt is taken as it is: no chat template is applied. Texts of control tokens in it (<|eot_id|>) count as
    these tokens.
    """
    text = prompt_of(prompt, file)

    from loragraft.load import load

    loaded = load(model, parse_lora(lora), backend=backend, threads=threads)
    for note in loaded.notes:
        console.info(note)
    stream = loaded.generate(
        text, max_tokens=n, temperature=temp, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed
    )
    if echo:
        console.write(text)
    start = time.perf_counter()
    for piece in stream:
        console.write(piece)
    seconds = time.perf_counter() - start
    console.result()
    if len(stream.ids) == stream.limit < n:
        console.info(f"stopped: the model's context of {loaded.context_length} tokens is full")
    if temp > 0 and seed is None:
        console.info(f"seed {stream.seed}")
    console.detail(f"{len(stream.ids)} tokens in {seconds:.2f} s, {len(stream.ids) / seconds:.1f} tokens/s")
