"""What a run of `quantize` or `merge` will write: metadata, and one step per tensor. Nothing is read or written yet.

Quantizing follows llama_model_quantize_impl (llama-quant.cpp of llama.cpp) to the byte: the order of the tensors, and
how metadata are removed and appended. Merging to a quantized type is, byte for byte, merging to F16 and quantizing the
result; the F16 file in between is only imagined.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from loragraft.arrays import Floats
from loragraft.errors import ImatrixError, QuantizeError, UnsupportedError
from loragraft.formats.gguf.reader import GGUFTensor
from loragraft.formats.gguf.scales import companion, scale_of
from loragraft.formats.gguf.values import QUANTIZATION_VERSION, Metadata, Value
from loragraft.formats.source import ModelSource, TensorSource
from loragraft.quants.filetypes import BY_NUMBER, FileType
from loragraft.quants.mixes import ModelFacts, TensorChoice, TypeOptions, plan_types
from loragraft.quants.roles import Category, category, layer_of, may_quantize, output_order
from loragraft.quants.types import F16, QuantType
from loragraft.streaming.importance import lacking_note, load_imatrix, matrix_path
from loragraft.streaming.nvfp4_scales import NVFP4, add_scales
from loragraft.streaming.options import MAX_OVERRIDE_STRING, QuantizeOptions
from loragraft.streaming.steps import Step
from loragraft.units import plural

if TYPE_CHECKING:
    from loragraft.adapters.delta import Change

#: Set in `general.file_type` if the type was guessed from the tensors (llama.h, LLAMA_FTYPE_GUESSED).
GUESSED = 1024

_VERSION_KEY = "general.quantization_version"
_FILE_TYPE_KEY = "general.file_type"


@dataclass
class WritePlan:
    """The output of a run. `fallbacks`: tensors whose rows do not fit the wanted type, as (name, wanted, chosen)."""

    target: FileType
    metadata: Metadata
    steps: list[Step]
    fallbacks: list[tuple[str, QuantType, QuantType]] = field(default_factory=list)
    lacking_importance: list[tuple[str, QuantType]] = field(default_factory=list)
    """Tensors whose type needs an importance matrix that is not there: refused, but for a dry run."""
    notes: list[str] = field(default_factory=list)
    """What the user should know of the importance matrix."""
    imatrix: Path | None = None
    """Its file."""

    def require_importance(self, subject: Path) -> None:
        """Raises `QuantizeError` if a tensor lacks the importance matrix that its type needs."""
        for name, kind in self.lacking_importance:
            if self.imatrix is None:
                raise QuantizeError(
                    subject,
                    f"this quantization requires an imatrix: tensor {name!r} as {kind}",
                    hint="collect one with `loragraft imatrix` and pass it with --imatrix",
                )
            raise QuantizeError(
                self.imatrix,
                f"the imatrix has no entry for tensor {name!r}, which {kind} needs",
                found=f"none for {plural(len(self.lacking_importance), 'tensor')}",
                hint=f"collect one on this model (loragraft imatrix {subject} --text TEXT -o imatrix.gguf), or give "
                f"the tensor another type: --tensor-type {name}=q4_k",
            )


@dataclass(frozen=True)
class _Input:
    """A tensor as the rules see it: with type `now`, which for a merge is that of the imagined F16 file."""

    source: TensorSource
    now: QuantType
    deltas: tuple[Change, ...] = ()


def plan_quantize(model: ModelSource, target: FileType, options: QuantizeOptions) -> WritePlan:
    """`model` as llama-quantize writes it. Raises `QuantizeError`, `ImatrixError`."""
    names = _file_order(model) if options.keep_split else output_order(model.tensors)
    inputs = [_Input(model.tensors[name], model.tensors[name].type) for name in names]
    planner = _Planner(model, target, options, merging=False)
    return planner.plan(inputs, planner.quantized_metadata(model.metadata))


def plan_merge(
    model: ModelSource, target: FileType, options: QuantizeOptions, deltas: Mapping[str, tuple[Change, ...]]
) -> WritePlan:
    """`model` plus `deltas` (by tensor name) as `target`. Raises `QuantizeError`, `ImatrixError`.

    A merge to a float type keeps the model's order of tensors, as llama-export-lora does.
    """
    if options.keep_split:
        names = _file_order(model)
    else:
        names = list(model.tensors) if target.is_float else output_order(model.tensors)
    inputs = []
    for name in names:
        tensor, own = model.tensors[name], deltas.get(name, ())
        imagined = not target.is_float and may_quantize(name, tensor.shape, model.arch)
        now = F16 if (own if tensor.type.is_quantized else imagined) else tensor.type
        inputs.append(_Input(tensor, now, own))
    planner = _Planner(model, target, options, merging=True)
    if target.is_float:
        return planner.plan(inputs, planner.merged_metadata(model.metadata, moved=bool(deltas)))
    return planner.plan(inputs, planner.quantized_metadata(model.metadata))


def _file_order(model: ModelSource) -> list[str]:
    """The names file by file, in each by the data's place."""
    tensors = [tensor for tensor in model.tensors.values() if isinstance(tensor, GGUFTensor)]
    if len(tensors) < len(model.tensors):
        raise UnsupportedError(model.path, "--keep-split is for GGUF models", hint="use --split-max-size")
    files = list(dict.fromkeys(tensor.file for tensor in tensors))
    return [tensor.name for tensor in sorted(tensors, key=lambda t: (files.index(t.file), t.offset))]


