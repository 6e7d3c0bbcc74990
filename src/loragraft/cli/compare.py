"""`loragraft compare`: which deployment keeps more of a fine-tune."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

import loragraft as lg
from loragraft.cli import console
from loragraft.cli.command import FILE, command, option
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
    reported,
)
from loragraft.cli.progress import progress

if TYPE_CHECKING:
    from loragraft.quants.filetypes import FileType


@command(
    "loragraft compare --base ./hf-folder --lora adapter --text valid.txt",
    "loragraft compare --base base.gguf --lora adapter=0.8 --text valid.txt --type Q5_K_M --context 256",
    "loragraft compare --base base.gguf --lora adapter --text valid.txt --windows 50 --json",
    "loragraft compare --base base.gguf --lora adapter --text valid.txt --type IQ4_XS --type Q4_K_M --type Q6_K "
    "--keep 99.5% --plot kept.svg",
)
@option(
    "--base",
    required=True,
    type=FILE,
    metavar="BASE",
    help="The base model: a GGUF file or a Hugging Face folder.",
)
@LORA
@option(
    "--type",
    "targets",
    type=TARGET,
    multiple=True,
    default=("Q4_K_M",),
    default_text="Q4_K_M",
    metavar="TYPE",
    help="How to quantize. May be given several times.",
)
@option(
    "--keep",
    type=Parsed("loragraft.units:share"),
    default="99%",
    metavar="PERCENT",
    help="How much of the fine-tune to keep.",
)
@option("--imatrix", type=FILE, metavar="FILE", help="An importance matrix, GGUF or .dat.")
@measure_options(context=512, runs=True)
@WORK_DIR
@WORKERS
@plot_option("the share kept against the size")
@HTML
@JSON
def compare(
    base: Path,
    lora: tuple[tuple[Path, float], ...],
    targets: tuple[FileType, ...],
    keep: float,
    imatrix: Path | None,
    measured: Measured,
    work_dir: Path | None,
    workers: str | None,
    plot: Path | None,
    html: Path | None,
    as_json: bool,
) -> None:
    """Measure which deployment keeps more of a fine-tune: merged then quantized, or the adapter at run time.

    Each --type is measured twice: merged and quantized, and quantized with the adapter applied at run time. The
    merged model at full precision and the bare base are measured too. The table shows perplexity, the mean KL
    divergence from the full-precision model, how often both pick the same most likely token, the share of the
    fine-tune kept, and the size. With several types it also names the smallest deployment that keeps enough. Only one
    type at a time is on disk.

    Perplexity is computed as llama-perplexity does: the tokens are cut into windows of --context tokens, each
    starting with BOS if the model uses one. Only the second half of each window is scored. The share kept is 1 -
    KL(x) / KL(base alone). The number after the ± is one standard error. A deployment keeps enough if its share is
    still enough after subtracting two standard errors.

    These figures use float activations: they are what the file itself loses. The column "KL as run" rounds activations
    to 8 bits, as this engine and llama.cpp do at run time. A larger type does not help against that part.
    --activations measures one of the two alone.
    """
    if not lora:
        raise click.UsageError("give at least one adapter with --lora")
    from loragraft.evaluate.picture import check_picture
    from loragraft.verbs.compare import save_picture

    check_html(html)
    if plot is not None:
        check_picture(plot)
    how = measured.measurement
    with measured.named(), progress() as bars:
        result = lg.compare(
            base,
            lora,
            how,
            types=[target.name for target in targets],
            keep=keep,
            imatrix=imatrix,
            work_dir=work_dir,
            workers=workers,
            progress=bars,
        )
    if plot is not None:
        save_picture(result, plot)
        console.info(f"wrote {plot}")
    reported(result, html)
    if as_json:
        console.result(json.dumps(result.as_dict(), indent=2))
        return
    ways = [row for one in result.types for row in (one.merged, one.runtime)]
    console.show(deployments_table([*ways, result.full, result.base], result.context))
    console.sentences(result.verdict)
