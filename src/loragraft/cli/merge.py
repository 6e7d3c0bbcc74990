"""`loragraft merge`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loragraft.cli import console
from loragraft.cli.options import Json, Lora, Threads, parse_lora
from loragraft.cli.progress import progress
from loragraft.cli.quantize_options import as_json, show_dry_run, show_result, with_quantize_options

if TYPE_CHECKING:
    from loragraft.options import QuantizeOptions

EXAMPLES = (
    "loragraft merge Llama-3.2-1B --lora my-adapter -o merged-Q4_K_M.gguf --type Q4_K_M",
    "loragraft merge base-F16.gguf --lora style.gguf=0.7 --lora facts.gguf -o merged-F16.gguf",
    "loragraft merge Llama-3.2-1B --lora my-adapter --type Q4_K_M --imatrix imatrix.gguf -o merged.gguf",
)


@with_quantize_options
def command(
    base: Annotated[
        Path,
        typer.Argument(
            metavar="BASE", help="A Hugging Face folder, or a GGUF file (or one of a split model)."
        ),
    ],
    options: QuantizeOptions,
    lora: Lora = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="OUT.gguf", help="The file to write.", show_default=False),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--type",
            metavar="TYPE",
            help="Any type of `loragraft quantize`. Left out: F16, or NVFP4 for a base in NVFP4.",
            show_default=False,
        ),
    ] = None,
    dequantize: Annotated[
        bool,
        typer.Option("--dequantize", help="Merge quantized weights that GGUF cannot carry as floats."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be written.")] = False,
    threads: Threads = None,
    to_json: Json = False,
) -> None:
    """Merge LoRA adapters into a model and quantize the sum, in one pass.

    The result is, byte for byte, that of merging to F16 and quantizing the merged file, which is never written. Without
    --lora this converts the model.
    """
    from loragraft.errors import UnsupportedError
    from loragraft.merge import merge
    from loragraft.quants.filetypes import file_type

    if output is None and not dry_run:
        raise typer.BadParameter("name the file to write", param_hint="'--output'")
    try:
        target = None if kind is None else file_type(kind)
    except UnsupportedError as problem:
        raise typer.BadParameter(str(problem), param_hint="'--type'") from None
    with progress() as bars:
        report = merge(
            base,
            parse_lora(lora),
            None if dry_run else output,
            type=target,
            options=options,
            dequantize=dequantize,
            threads=threads,
            progress=bars,
        )
    if to_json:
        console.result(json.dumps(as_json(report), indent=1))
    elif dry_run:
        show_dry_run(report)
    else:
        show_result(report)
