"""Merge LoRA adapters into a model and quantize the sum, in one pass over the weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from os import PathLike

from loragraft.adapters.collect import collect_deltas
from loragraft.adapters.combine import Combination, combine
from loragraft.adapters.receipt import BASE, receipt_of, receipts_metadata
from loragraft.errors import AdapterError, naming
from loragraft.formats.gguf.values import Value
from loragraft.formats.source import ModelSource
from loragraft.huggingface.intake import STRICT, Intake
from loragraft.opening import AdapterArguments, load_adapters, open_model
from loragraft.progress import SILENT, Progress
from loragraft.quants.filetypes import FileType, file_type
from loragraft.quants.roles import layer_of
from loragraft.streaming.nvfp4_scales import NVFP4
from loragraft.streaming.options import QuantizeOptions
from loragraft.streaming.plan import plan_merge
from loragraft.streaming.report import WriteReport
from loragraft.system.files import files_of
from loragraft.system.workers import Workers
from loragraft.system.workers.crew import Crew
from loragraft.verbs.planned import Planned, write_planned


def merge(
    base: str | PathLike[str] | ModelSource,
    adapters: AdapterArguments,
    output: str | PathLike[str] | None,
    *,
    type: str | int | FileType | None = None,  # noqa: A002 (the word that everyone uses for it)
    options: QuantizeOptions | None = None,
    dequantize: bool = False,
    base_as_trained: bool = False,
    combination: Combination | None = None,
    receipts: bool = True,
    intake: Intake = STRICT,
    threads: int | None = None,
    workers: Workers | Crew | None = None,
    progress: Progress = SILENT,
) -> WriteReport:
    """Write `base` (a GGUF file or a Hugging Face folder) with `adapters` (paths, or pairs of path and strength) as
    `type`: F16 if None, or NVFP4 for a base in NVFP4.

    The result equals merging to F16 and quantizing that file, byte for byte. One exception: a tensor of a quantized
    base is copied if no adapter touches it and it has the wanted type already. Without adapters this is a conversion.
    Without `output` nothing is written: the report says what would be.

    `dequantize`: merge quantized weights that GGUF cannot carry (AWQ's, for one) as floats, instead of refusing them.
    `base_as_trained`: the same for the base of an adapter that was trained on quantized weights (QLoRA); the file says
    so. `combination`: make one adapter of all of them first, as PEFT's add_weighted_adapter does. `receipts`: say in
    the file what was merged. `intake`: what is allowed of files that are not quite as they should be. `threads`: all
    CPUs, if None. `workers`: so many processes, or the nodes of a cluster (`ray`, `ray://HOST:PORT`), each with
    `threads` threads; the bytes do not depend on them.

    Raises `FormatError`, `AdapterError` (an adapter that does not fit, or holds what would not be used),
    `QuantizeError`, `OutputError`, `UnsupportedError`.
    """
    work = _Merging(
        base,
        adapters,
        type,
        options or QuantizeOptions(),
        dequantize,
        base_as_trained,
        combination,
        receipts,
        intake,
    )
    return write_planned(work, output, threads=threads, workers=workers, progress=progress)


@dataclass(frozen=True)
class _Merging:
    """What is to be merged, as it was asked for: what a worker needs to plan the same."""

    source: str | PathLike[str] | ModelSource
    adapters: AdapterArguments
    type: str | int | FileType | None
    options: QuantizeOptions
    dequantize: bool
    base_as_trained: bool
    combination: Combination | None
    receipts: bool
    intake: Intake

    def planned(self, progress: Progress) -> Planned:
        model, kind = self.source, self.type
        if not isinstance(model, ModelSource):
            model = open_model(model, dequantize=self.dequantize or self.base_as_trained, intake=self.intake)
        if self.base_as_trained:
            model = _as_trained(model)
        if kind is None:
            kind = "NVFP4" if any(tensor.type == NVFP4 for tensor in model.tensors.values()) else "F16"
        kind = file_type(kind)
        model, loaded = load_adapters(self.adapters, model, intake=self.intake)
        merged = loaded
        if self.combination is not None and loaded:
            merged = [(combine(loaded, self.combination), 1.0)]
        model, deltas = collect_deltas(model, merged)
        for note in [*model.notes, *(note for adapter, _ in loaded for note in adapter.notes)]:
            progress.note(note)
        used = tuple(receipt_of(adapter, strength) for adapter, strength in loaded)
        if self.receipts:
            model = replace(model, metadata={**model.metadata, **receipts_metadata(model.metadata, used)})
        with naming(model.path):
            plan = plan_merge(model, kind, self.options, deltas)
        for note in plan.notes:
            progress.note(note)
        if lost := sum(layer_of(name) in self.options.prune_layers for name in deltas):
            progress.note(f"{lost} of {len(deltas)} adapted weights lie in pruned layers and go with them")
        return Planned(
            model,
            plan,
            f"Merging to {plan.target}" if loaded else f"Converting to {plan.target}",
            used,
            recipe=(
                *((str(adapter.path), strength) for adapter, strength in loaded),
                str(self.combination or ""),
            ),
            inputs=tuple(path for adapter, _ in loaded for path in files_of(adapter.path)),
        )


def _as_trained(model: ModelSource) -> ModelSource:
    """`model`, which says what quantized it. Raises AdapterError if nothing did."""
    if not model.dequantized:
        raise AdapterError(
            model.path,
            "holds no quantized weights that become floats, as those that QLoRA trains on",
            expected="the checkpoint that the adapter was trained on: bitsandbytes, GPTQ, AWQ, ...",
            hint="name that one, or leave --base-as-trained out",
        )
    return replace(model, metadata={**model.metadata, BASE: Value.string(model.dequantized)})
