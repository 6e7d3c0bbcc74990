"""`loragraft imatrix`: collect an importance matrix."""

from __future__ import annotations

import json
from pathlib import Path

import loragraft as lg
from loragraft.cli import console
from loragraft.cli.command import OUTPUT, command, flag, option
from loragraft.cli.measure_options import Measured, measure_options
from loragraft.cli.options import JSON, LORA, MODEL, WORKERS
from loragraft.cli.progress import progress
from loragraft.system.files import files_of
from loragraft.units import plural


@command(
    "loragraft imatrix model-F16.gguf -f calibration.txt -o model.imatrix.gguf",
    "loragraft imatrix ./hf-folder --lora adapter -f calibration.txt -o tuned.imatrix.gguf",
    "loragraft merge ./hf-folder --lora adapter -o out.gguf --type IQ3_S --imatrix tuned.imatrix.gguf",
)
@MODEL
@option(
    "--output",
    "-o",
    required=True,
    type=OUTPUT,
    metavar="FILE",
    help="The importance matrix to write (GGUF).",
)
@LORA
@measure_options(context=512)
@flag("--process-output", help="Collect for the output layer too.")
@WORKERS
@JSON
def imatrix(
    model: Path,
    output: Path,
    lora: tuple[tuple[Path, float], ...],
    measured: Measured,
    process_output: bool,
    workers: str | None,
    as_json: bool,
) -> None:
    """Collect an importance matrix on a text, for quantizing with --imatrix.

    With --lora the adapter is active while the matrix is collected, so it describes the merged model. The windows are
    those of llama-imatrix: --context tokens each, starting with BOS if the model uses one. Every token counts.
    """
    how = measured.measurement

    from loragraft.system.output import OutputFile

    inputs = [
        measured.path,
        *(file for path in (model, *(path for path, _ in lora)) for file in files_of(path)),
    ]
    OutputFile.probe(output, inputs)

    with measured.named(), progress() as bars:
        result = lg.imatrix(
            model,
            how,
            adapters=lora,
            process_output=process_output,
            dataset=measured.path.name,
            workers=workers,
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
