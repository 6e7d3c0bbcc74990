"""`loragraft split`."""

from __future__ import annotations

import json
from pathlib import Path

import click

import loragraft as lg
from loragraft.cli import console
from loragraft.cli.command import FILE, PLACE, argument, command, flag, option
from loragraft.cli.options import JSON, Parsed
from loragraft.cli.progress import progress
from loragraft.units import bytes_text, plural


@command(
    "loragraft split model.gguf model --split-max-size 4G",
    "loragraft split model.gguf model --split-max-tensors 200 --dry-run",
)
@argument("model", metavar="IN.gguf", type=FILE, help="The model to divide.")
@argument("output", metavar="OUT", type=PLACE, help="Beginning of the names: OUT-00001-of-00003.gguf, ...")
@option(
    "--split-max-tensors",
    "max_tensors",
    type=click.IntRange(min=1),
    metavar="N",
    default_text="128",
    help="Tensors in a file, at most.",
)
@option(
    "--split-max-size",
    "max_bytes",
    type=Parsed("loragraft.formats.split:parse_size"),
    metavar="N(M|G)",
    help="Tensor data in a file, at most (decimal units).",
)
@flag("--no-tensor-first-split", help="Only metadata in the first file.")
@flag("--dry-run", help="Only say which files would be written.")
@JSON
def split(
    model: Path,
    output: Path,
    max_tensors: int | None,
    max_bytes: int | None,
    no_tensor_first_split: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Divide a GGUF model into several files, as llama-gguf-split does.

    The files appear together once all are written. Any loragraft command, and llama.cpp, reads the set when given its
    first file.
    """
    from loragraft.formats.split import SplitLimits

    if max_tensors is not None and max_bytes is not None:
        raise click.UsageError("give either --split-max-tensors or --split-max-size")
    limits = SplitLimits(max_tensors, max_bytes, no_tensor_first_split)
    with progress() as bars:
        shards = lg.split(model, output, limits, dry_run=dry_run, progress=bars)
    if as_json:
        facts = [{"path": str(one.path), "tensors": one.n_tensors, "bytes": one.size} for one in shards]
        console.result(json.dumps({"files": facts}))
        return
    for shard in shards:
        said = f"{shard.path}: {plural(shard.n_tensors, 'tensor')}, {bytes_text(shard.size)}"
        console.result(console.one_line(said))
