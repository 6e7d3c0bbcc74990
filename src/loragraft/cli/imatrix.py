"""`loragraft imatrix`: collect an importance matrix."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loragraft.cli import console
from loragraft.cli.options import Context, Lora, MaxChars, Text, Windows, files_of, parse_lora, read_text
from loragraft.cli.progress import progress
from loragraft.cli.units import plural

EXAMPLES = (
    "loragraft imatrix model-F16.gguf -f calibration.txt -o model.imatrix.gguf",
    "loragraft imatrix ./hf-folder --lora adapter -f calibration.txt -o tuned.imatrix.gguf",
    "loragraft merge ./hf-folder --lora adapter -o out.gguf --type IQ3_S --imatrix tuned.imatrix.gguf",
)


def command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A GGUF file or a Hugging Face folder.")],
    text: Text,
    output: Annotated[Path, typer.Option("--output", "-o", help="The importance matrix to write (GGUF).")],
    lora: Lora = None,
    context: Context = 512,
    windows: Windows = None,
    max_chars: MaxChars = None,
    process_output: Annotated[
        bool, typer.Option("--process-output", help="Of the output layer too.")
    ] = False,
) -> None:
    """Collect an importance matrix on a text, for quantizing with --imatrix.

    With --lora it is collected with the adapter active, which is what the merged model will see. The windows are those
    of llama-imatrix: --context tokens each, starting with BOS if the model uses one; every token counts. Runs on the
    NumPy backend in float32, so it needs memory for the model in that format.
    """
    words = read_text(text, max_chars)
    adapters = parse_lora(lora)

    from loragraft.formats.output import OutputFile
    from loragraft.imatrix import imatrix

    inputs = [text, *(file for path in (model, *(path for path, _ in adapters)) for file in files_of(path))]
    OutputFile.probe(output, inputs)

    with progress() as bars:
        result = imatrix(
            model,
            words,
            adapters=adapters,
            context=context,
            limit=windows,
            process_output=process_output,
            dataset=text.name,
            progress=bars,
        )
    result.save_gguf(output, inputs=inputs)
    console.info(
        f"{output}: {plural(len(result.sums), 'weight')}, {plural(result.chunk_count, 'window')} "
        f"of {result.chunk_size} tokens"
    )
