"""`loragraft join`."""

from __future__ import annotations

from pathlib import Path

import loragraft as lg
from loragraft.cli import console
from loragraft.cli.command import FILE, argument, command
from loragraft.cli.progress import progress
from loragraft.cli.units import bytes_text


@command("loragraft join model-00001-of-00003.gguf model.gguf")
@argument("model", metavar="IN.gguf", type=FILE, help="Any file of the split model.")
@argument("output", metavar="OUT.gguf", type=FILE, help="The file to write.")
def join(model: Path, output: Path) -> None:
    """Join the files of a split GGUF model into one, as llama-gguf-split --merge does."""
    with progress() as bars:
        joined = lg.join(model, output, progress=bars)
    console.info(f"{joined}: {bytes_text(joined.stat().st_size)}")