class _Planner:
    def __init__(
        self, model: ModelSource, target: FileType, options: QuantizeOptions, *, merging: bool
    ) -> None:
        self.model, self.target, self.options, self.merging = model, target, options, merging
        self.notes: list[str] = []
        self.imatrix = load_imatrix(options, model, self.notes)
        self.renamed, self.layers_left = _pruned(model, options.prune_layers)
        metadata = {**model.metadata, **options.override_kv}
        self.facts = ModelFacts.of({key: value.data for key, value in metadata.items()})

    def plan(self, inputs: Sequence[_Input], metadata: Metadata) -> WritePlan:
        kept = {
            self.renamed[tensor.source.name]: tensor
            for tensor in inputs
            if tensor.source.name in self.renamed
        }
        choices = plan_types(
            {name: (tensor.source.shape, tensor.now) for name, tensor in kept.items()},
            self.facts,
            TypeOptions(
                self.target,
                pure=self.options.pure,
                leave_output=self.options.leave_output_tensor,
                output_type=self.options.output_tensor_type,
                token_embedding_type=self.options.token_embedding_type,
                patterns=self.options.tensor_types,
                has_imatrix=self.imatrix is not None or bool(self.options.calibrate),
            ),
        )
        plan = WritePlan(self.target, metadata, [], notes=self.notes, imatrix=matrix_path(self.options))
        for chosen, tensor in zip(choices, kept.values(), strict=True):
            stays = self.options.keep_quantized and tensor.source.type.is_quantized and not tensor.deltas
            choice = replace(chosen, type=tensor.source.type, unfit=None) if stays else chosen
            step = self._step(choice, tensor)
            plan.steps.append(step)
            if choice.unfit is not None:
                plan.fallbacks.append((choice.name, choice.unfit, choice.type))
            # As in llama-quantize: with a matrix, a tensor that is only copied needs no entry in it.
            lacks = self.imatrix is None or (not step.copies and step.importance is None)
            if (
                choice.needs_importance
                and lacks
                and not (self.options.calibrate and layer_of(choice.name) >= 0)
            ):
                plan.lacking_importance.append((choice.name, choice.type))
        if self.imatrix is not None and (note := lacking_note(self.options, plan.steps)):
            plan.notes.append(note)
        plan.steps = self._without_folded(plan.steps)
        if not self.options.nvfp4_naive:
            plan.steps = add_scales(plan.steps)
        return plan

    def _step(self, choice: TensorChoice, tensor: _Input) -> Step:
        source = tensor.source
        step = Step(choice.name, source, choice.type, tensor.deltas)
        if step.copies:
            return step
        if self.merging or (step.type == NVFP4 and not self.options.nvfp4_naive):
            # No engine but ours applies such a scale everywhere: only weights that are copied keep theirs beside them.
            step = replace(step, multiplier=self._scale_of(source))
        self._check_requantizing(choice, source)
        importance = None if choice.type.is_float else self._importance(source)
        as_f16 = (
            self.merging
            and not self.target.is_float
            and may_quantize(choice.name, source.shape, self.facts.arch)
            and (bool(tensor.deltas) or source.type != F16)
            and choice.type != F16
        )
        return replace(step, importance=importance, through_f16=as_f16)

    def _without_folded(self, steps: Sequence[Step]) -> list[Step]:
        """`steps` without the scales that were folded into a weight; one of activations stays with an NVFP4 weight."""
        folded = set()
        for step in steps:
            if step.multiplier is not None:
                folded.add(scale_of(step.source.name, self.model.tensors))
                if step.type != NVFP4:
                    folded.add(companion(step.source.name, "input_scale"))
        return [step for step in steps if step.source.name not in folded]

    def _check_requantizing(self, choice: TensorChoice, source: TensorSource) -> None:
        # An NVFP4 checkpoint is what its adapter was trained on; the merged weights get scales of their own.
        merged = self.merging and (choice.type.is_float or source.type == choice.type == NVFP4)
        if source.type.is_quantized and not (merged or self.options.allow_requantize):
            raise QuantizeError(
                self.model.path,
                f"tensor {source.name!r} is already quantized; quantizing twice costs quality",
                found=str(source.type),
                expected="F16, BF16 or F32",
                hint="start from the original, or insist with --allow-requantize",
            )

    def _scale_of(self, source: TensorSource) -> Floats | None:
        """The per-tensor scale that the model has beside a weight, float32 [matrices]."""
        scale = self.model.tensors.get(scale_of(source.name, self.model.tensors) or "")
        return None if scale is None else scale.rows(0, scale.n_rows).view(np.float32).reshape(-1)

    def _importance(self, source: TensorSource) -> Floats | None:
        """float32 [matrices, columns], or None. Entries are found under the name in the input, before pruning."""
        if self.imatrix is None:
            return None
        try:
            values = self.imatrix.importance(source.name, source.shape)
        except ImatrixError:
            if category(source.name) is Category.TOKEN_EMBD:
                return None  # llama-quantize passes over this one, which some matrices hold in another shape
            raise
        if values is not None:
            dead = np.flatnonzero(~values.any(axis=1))
            if len(dead):
                raise ImatrixError(
                    matrix_path(self.options) or "imatrix",
                    f"the importance of tensor {source.name!r} is zero in all columns of row {dead[0]}",
                    hint=f"collect it on more text, or leave it out: --exclude-weights {source.name}",
                )
        return values

    # ---- metadata ----

    def quantized_metadata(self, metadata: Metadata) -> Metadata:
        """What llama-quantize writes: each key that is set goes to the end."""
        result = dict(metadata)
        _set(result, _VERSION_KEY, Value.u32(QUANTIZATION_VERSION))
        _set(result, _FILE_TYPE_KEY, self._file_type())
        for key, value in {**self.options.override_kv, **self._imatrix_metadata()}.items():
            _set(result, key, value)
        return self._with_blocks(result)

    def merged_metadata(self, metadata: Metadata, *, moved: bool) -> Metadata:
        """What llama-export-lora writes (the file type goes to the end), or for a mere conversion the converter."""
        result = dict(metadata)
        if moved:
            result.pop(_FILE_TYPE_KEY, None)
        result[_FILE_TYPE_KEY] = self._file_type()
        for key, value in self.options.override_kv.items():
            _set(result, key, value)
        return self._with_blocks(result)

    def _file_type(self) -> Value:
        if not self.target.copies:
            return Value.u32(self.target.number)
        return self.model.metadata.get(_FILE_TYPE_KEY) or Value.u32(_guessed_file_type(self.model) | GUESSED)

    def _imatrix_metadata(self) -> Metadata:
        if self.imatrix is None:
            return {}
        path = matrix_path(self.options)
        result = {} if path is None else {"quantize.imatrix.file": Value.string(_cut(str(path)))}
        if self.imatrix.datasets:
            result["quantize.imatrix.dataset"] = Value.string(_cut(self.imatrix.datasets[0]))
        result["quantize.imatrix.entries_count"] = Value.u32(len(self.imatrix.sums))
        if self.imatrix.chunk_count > 0:
            result["quantize.imatrix.chunks_count"] = Value.u32(self.imatrix.chunk_count)
        return result

    def _with_blocks(self, metadata: Metadata) -> Metadata:
        if self.options.prune_layers:
            _set(metadata, f"{self.model.arch}.block_count", Value.u32(self.layers_left))
        return metadata


