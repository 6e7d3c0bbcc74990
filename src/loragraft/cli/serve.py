"""`loragraft serve`: OpenAI's API and a page for one model and any number of adapters."""

from __future__ import annotations

import os
from pathlib import Path

import click

import loragraft as lg
from loragraft.cli import console
from loragraft.cli.command import FILE, command, flag, option
from loragraft.cli.named_adapter import NamedAdapter
from loragraft.cli.options import DEVICE, MODEL, THREADS, Parsed
from loragraft.errors import LoragraftError
from loragraft.system.memory import available_memory


@command(
    "loragraft serve tuned.Q4_K_M.gguf",
    "loragraft serve base.Q4_K_M.gguf --lora poet=./poet --lora coder=./coder.gguf",
    "loragraft serve base.Q4_K_M.gguf --adapters-dir ./adapters --adapter-memory 2GB",
    "loragraft serve base.Q4_K_M.gguf --host 0.0.0.0 --api-key $KEY",
)
@MODEL
@option(
    "--lora",
    multiple=True,
    type=NamedAdapter(),
    metavar="[NAME=]ADAPTER[=STRENGTH]",
    help="An adapter that requests can name. May be given several times.",
)
@option(
    "--adapters-dir",
    type=FILE,
    metavar="DIR",
    help="Requests can name every adapter in this folder, including ones added later.",
)
@option(
    "--adapter-memory",
    type=Parsed("loragraft.units:byte_count"),
    metavar="SIZE",
    default_text="no bound",
    help="Memory for adapters (512MB, 2GB); the least recently used are dropped.",
)
@option(
    "--kv-memory",
    type=Parsed("loragraft.units:byte_count"),
    metavar="SIZE",
    default_text="half of what is free",
    help="Memory for keys and values: of replies under way, and of earlier prompts that are kept.",
)
@option("--host", default="127.0.0.1", metavar="ADDRESS", help="Where to listen.")
@option(
    "--port", type=click.IntRange(0, 65535), default=8080, metavar="N", help="The port; 0 takes a free one."
)
@option(
    "--api-key",
    metavar="KEY",
    default_text="the variable LORAGRAFT_API_KEY, if set",
    help="What clients must send as their API key.",
)
@flag("--no-auth", help="Let everybody in who can reach the address.")
@option("--alias", metavar="NAME", default_text="the file's name", help="What clients call the base model.")
@option(
    "--parallel",
    type=click.IntRange(1, 1024),
    default=64,
    metavar="N",
    help="Replies to make at once.",
)
@option("--queue", type=click.IntRange(0, 1 << 20), default=256, metavar="N", help="Requests that may wait.")
@flag("--no-lookup", help="Never guess tokens ahead from earlier text.")
@DEVICE
@THREADS
def serve(
    model: Path,
    lora: tuple[tuple[str, Path, float], ...],
    adapters_dir: Path | None,
    adapter_memory: int | None,
    kv_memory: int | None,
    host: str,
    port: int,
    api_key: str | None,
    no_auth: bool,
    alias: str | None,
    parallel: int,
    queue: int,
    no_lookup: bool,
    device: str,
    threads: int | None,
) -> None:
    """Serve a model over HTTP: OpenAI's API, adapters by name, and a page to talk to it.

    A request names an adapter as its model ("poet", or "base:poet"), or lists several with their strengths in the field
    `lora`. Requests with different adapters share every batch.
    """
    try:
        from loragraft.server.serve import ServeOptions, check_exposure
        from loragraft.server.serve import serve as run
    except ModuleNotFoundError as missing:
        raise LoragraftError(
            "serve", f"needs the package {missing.name}", hint="pip install 'loragraft[serve]'"
        ) from None
    options = ServeOptions(
        host=host,
        port=port,
        api_key=api_key or os.environ.get("LORAGRAFT_API_KEY"),
        no_auth=no_auth,
        alias=alias,
        adapters_dir=adapters_dir,
        adapter_memory=adapter_memory,
        sequences=parallel,
        waiting=queue,
        lookup=not no_lookup,
    )
    check_exposure(options)
    if adapters_dir is not None and not adapters_dir.is_dir():
        raise LoragraftError("--adapters-dir", "no such folder", found=adapters_dir)
    if kv_memory is None and (free := available_memory()) is not None:
        kv_memory = free // 2
    loaded = lg.load(model, device=device, threads=threads, keys_values_memory=kv_memory)
    for note in loaded.notes:
        console.info(note)
    run(loaded, lora, options, ready=lambda url: console.info(f"listening on {url} (Ctrl-C stops)"))
