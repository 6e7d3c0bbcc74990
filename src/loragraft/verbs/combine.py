"""Several adapters as one new adapter."""

from __future__ import annotations

from dataclasses import replace
from os import PathLike
from pathlib import Path

from loragraft.adapters.combine import Combination
from loragraft.adapters.combine import combine as combined
from loragraft.errors import OutputError
from loragraft.formats.source import ModelSource
from loragraft.huggingface.intake import STRICT, Intake
from loragraft.opening import AdapterArguments, open_model, read_adapters
from loragraft.progress import SILENT, Progress
from loragraft.system.files import files_of, named_path
from loragraft.verbs.adapter_files import AdapterReport, write_adapter


def combine(
    base: str | PathLike[str] | ModelSource,
    adapters: AdapterArguments,
    output: str | PathLike[str],
    how: Combination | str = "cat",
    *,
    to: str | None = None,
    intake: Intake = STRICT,
    progress: Progress = SILENT,
) -> AdapterReport:
    """Write one adapter in place of `adapters` (paths, or pairs of path and weight), which are for `base`.

    `how`: a `Combination`, or the name of a method without a density, as PEFT's add_weighted_adapter has them. `to`:
    gguf, peft or mlx; None: as the name of `output` says. Of the base nothing is read but names and shapes.

    Raises `FormatError`, `AdapterError`, `OutputError`.
    """
    path = named_path(output, OutputError)
    how = Combination(how) if isinstance(how, str) else how
    model = base if isinstance(base, ModelSource) else open_model(base, dequantize=True, intake=intake)
    loaded = read_adapters(adapters, model, intake=intake)
    one = combined(loaded, how, path.stem)
    for note in one.notes:
        progress.note(note)
    one = replace(one, path=Path(path.name).with_suffix(""), files=())
    inputs = [file for adapter, _ in loaded for file in files_of(adapter.path)]
    return write_adapter(one, model, path, to, inputs, progress=progress)
