"""`loragraft join`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loragraft.cli import console
from loragraft.cli.progress import progress
from loragraft.cli.units import bytes_text

EXAMPLES = ("loragraft join model-00001-of-00003.gguf model.gguf",)


def command(
    model: Annotated[Path, typer.Argument(metavar="IN.gguf", help="Any file of the split model.")],
    output: Annotated[Path, typer.Argument(metavar="OUT.gguf", help="The file to write.")],
) -> None:
    """Join the files of a split GGUF model into one, as llama-gguf-split --merge does."""
    from loragraft.split import join

    with progress() as bars:
        joined = join(model, output, progress=bars)
    console.info(f"{joined}: {bytes_text(joined.stat().st_size)}")
