"""`loragraft split`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loragraft.cli import console
from loragraft.cli.progress import progress
from loragraft.cli.units import bytes_text, plural

EXAMPLES = (
    "loragraft split model.gguf model --split-max-size 4G",
    "loragraft split model.gguf model --split-max-tensors 200 --dry-run",
)


def command(
    model: Annotated[Path, typer.Argument(metavar="IN.gguf", help="The model to divide.")],
    output: Annotated[
        Path, typer.Argument(metavar="OUT", help="Beginning of the names: OUT-00001-of-00003.gguf, ...")
    ],
    max_tensors: Annotated[
        int | None,
        typer.Option(
            "--split-max-tensors", min=1, metavar="N", help="Tensors in a file, at most.", show_default="128"
        ),
    ] = None,
    max_size: Annotated[
        str | None,
        typer.Option(
            "--split-max-size", metavar="N(M|G)", help="Tensor data in a file, at most (decimal units)."
        ),
    ] = None,
    no_tensor_first_split: Annotated[
        bool, typer.Option("--no-tensor-first-split", help="Only metadata in the first file.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say which files would be written.")
    ] = False,
) -> None:
    """Divide a GGUF model into several files, as llama-gguf-split does.

    The files appear together once all are written. Any loragraft command, and llama.cpp, reads the set when given its
    first file.
    """
    from loragraft.formats.split import SplitLimits, parse_size
    from loragraft.split import split

    if max_tensors is not None and max_size is not None:
        raise typer.BadParameter("give either --split-max-tensors or --split-max-size")
    try:
        max_bytes = None if max_size is None else parse_size(max_size)
    except ValueError as problem:
        raise typer.BadParameter(str(problem), param_hint="'--split-max-size'") from None
    limits = SplitLimits(max_tensors, max_bytes, no_tensor_first_split)
    with progress() as bars:
        shards = split(model, output, limits, dry_run=dry_run, progress=bars)
    for shard in shards:
        console.result(f"{shard.path}: {plural(shard.n_tensors, 'tensor')}, {bytes_text(shard.size)}")
