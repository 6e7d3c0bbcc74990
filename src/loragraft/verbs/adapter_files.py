"""Writes an adapter: a GGUF, or a folder as PEFT or mlx-lm saves it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loragraft.adapters.gguf_adapter import (
    TYPE,
    gguf_shapes,
    invocation_metadata,
    is_baked,
    scale_metadata,
    write_gguf_adapter,
)
from loragraft.adapters.lora import OUTPUT, Adapter
from loragraft.adapters.parts import refuse_parts
from loragraft.arrays import Floats
from loragraft.errors import LoragraftError, OutputError
from loragraft.formats.gguf.values import QUANTIZATION_VERSION, Metadata, Value
from loragraft.formats.peft import CONFIG
from loragraft.formats.safetensors import SafetensorsSpec, SafetensorsWriter
from loragraft.formats.source import ModelSource
from loragraft.huggingface.mlx import MLX_WEIGHTS
from loragraft.huggingface.mlx_writer import mlx_files
from loragraft.huggingface.model_card import general_metadata
from loragraft.huggingface.peft_writer import WEIGHTS, peft_files
from loragraft.progress import SILENT, Progress
from loragraft.streaming.checkpoint.folder import NewFolder
from loragraft.system.output import OutputFile

KINDS = ("gguf", "peft", "mlx")


@dataclass(frozen=True, slots=True)
class AdapterReport:
    """An adapter that was written."""

    path: Path
    pairs: int
    tensors: int
    """Of the adapter read; all of them were used."""
    baked: bool
    """Whether scales were multiplied into some B, as no single alpha tells them all."""
    kind: str = "gguf"
    """gguf, peft or mlx."""


def kind_of(output: Path, to: str | None) -> str:
    """What to write: as `to` says, else by the name. Raises LoragraftError for another word, or a folder that is called
    like a file."""
    if to is None:
        return "gguf" if output.suffix == ".gguf" else "peft"
    if to not in KINDS:
        raise LoragraftError(to, "no such form of an adapter", expected=" or ".join(KINDS))
    if to != "gguf" and output.suffix == ".gguf":
        raise OutputError(
            output,
            f"is a file's name, but {'a PEFT' if to == 'peft' else 'an mlx-lm'} adapter is a folder",
            expected="a folder's name",
            hint=f"-o {output.with_suffix('')}, or --to gguf",
        )
    return to


def write_adapter(
    adapter: Adapter,
    base: ModelSource,
    output: Path,
    to: str | None = None,
    inputs: Sequence[Path] = (),
    *,
    progress: Progress = SILENT,
) -> AdapterReport:
    """Write `adapter`, which is on the tensors of `base`, to `output`: a file, or a new folder.

    Raises AdapterError for what that form cannot hold, UnsupportedError for names that are not known, OutputError.
    """
    kind = kind_of(output, to)
    if adapter.tokenizer:
        progress.note(f"{adapter.path}: its own tokenizer is left out: copy it from there")
    baked = False
    if kind == "gguf":
        baked = is_baked(adapter)
        _write_gguf(adapter, base, output, inputs, progress)
    else:
        files = peft_files if kind == "peft" else mlx_files
        _write_folder(output, *files(adapter, base), WEIGHTS if kind == "peft" else MLX_WEIGHTS, inputs)
    return AdapterReport(output, len(adapter.pairs), adapter.n_tensors, baked, kind)


def _write_gguf(
    adapter: Adapter, base: ModelSource, output: Path, inputs: Sequence[Path], progress: Progress
) -> None:
    _check_expressible(adapter)
    notes: list[str] = []
    dora = any(pair.magnitude is not None for pair in adapter.pairs.values())
    if dora:
        notes.append(
            f"{adapter.path}: llama.cpp does not load DoRA; loragraft does. For llama.cpp, merge it: "
            f"loragraft merge BASE --lora {adapter.path} -o MERGED.gguf"
        )
    if OUTPUT in adapter.pairs and OUTPUT not in base.tensors:
        notes.append(
            f"{adapter.path}: adapts an output that is tied to the embedding: llama.cpp does not load such adapters"
        )
    others = [name for name in adapter.replaced if not name.endswith("_norm.weight")]
    if others:
        notes.append(
            f"{adapter.path}: llama.cpp does not load whole tensors ({', '.join(sorted(others)[:3])}). For llama.cpp, "
            f"merge it: loragraft merge BASE --lora {adapter.path} -o MERGED.gguf"
        )
    metadata: Metadata = general_metadata(
        adapter.path.resolve(),
        base.arch,
        "adapter",
        gguf_shapes(adapter),
        notes,
        adapter__type=Value.string("dora" if dora else "lora"),
    )
    metadata |= scale_metadata(adapter)
    metadata |= invocation_metadata(adapter)
    metadata["general.quantization_version"] = Value.u32(QUANTIZATION_VERSION)
    assert TYPE in metadata
    write_gguf_adapter(adapter, metadata, output, inputs)
    for note in notes:
        progress.note(note)


def _check_expressible(adapter: Adapter) -> None:
    """A GGUF adapter holds pairs and whole tensors (llama.cpp's src/llama-adapter.cpp; whole tensors: formats.md)."""
    refuse_parts(
        adapter,
        (
            ("rows of the embedding", adapter.rows),
            ("biases", adapter.biases),
            ("factors and rotations", adapter.transforms),
        ),
        "which a GGUF adapter cannot",
        hint=f"merge it into the base: loragraft merge BASE.gguf --lora {adapter.path} -o MERGED.gguf",
    )


def _write_folder(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Floats],
    weights: str,
    inputs: Sequence[Path],
) -> None:
    text = (json.dumps(config, indent=2, ensure_ascii=False, sort_keys=True) + "\n").encode()
    specs = [SafetensorsSpec(name, "F32", array.shape) for name, array in tensors.items()]
    size = sum(spec.nbytes for spec in specs)
    with NewFolder(folder, [weights, CONFIG], size=size):
        with SafetensorsWriter(folder / weights, specs, {"format": "pt"}, inputs=inputs) as writer:
            for name, array in tensors.items():
                writer.write(name, 0, np.ascontiguousarray(array, "<f4"))
        with OutputFile(folder / CONFIG, len(text), inputs=inputs) as file:
            file.write_at(0, text)
