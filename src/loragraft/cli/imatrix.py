"""`loragraft imatrix`: collect an importance matrix."""

from __future__ import annotations

import json
from pathlib import Path

import loragraft as lg
from loragraft.cli import console
from loragraft.cli.command import OUTPUT, command, flag, option
from loragraft.cli.options import (
    JSON,
    LORA,
    MAX_CHARS,
    MODEL,
    TEXT,
    THREADS,
    WINDOWS,
    context_option,
    named,
    read_text,
)
from loragraft.cli.progress import progress
from loragraft.system.files import files_of
from loragraft.units import plural


@command(
    "loragraft imatrix model-F16.gguf -f calibration.txt -o model.imatrix.gguf",
    "loragraft imatrix ./hf-folder --lora adapter -f calibration.txt -o tuned.imatrix.gguf",
    "loragraft merge ./hf-folder --lora adapter -o out.gguf --type IQ3_S --imatrix tuned.imatrix.gguf",
)
@MODEL
@TEXT
@option(
    "--output",
    "-o",
    required=True,
    type=OUTPUT,
    metavar="FILE",
    help="The importance matrix to write (GGUF).",
)
@LORA
@context_option(512)
@WINDOWS
@MAX_CHARS
@flag("--process-output", help="Of the output layer too.")
@THREADS
@JSON
def imatrix(
    model: Path,
    text: Path,
    output: Path,
    lora: tuple[tuple[Path, float], ...],
    context: int,
    windows: int | None,
    max_chars: int | None,
    process_output: bool,
    threads: int | None,
    as_json: bool,
) -> None:
    """Collect an importance matrix on a text, for quantizing with --imatrix.

    With --lora it is collected with the adapter active, which is what the merged model will see. The windows are those
    of llama-imatrix: --context tokens each, starting with BOS if the model uses one; every token counts.
    """
    words = read_text(text, max_chars)

    from loragraft.formats.output import OutputFile

    inputs = [text, *(file for path in (model, *(path for path, _ in lora)) for file in files_of(path))]
    OutputFile.probe(output, inputs)

    with named(text), progress() as bars:
        result = lg.imatrix(
            model,
            words,
            adapters=lora,
            context=context,
            limit=windows,
            process_output=process_output,
            dataset=text.name,
            threads=threads,
            progress=bars,
        )
    result.save_gguf(output, inputs=inputs)
    if as_json:
        facts = {"weights": len(result.sums), "windows": result.chunk_count, "context": result.chunk_size}
        console.result(json.dumps({"path": str(output), **facts}))
        return
    console.info(
        f"{output}: {plural(len(result.sums), 'weight')}, {plural(result.chunk_count, 'window')} "
        f"of {plural(result.chunk_size, 'token')}"
    )
