"""Export a model as a Hugging Face checkpoint in NVFP4, for vLLM, TensorRT-LLM and SGLang.

Layouts: NVIDIA Model-Optimizer (`modelopt`: weight, weight_scale, weight_scale_2, input_scale) and
vllm-project/compressed-tensors (`nvfp4-pack-quantized`: weight_packed, weight_scale and reciprocal global scales).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from loragraft.archs.hf_config import config_of
from loragraft.errors import LoragraftError, OutputError
from loragraft.exporting.contents import Contents
from loragraft.exporting.layouts import LAYOUTS, Layout, Task
from loragraft.formats.checkpoint import Checkpoint
from loragraft.formats.output import OutputFile
from loragraft.formats.safetensors import SafetensorsWriter
from loragraft.formats.source import ModelSource
from loragraft.huggingface.tokenizer_json import tokenizer_files
from loragraft.merge import collect_deltas
from loragraft.models import AdapterArgument, load_adapters, open_model
from loragraft.progress import SILENT, Progress
from loragraft.quantize import cpu_count

_WEIGHTS = "model.safetensors"
#: What belongs to a checkpoint beside its weights and its config.json, and is copied from a source folder.
_COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote."""

    path: Path
    algorithm: str
    """NVFP4, or W4A16_NVFP4 where no scales of the activations are known."""
    carried_over: int
    """Matrices whose codes and scales were exported as they were."""
    quantized: int
    """Matrices that were quantized now."""
    size: int
    """Of the weights, in bytes."""


def export(
    source: str | PathLike[str] | ModelSource,
    output: str | PathLike[str],
    *,
    format: str = "modelopt",  # noqa: A002 (the word that everyone uses for it)
    adapters: Sequence[AdapterArgument] = (),
    threads: int | None = None,
    progress: Progress = SILENT,
) -> ExportReport:
    """Write the model at `source` (a GGUF or a Hugging Face folder), with `adapters`, to the new folder `output`.

    Weights that are NVFP4 already keep their codes and scales bit for bit; all other linears are quantized, q/k/v and
    gate/up under one scale each. Embeddings, output, norms, biases and routers stay in floating point. Scales of the
    activations are exported if the source has them for every linear; else the checkpoint is weight-only (W4A16_NVFP4).

    Raises `FormatError`, `AdapterError`, `UnsupportedError`, `OutputError`.
    """
    if format not in LAYOUTS:
        raise LoragraftError(format, "no such format", expected=" or ".join(LAYOUTS))
    folder = Path(output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(folder, "is there already", expected="a new or empty folder")
    model = source if isinstance(source, ModelSource) else open_model(source)
    loaded = load_adapters(adapters, model)
    notes = [*model.notes, *(note for adapter, _ in loaded for note in adapter.notes)]
    threads = threads or cpu_count()
    deltas = collect_deltas(model, loaded)
    contents = Contents(model, deltas, notes, keep_f16=LAYOUTS[format].keeps_f16, threads=threads)
    layout = LAYOUTS[format](contents)
    files = _side_files(model, contents, layout, notes)
    created = _make_folder(folder)
    try:
        _write_weights(folder / _WEIGHTS, layout, threads, progress)
        for name, data in files.items():
            with OutputFile(folder / name, len(data)) as file:
                file.write_at(0, data)
    except BaseException:
        for path in folder.iterdir():  # it was empty: whatever is there is ours
            path.unlink()
        if created:
            folder.rmdir()
        raise
    for note in notes:
        progress.note(note)
    carried = sum(scale is None for _, scale in contents.linears.values())
    size = sum(spec.nbytes for task in layout.tasks for spec in task.specs)
    return ExportReport(folder, contents.algorithm, carried, len(contents.linears) - carried, size)


def _make_folder(folder: Path) -> bool:
    """Whether it had to be made."""
    try:
        there = folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        return not there
    except OSError as problem:
        raise OutputError(folder, f"cannot be made: {problem.strerror}") from None


def _write_weights(path: Path, layout: Layout, threads: int, progress: Progress) -> None:
    specs = [spec for task in layout.tasks for spec in task.specs]
    progress.start("Exporting", sum(spec.nbytes for spec in specs))
    with SafetensorsWriter(path, specs, {"format": "pt"}) as writer, ThreadPoolExecutor(threads) as pool:

        def write(task: Task, start: int, stop: int) -> None:
            for spec, data in zip(task.specs, task.compute(start, stop), strict=True):
                writer.write(spec.name, spec.nbytes // task.rows * start, np.ascontiguousarray(data))
                progress.advance(data.nbytes)

        done = [pool.submit(write, task, *chunk) for task in layout.tasks for chunk in task.chunks]
        try:
            for future in done:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _side_files(model: ModelSource, contents: Contents, layout: Layout, notes: list[str]) -> dict[str, bytes]:
    """Everything but the weights: copied from a source folder, else made from the metadata."""
    files: dict[str, bytes] = {}
    objects: dict[str, Any] = {}
    if model.path.is_dir():
        config = dict(Checkpoint.open(model.path).config)
        config.pop("quantization_config", None)
        for name in _COPIED:
            if (model.path / name).is_file():
                files[name] = (model.path / name).read_bytes()
    else:
        shapes = {name: tensor.shape for name, tensor in model.tensors.items()}
        freqs = model.tensors.get("rope_freqs.weight")
        config = config_of(model.metadata, shapes, None if freqs is None else freqs.rows(0, 1).view("<f4")[0])
        objects.update(tokenizer_files(model.metadata, notes))
    config.pop("torch_dtype", None)
    config["dtype"] = config["torch_dtype"] = {"F16": "float16", "BF16": "bfloat16"}[contents.dtype]
    config["quantization_config"] = layout.quantization_config()
    objects["config.json"] = config
    objects.update(layout.extra_files())
    files.update(
        {name: json.dumps(value, indent=2, ensure_ascii=False).encode() for name, value in objects.items()}
    )
    return files