def _set(metadata: Metadata, key: str, value: Value) -> None:
    metadata.pop(key, None)
    metadata[key] = value


def _cut(text: str) -> str:
    """A string as llama.cpp keeps it in an override."""
    return text.encode("utf-8", "surrogateescape")[:MAX_OVERRIDE_STRING].decode("utf-8", "surrogateescape")


def _pruned(model: ModelSource, prune: frozenset[int]) -> tuple[dict[str, str], int]:
    """The new name of every tensor that stays, and the number of blocks that stay."""
    present = {layer_of(name) for name in model.tensors} - {-1}
    missing = prune - present
    if missing:
        raise QuantizeError(
            model.path,
            "layers to prune are not in the model",
            found=", ".join(map(str, sorted(missing))),
            expected=f"numbers below {len(present)}",
        )
    left = [number for number in sorted(present) if number not in prune]
    if prune and not left:
        raise QuantizeError(model.path, "no layer would be left", found=f"{len(prune)} layers to prune")
    new = {old: number for number, old in enumerate(left)}
    names = {}
    for name in model.tensors:
        layer = layer_of(name)
        if layer == -1:
            names[name] = name
        elif layer in new:
            names[name] = name.replace(f"blk.{layer}.", f"blk.{new[layer]}.", 1) if prune else name
    return names, len(left)


def _guessed_file_type(model: ModelSource) -> int:
    """The file type whose default is the commonest among the tensors (llama-model-loader.cpp)."""
    counts: dict[str, int] = {}
    best = "F32"
    for name in output_order(model.tensors):
        kind = model.tensors[name].type.name
        counts[kind] = counts.get(kind, 0) + 1
        if counts[kind] > counts.get(best, 0) or best not in counts:
            best = kind
    named = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}.get(best, best)
    return next((row.number for row in BY_NUMBER.values() if row.name == named), 0)
