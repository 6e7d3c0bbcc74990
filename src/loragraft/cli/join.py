"""`loragraft join`."""

from __future__ import annotations

import json
from pathlib import Path

import loragraft as lg
from loragraft.cli import console
from loragraft.cli.command import FILE, OUTPUT, argument, command
from loragraft.cli.options import JSON
from loragraft.cli.progress import progress
from loragraft.units import bytes_text


@command("loragraft join model-00001-of-00003.gguf model.gguf")
@argument("model", metavar="IN.gguf", type=FILE, help="Any file of the split model.")
@argument("output", metavar="OUT.gguf", type=OUTPUT, help="The file to write.")
@JSON
def join(model: Path, output: Path, as_json: bool) -> None:
    """Join the files of a split GGUF model into one, as llama-gguf-split --merge does."""
    with progress() as bars:
        joined = lg.join(model, output, progress=bars)
    size = joined.stat().st_size
    if as_json:
        console.result(json.dumps({"path": str(joined), "bytes": size}))
    else:
        console.info(f"{joined}: {bytes_text(size)}")
