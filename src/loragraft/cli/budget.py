"""`loragraft budget`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

import loragraft as lg
from loragraft.cli import console
from loragraft.cli.command import FILE, OUTPUT, argument, command, option
from loragraft.cli.deployments import deployments_table
from loragraft.cli.measure_options import Measured, measure_options
from loragraft.cli.options import (
    HTML,
    JSON,
    LORA,
    TARGET,
    WORK_DIR,
    WORKERS,
    Parsed,
    check_html,
    plot_option,
    read_text,
    reported,
)
from loragraft.cli.progress import progress
from loragraft.system.files import files_of

if TYPE_CHECKING:
    from rich.table import Table

    from loragraft.quants.filetypes import FileType
    from loragraft.verbs.budget import Budget


@command(
    "loragraft budget ./hf-folder --lora adapter --text train.txt --valid valid.txt -o types.txt",
    "loragraft budget base.gguf --lora adapter --text train.txt --keep 99%",
    "loragraft budget base.gguf --lora adapter --text train.txt --size 3.2GB --imatrix tuned.imatrix -o types.txt",
    "loragraft merge base.gguf --lora adapter -o tuned.gguf --type Q4_K_M --tensor-type-file types.txt",
)
@argument("base", metavar="BASE", type=FILE, help="A GGUF file or a Hugging Face folder.")
@LORA
@option(
    "--valid",
    type=FILE,
    metavar="FILE",
    default_text="the rest of --text",
    help="Another text, to judge the result on.",
)
@option(
    "--size",
    type=Parsed("loragraft.units:byte_count"),
    metavar="SIZE",
    help="Bytes for all tensors, such as 3.2GB.",
)
@option(
    "--bpw",
    type=click.FloatRange(min=0, min_open=True),
    metavar="BITS",
    help="Instead of --size: bits per weight.",
)
@option(
    "--keep",
    type=Parsed("loragraft.units:share"),
    metavar="PERCENT",
    help="Instead of --size: the smallest that keeps this much of the fine-tune.",
)
@option(
    "--like",
    "mix",
    type=TARGET,
    metavar="MIX",
    default="Q4_K_M",
    help="Instead of --size: the size of this mix.",
)
@option(
    "--types",
    metavar="TYPE,...",
    default_text="Q2_K,Q3_K,IQ4_XS,Q4_K,Q5_K,Q6_K,Q8_0",
    help="The types to choose from.",
)
@option("--imatrix", type=FILE, metavar="FILE", help="An importance matrix, GGUF or .dat.")
@option(
    "--calibrate",
    multiple=True,
    type=FILE,
    metavar="FILE",
    help="Round with error feedback on this text, and choose types for that (repeatable).",
)
@option(
    "--calibrate-windows",
    type=click.IntRange(min=1),
    default=40,
    metavar="N",
    help="Calibrate on this many windows of 256 tokens.",
)
@option(
    "--output", "-o", type=OUTPUT, metavar="FILE", help="Write the types to a file for --tensor-type-file."
)
@measure_options(context=256, windows=8, activations=True)
@option(
    "--valid-windows", type=click.IntRange(min=2), default=32, metavar="N", help="Judge on at most N windows."
)
@WORK_DIR
@WORKERS
@plot_option("where the bits go")
@HTML
@JSON
def budget(
    base: Path,
    lora: tuple[tuple[Path, float], ...],
    valid: Path | None,
    size: int | None,
    bpw: float | None,
    keep: float | None,
    mix: FileType,
    types: str | None,
    imatrix: Path | None,
    calibrate: tuple[Path, ...],
    calibrate_windows: int,
    output: Path | None,
    measured: Measured,
    valid_windows: int,
    work_dir: Path | None,
    workers: str | None,
    plot: Path | None,
    html: Path | None,
    as_json: bool,
) -> None:
    """Choose the type of every tensor so that a model of a given size keeps the most of a fine-tune.

    Each tensor is rounded on its own, and the KL divergence from the full-precision merged model is measured on
    --text: one reading of --windows windows per tensor. The types are chosen so that the sum of these divergences is
    as small as the size allows. The result is then measured on another text (--valid, or the rest of --text), beside
    the mix of the same size and the next larger one. If it is not better, the report says so.

    With --calibrate all models are rounded with error feedback, and what a type costs a tensor is taken from the
    model's gradients on that text.

    -o writes the types for `merge` and `quantize`, and for llama-quantize. docs/bits.md shows the gains.
    """
    if sum(wanted is not None for wanted in (size, bpw, keep)) > 1:
        raise click.UsageError("give one of --size, --bpw and --keep")
    if keep is not None and not lora:
        raise click.UsageError("--keep needs --lora: it is the fine-tune that is to be kept")
    from loragraft.evaluate.picture import check_picture
    from loragraft.system.memory import keep_arrays
    from loragraft.system.output import OutputFile
    from loragraft.verbs.budget import TYPES, save_picture

    inputs = [measured.path, *filter(None, [valid, imatrix]), *calibrate]
    inputs += [file for path in (base, *(path for path, _ in lora)) for file in files_of(path)]
    check_html(html)
    if plot is not None:
        check_picture(plot)
    if output is not None:
        OutputFile.probe(output, inputs)
    how, held_out = measured.measurement, None if valid is None else read_text(valid)
    if calibrate:
        keep_arrays()
    with measured.named(), progress() as bars:
        result = lg.budget(
            base,
            lora,
            how,
            size=size,
            bits_per_weight=bpw,
            keep=keep,
            like=mix.name,
            types=TYPES if types is None else [name.strip() for name in types.split(",")],
            valid=held_out,
            imatrix=imatrix,
            calibrate=calibrate,
            calibrate_windows=calibrate_windows,
            valid_windows=valid_windows,
            work_dir=work_dir,
            workers=workers,
            progress=bars,
        )
    if plot is not None:
        save_picture(result, plot)
        console.info(f"wrote {plot}")
    reported(result, html)
    if as_json:
        console.result(json.dumps(result.as_dict(), indent=1))
    else:
        console.show(_tensors(result))
        console.show(deployments_table([result.chosen, *result.mixes], measured.context))
        console.sentences(f"Expected of the chosen types: mean KL {result.expected:.5f}. {result.verdict}")
    how_made: list[object] = [] if imatrix is None else ["--imatrix", imatrix]
    for path in calibrate:
        how_made += ["--calibrate", path]
    if calibrate:
        how_made += ["--calibrate-windows", calibrate_windows]
    if output is not None:
        lines = result.tensor_types().encode()
        with OutputFile(output, len(lines), inputs=inputs) as file:
            file.write_at(0, lines)
        console.info(f"wrote {output}; to use it: {_merge_command(result, base, lora, how_made, output)}")


def _merge_command(
    result: Budget,
    base: Path,
    lora: tuple[tuple[Path, float], ...],
    how_made: Sequence[object],
    types: Path,
) -> str:
    words: list[object] = ["loragraft", "merge", base]
    for path, scale in lora:
        words += ["--lora", path if scale == 1 else f"{path}={scale:g}"]
    words += ["-o", "OUT.gguf", "--type", result.mix, "--tensor-type-file", types]
    return shlex.join(map(str, [*words, *how_made]))


def _tensors(result: Budget) -> Table:
    in_mix = f"in {result.mix}"
    table = console.table("tensor", "type", ">bits", in_mix, "measured as", ">KL", ">KL expected")
    for row in result.tensors:
        table.add_row(
            console.cell(row.name),
            row.type,
            f"{row.bits_per_weight:.2f}",
            "same" if row.mix_type == row.type else row.mix_type,
            row.probe_type,
            f"{row.probe.value:.6f}",
            f"{row.cost:.6f}",
        )
    return table
