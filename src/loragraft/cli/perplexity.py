"""`loragraft perplexity`: how well a model predicts a text."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import loragraft as lg
from loragraft.cli import console
from loragraft.cli.command import command
from loragraft.cli.measure_options import Measured, measure_options
from loragraft.cli.options import JSON, LORA, MODEL
from loragraft.cli.progress import progress
from loragraft.units import plural


@command(
    "loragraft perplexity model.gguf -f wiki.test.raw",
    "loragraft perplexity base.gguf --lora adapter -f text.txt --context 256",
    "loragraft perplexity ./hf-folder -f text.txt --windows 20 --json",
)
@MODEL
@LORA
@measure_options(context=512, runs=True)
@JSON
def perplexity(
    model: Path,
    lora: tuple[tuple[Path, float], ...],
    measured: Measured,
    as_json: bool,
) -> None:
    """Print a model's perplexity on a text, computed as llama-perplexity does.

    The tokens of the whole text are cut into windows of --context tokens, each read on its own with its first token
    replaced by BOS (if the model uses one). Only the second half of each window is scored, so that every prediction
    has at least half a window to go by. The result is exp of the mean negative log-likelihood.
    """
    how = measured.measurement
    loaded = lg.load(model, lora, **how.running)
    for note in loaded.notes:
        console.info(note)
    context = measured.context
    with measured.named(), progress() as bars:
        result = loaded.perplexity(how.text, context=context, windows=how.windows, progress=bars)
    if as_json:
        console.result(json.dumps({"model": str(model), "context": context, **asdict(result)}, indent=2))
        return
    console.result(f"perplexity {result.value:.4f} ± {result.error:.4f}")
    console.info(
        f"{plural(result.tokens, 'prediction')} in the second halves of {plural(result.windows, 'window')} "
        f"of {plural(context, 'token')}"
    )
