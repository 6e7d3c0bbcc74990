"""Convert a Hugging Face model, or a PEFT adapter, to GGUF, as llama.cpp's converters do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from os import PathLike

from loragraft.errors import OutputError
from loragraft.formats.gguf.values import Value
from loragraft.formats.source import ModelSource
from loragraft.huggingface.contents import ADAPTERS, recognise
from loragraft.huggingface.intake import STRICT, Intake
from loragraft.opening import load_adapter, open_model
from loragraft.progress import SILENT, Progress
from loragraft.quants.filetypes import BY_NAME as FILE_TYPES
from loragraft.quants.filetypes import FileType, file_type
from loragraft.streaming.options import QuantizeOptions
from loragraft.streaming.report import WriteReport
from loragraft.system.files import files_of, named_path
from loragraft.system.workers import Workers
from loragraft.system.workers.crew import Crew
from loragraft.verbs.adapter_files import AdapterReport, write_adapter
from loragraft.verbs.merge import merge


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
    to: str = "gguf",
    intake: Intake = STRICT,
    progress: Progress = SILENT,
) -> AdapterReport:
    """Write the adapter at `adapter` (a PEFT or mlx-lm folder, or a GGUF), made for `base`, to `output`, as F32: as
    `to` says, a GGUF ("gguf") or a new folder of PEFT ("peft") or mlx-lm ("mlx").

    Where one alpha gives every pair its scale, a GGUF is convert_lora_to_gguf's. What an alpha_pattern adds is
    multiplied into the B matrices, so that any reader applies it, and taken out again on the way back.

    Raises `FormatError`, `AdapterError`, `OutputError`.
    """
    model = base if isinstance(base, ModelSource) else open_model(base, dequantize=True)
    loaded = load_adapter(adapter, model, intake=intake, invoked=to != "mlx")
    for note in loaded.notes:
        progress.note(note)
    return write_adapter(
        loaded, model, named_path(output, OutputError), to, files_of(loaded.path), progress=progress
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
