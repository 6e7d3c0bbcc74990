"""Split a GGUF model into several files, and join them again: the bytes that llama-gguf-split writes."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from loragraft.errors import GGUFError, OutputError
from loragraft.formats.gguf.model import SPLIT_COUNT, joined_tensors, open_shards
from loragraft.formats.gguf.reader import GGUFFile, GGUFTensor
from loragraft.formats.gguf.writer import GGUFLayout, GGUFWriter, TensorSpec
from loragraft.formats.split import SplitLimits, joined_metadata, plan_shards, shard_metadata, shard_paths
from loragraft.progress import SILENT, Progress
from loragraft.system.files import named_path

_COPY_BYTES = 1 << 24


@dataclass(frozen=True, slots=True)
class SplitFile:
    """One file of a split model."""

    path: Path
    n_tensors: int
    size: int
    """Of the file, in bytes."""


def split(
    model: Path | str,
    output: Path | str,
    limits: SplitLimits | None = None,
    *,
    dry_run: bool = False,
    progress: Progress = SILENT,
) -> list[SplitFile]:
    """Divide the GGUF file `model` into `output`-00001-of-0000N.gguf and so on, or, with `dry_run`, only say how.

    All files appear together, when the last is written. Without `limits` a file holds 128 tensors. A model that is
    split already is divided anew. Raises `GGUFError`, `OutputError`.
    """
    files = open_shards(named_path(model))
    tensors = joined_tensors(files)
    shards = plan_shards(_specs(tensors), limits or SplitLimits())
    plans = [
        (path, shard_metadata(files[0].metadata, number, len(shards), len(tensors)), specs)
        for number, (path, specs) in enumerate(
            zip(shard_paths(named_path(output, OutputError), len(shards)), shards, strict=True)
        )
    ]
    if not dry_run:
        progress.start("split", sum(tensor.nbytes for tensor in tensors.values()))
        with ExitStack() as stack:
            for path, metadata, specs in plans:
                writer = stack.enter_context(GGUFWriter(path, metadata, specs, inputs=_paths(files)))
                _copy(tensors, specs, writer, progress)
                writer.seal()
    return [
        SplitFile(path, len(specs), GGUFLayout.plan(metadata, specs).size) for path, metadata, specs in plans
    ]


def join(model: Path | str, output: Path | str, *, progress: Progress = SILENT) -> Path:
    """Write the split model that the file `model` belongs to as the one file `output`.

    Raises `GGUFError`, also for a model that is not split, and `OutputError`.
    """
    files = open_shards(named_path(model))
    count = files[0].metadata.get(SPLIT_COUNT)
    if count is None or count.data < 1:
        raise GGUFError(model, "is not one file of a split model", expected=f"{SPLIT_COUNT} in its metadata")
    tensors = joined_tensors(files)
    specs = _specs(tensors)
    progress.start("join", sum(tensor.nbytes for tensor in tensors.values()))
    with GGUFWriter(
        named_path(output, OutputError), joined_metadata(files[0].metadata), specs, inputs=_paths(files)
    ) as writer:
        _copy(tensors, specs, writer, progress)
    return named_path(output, OutputError)


def _specs(tensors: dict[str, GGUFTensor]) -> list[TensorSpec]:
    return [TensorSpec(tensor.name, tensor.shape, tensor.type) for tensor in tensors.values()]


def _paths(files: list[GGUFFile]) -> list[Path]:
    return [file.path for file in files]


def _copy(
    tensors: dict[str, GGUFTensor], specs: list[TensorSpec], writer: GGUFWriter, progress: Progress
) -> None:
    for spec in specs:
        tensor = tensors[spec.name]
        step = max(1, _COPY_BYTES // tensor.row_bytes)
        for start in range(0, tensor.n_rows, step):
            rows = tensor.rows(start, min(start + step, tensor.n_rows))
            writer.write(spec.name, start * tensor.row_bytes, rows)
            progress.advance(rows.nbytes)
