"""`loragraft quantize`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loragraft.cli import console
from loragraft.cli.options import Json, Threads
from loragraft.cli.progress import progress
from loragraft.cli.quantize_options import as_json, show_dry_run, show_result, with_quantize_options

if TYPE_CHECKING:
    from loragraft.options import QuantizeOptions

EXAMPLES = (
    "loragraft quantize model-F16.gguf model-Q4_K_M.gguf Q4_K_M",
    "loragraft quantize --imatrix imatrix.gguf model-F16.gguf model-IQ2_XS.gguf IQ2_XS",
    "loragraft quantize --tensor-type attn_v=q8_0 --dry-run model-F16.gguf Q4_K_M",
)


@with_quantize_options
def command(
    model: Annotated[Path, typer.Argument(metavar="IN.gguf", help="The model to quantize.")],
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[OUT.gguf] TYPE [THREADS]",
            help="The file to write (if left out, ggml-model-TYPE.gguf beside the input), and the type, by "
            "llama-quantize's name or number.",
        ),
    ],
    options: QuantizeOptions,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be written.")] = False,
    threads: Threads = None,
    to_json: Json = False,
) -> None:
    """Quantize a GGUF model: llama-quantize's types, options and bytes.

    Types: F32 F16 BF16 Q8_0 Q6_K Q5_K_M Q5_K_S Q5_1 Q5_0 Q4_K_M Q4_K_S Q4_1 Q4_0 IQ4_NL IQ4_XS MXFP4_MOE Q3_K_L
    Q3_K_M Q3_K_S IQ3_M IQ3_S IQ3_XS IQ3_XXS Q2_K Q2_K_S Q2_0 IQ2_M IQ2_S IQ2_XS IQ2_XXS IQ1_M IQ1_S TQ2_0 TQ1_0 Q1_0,
    and COPY.
    """
    from loragraft.errors import UnsupportedError
    from loragraft.quantize import quantize
    from loragraft.quants.filetypes import FileType, file_type

    def parse(word: str) -> FileType:
        try:
            return file_type(word)
        except UnsupportedError as problem:
            raise typer.BadParameter(str(problem), param_hint="'TYPE'") from None

    try:
        target, rest = file_type(words[0]), words[1:]
        output = model.with_name(f"ggml-model-{target}.gguf")
    except UnsupportedError:
        if len(words) == 1:
            parse(words[0])
        output, target, rest = Path(words[0]), parse(words[1]), words[2:]
    if len(rest) > 1 or (rest and not rest[0].isdecimal()):
        raise typer.BadParameter(f"unexpected {rest[-1]!r} after the type")
    if rest and threads is None:
        threads = int(rest[0]) or None
    with progress() as bars:
        report = quantize(
            model, None if dry_run else output, target, options=options, threads=threads, progress=bars
        )
    if to_json:
        console.result(json.dumps(as_json(report), indent=1))
    elif dry_run:
        show_dry_run(report)
    else:
        show_result(report)
