"""Convert a Hugging Face model, or a PEFT adapter, to GGUF, as llama.cpp's converters do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

from loragraft.adapters.gguf_adapter import ALPHA, gguf_shapes, write_gguf_adapter
from loragraft.adapters.lora import OUTPUT, Adapter
from loragraft.errors import AdapterError, OutputError
from loragraft.formats.gguf.values import QUANTIZATION_VERSION, Metadata, Value
from loragraft.formats.source import ModelSource
from loragraft.huggingface.contents import ADAPTERS, recognise
from loragraft.huggingface.intake import STRICT, Intake
from loragraft.huggingface.model_card import general_metadata
from loragraft.opening import load_adapter, open_model
from loragraft.progress import SILENT, Progress
from loragraft.quants.filetypes import BY_NAME as FILE_TYPES
from loragraft.quants.filetypes import FileType, file_type
from loragraft.streaming.options import QuantizeOptions
from loragraft.streaming.report import WriteReport
from loragraft.system.files import files_of, named_path
from loragraft.system.workers import Workers
from loragraft.system.workers.crew import Crew
from loragraft.verbs.merge import merge


@dataclass(frozen=True, slots=True)
class AdapterReport:
    """What converting an adapter wrote."""

    path: Path
    pairs: int
    tensors: int
    """Of the adapter read; all of them were used."""
    baked: bool
    """Whether every scale was multiplied into its B, as no single alpha tells them all."""


def is_adapter(path: str | PathLike[str]) -> bool:
    """Whether `path` holds an adapter, and no model."""
    return recognise(named_path(path)).kind in ADAPTERS


def convert(
    source: str | PathLike[str],
    output: str | PathLike[str],
    *,
    type: str | int | FileType | None = None,  # noqa: A002 (the word that everyone uses for it)
    dequantize: bool = False,
    options: QuantizeOptions | None = None,
    intake: Intake = STRICT,
    threads: int | None = None,
    workers: Workers | Crew | None = None,
    progress: Progress = SILENT,
) -> WriteReport:
    """Write the model at `source` (a Hugging Face folder, or a GGUF) to `output`.

    `type`: any of `quantize`'s, for the weights that `source` holds as floats or in FP8. Those that it holds quantized
    keep their codes and scales, whatever the type; to change them, use `quantize` or `merge`. Without `type` floats
    become F16, except beside NVFP4, where they stay as stored. `dequantize`: quantized weights that GGUF cannot carry
    become `type` too, instead of an error. `threads`: all CPUs, if None.
    `workers`: as for `merge`.

    Raises `FormatError`, `UnsupportedError`, `QuantizeError`, `OutputError`.
    """
    model = open_model(source, dequantize=dequantize, intake=intake)
    quantized = [name for name, tensor in model.tensors.items() if tensor.type.is_quantized]
    options = options or QuantizeOptions()
    if type is None:
        kind = file_type("COPY" if quantized and not _has_computed_floats(model) else "F16")
    else:
        kind = file_type(type)
    if quantized and not kind.copies:
        options = _keeping(model, quantized, options)
    return merge(
        model if workers is None else source,  # workers open it themselves
        [],
        output,
        type=kind,
        options=options,
        dequantize=dequantize,
        intake=intake,
        threads=threads,
        workers=workers,
        progress=progress,
    )


def convert_adapter(
    adapter: str | PathLike[str],
    base: str | PathLike[str] | ModelSource,
    output: str | PathLike[str],
    *,
    intake: Intake = STRICT,
    progress: Progress = SILENT,
) -> AdapterReport:
    """Write the PEFT (or mlx-lm) adapter at `adapter`, made for `base`, to the GGUF `output`, as F32.

    Where one alpha gives every pair its scale, the file is convert_lora_to_gguf's. Rank-stabilised scales and an
    alpha_pattern, which a GGUF cannot name, are multiplied into the B matrices, so that any reader applies them.

    Raises `FormatError`, `AdapterError`, `OutputError`.
    """
    model = base if isinstance(base, ModelSource) else open_model(base)
    loaded = load_adapter(adapter, model, intake=intake)
    path = loaded.path
    _check_expressible(loaded)
    notes = list(loaded.notes)
    if OUTPUT in loaded.pairs and OUTPUT not in model.tensors:
        notes.append(
            f"{path}: adapts an output that is tied to the embedding: llama.cpp does not load such adapters"
        )
    if loaded.tokenizer:
        notes.append(f"{path}: its own tokenizer is left out: a GGUF adapter has no place for one")
    metadata: Metadata = general_metadata(
        path.resolve(),
        model.arch,
        "adapter",
        gguf_shapes(loaded),
        notes,
        adapter__type=Value.string("lora"),
    )
    if loaded.alpha is not None:
        metadata[ALPHA] = Value.f32(loaded.alpha)
    metadata["general.quantization_version"] = Value.u32(QUANTIZATION_VERSION)
    write_gguf_adapter(loaded, metadata, named_path(output, OutputError), files_of(path))
    for note in notes:
        progress.note(note)
    return AdapterReport(Path(output), len(loaded.pairs), loaded.n_tensors, baked=loaded.alpha is None)


def _check_expressible(adapter: Adapter) -> None:
    """A GGUF adapter holds pairs, and nothing else (llama.cpp's src/llama-adapter.cpp)."""
    for what, changed in (
        ("whole tensors", adapter.replaced),
        ("rows of the embedding", adapter.rows),
        ("biases", adapter.biases),
        ("factors and rotations", adapter.transforms),
        ("DoRA's magnitudes", [name for name, pair in adapter.pairs.items() if pair.magnitude is not None]),
    ):
        if changed:
            raise AdapterError(
                adapter.path,
                f"holds {what}, which a GGUF adapter cannot",
                found=", ".join(sorted(changed)[:3]) + (", ..." if len(changed) > 3 else ""),
                hint=f"merge it into the base: loragraft merge BASE.gguf --lora {adapter.path} -o MERGED.gguf",
            )


def _has_computed_floats(model: ModelSource) -> bool:
    """Whether a matrix is F32 only because GGUF has no type for what the checkpoint stores (FP8)."""
    return any(
        tensor.type.name == "F32" and len(tensor.shape) > 1 and not name.endswith(".ffn_gate_inp.weight")
        for name, tensor in model.tensors.items()
    )


def _keeping(model: ModelSource, quantized: Sequence[str], options: QuantizeOptions) -> QuantizeOptions:
    """`options` under which the `quantized` tensors stay as they are, and the file is called what they are."""
    override = dict(options.override_kv)
    if any(model.tensors[name].type.name == "NVFP4" for name in quantized):
        override.setdefault("general.file_type", Value.u32(FILE_TYPES["NVFP4"].number))
    return replace(options, keep_quantized=True, override_kv=override)
