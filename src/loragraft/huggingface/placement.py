"""Puts a checkpoint's tensors into those of GGUF, as the table of the architecture's record says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loragraft.archs.tensors import OfHeads, Values
from loragraft.arrays import Bytes
from loragraft.errors import CheckpointError, UnsupportedError
from loragraft.formats.source import TensorSource
from loragraft.formats.views import (
    Computed,
    Joined,
    Reordered,
    ReorderedColumns,
    Stacked,
    Transposed,
    float_rows,
    in_memory,
    values_of,
    widened,
)
from loragraft.huggingface.tensor_names import Place, TensorNames
from loragraft.huggingface.weights import Weight
from loragraft.quants.types import F32


def place_weights(path: Path, names: TensorNames, weights: Sequence[Weight]) -> dict[str, TensorSource]:
    """`weights` of the folder `path`, which may be some of a model's only, under GGUF's names, in its row order and
    types. Raises UnsupportedError for a weight without a place, CheckpointError for experts that are not complete."""
    return Placement(path, names).place(weights)


@dataclass(slots=True)
class _Piece:
    place: Place
    weight: Weight


class Placement:
    """Puts Hugging Face tensors into GGUF tensors, in the order in which llama.cpp's converter writes them."""

    def __init__(self, path: Path, names: TensorNames) -> None:
        self._path, self._names = path, names
        self._stacks: dict[str, dict[int, _Piece]] = {}
        self._after: dict[str, str] = {}
        self._tensors: dict[str, TensorSource] = {}
        self.wide_activations: set[str] = set()
        """Tensors that were quantized for products with 16-bit activations."""

    def place(self, weights: Sequence[Weight]) -> dict[str, TensorSource]:
        for weight in weights:
            if self._names.is_buffer(weight.name):
                continue
            places = self._names.places(weight.name)
            if not places:
                raise UnsupportedError(
                    self._path,
                    f"tensor {weight.name!r} has no counterpart in this architecture's GGUF",
                    found=weight.shape,
                )
            for place in places:
                self._add(_Piece(place, weight))
        for name, pieces in self._stacks.items():
            place = next(iter(pieces.values())).place
            fused = place.tensor.fused is not None
            count = place.parts if fused else place.stacked
            missing = [e for e in range(count) if e not in pieces]
            raise CheckpointError(
                self._path,
                f"{name} lacks {'parts' if fused else 'experts'}",
                found=f"{len(pieces)} of them",
                expected=f"also {missing[:4]}",
            )
        for name, before in self._after.items():
            self._move(name, before)
        return self._tensors

    def _move(self, name: str, before: str) -> None:
        """The tensor `name` to where it stands behind `before`."""
        if before in self._tensors:
            names = [each for each in self._tensors if each != name]
            names.insert(names.index(before) + 1, name)
            self._tensors = {each: self._tensors[each] for each in names}

    def _add(self, piece: _Piece) -> None:
        name, expert, fused = piece.place.name, piece.place.expert, piece.place.tensor.fused
        if expert is None and fused is None:
            self._finish(name, [piece])
            return
        stack = self._stacks.setdefault(name, {})
        count = piece.place.parts if fused is not None else piece.place.stacked
        index = fused.index if fused is not None else expert
        if index is None or index in stack or index >= count:
            raise CheckpointError(
                self._path,
                f"{piece.weight.name!r} is not an expert of this model",
                expected=f"{count} experts",
            )
        stack[index] = piece
        if len(stack) == count:
            self._finish(name, [stack[e] for e in range(len(stack))])
            del self._stacks[name]

    def _finish(self, name: str, pieces: list[_Piece]) -> None:
        if name in self._tensors:
            raise CheckpointError(self._path, f"two tensors are both {name}", found=pieces[0].weight.name)
        weights = [piece.weight for piece in pieces]
        first = weights[0]
        fused = pieces[0].place.tensor.fused is not None
        for weight in weights[1:]:
            same = weight.shape[1:] == first.shape[1:] if fused else weight.shape == first.shape
            if not same or weight.source.type != first.source.type or (fused and weight.scale != first.scale):
                raise CheckpointError(
                    self._path,
                    f"the {'parts' if fused else 'experts'} of {name} differ",
                    found=f"{weight.name} {weight.source.type} {weight.shape}",
                    expected=f"{first.source.type} {first.shape}",
                )
        sources = [self._arranged(piece) for piece in pieces]
        if fused:
            source = self._joined(name, pieces, sources)
            weights = [first]
        else:
            source = sources[0] if pieces[0].place.expert is None else Stacked(name, sources)
        if _is_float32_in_gguf(name, source.shape):
            source = widened(source)
        source.name = name
        self._tensors[name] = source
        if after := pieces[0].place.tensor.after:
            self._after[name] = after.replace("{i}", str(pieces[0].place.layer))
        if first.wide_activations:
            self.wide_activations.add(name)
        if len(source.shape) == 3 and len(weights) == 1:
            weights = weights * source.shape[0]  # a stack under one scale: GGUF has one for each expert
        self._add_companion(f"{name.removesuffix('.weight')}.scale", [w.scale for w in weights])
        self._add_companion(f"{name.removesuffix('.weight')}.input_scale", [w.input_scale for w in weights])

    def _joined(self, name: str, pieces: list[_Piece], sources: list[TensorSource]) -> TensorSource:
        for piece, source in zip(pieces, sources, strict=True):
            first, last = piece.place.span or (0, 0)
            if source.shape[0] != last - first:
                raise CheckpointError(
                    self._path,
                    f"{piece.weight.name} does not have the number of rows that the configuration says",
                    found=source.shape[0],
                    expected=last - first,
                )
        if len(sources[0].shape) == 1:
            values = [float_rows(source.rows(0, 1), source.type).reshape(-1) for source in sources]
            return in_memory(name, np.concatenate(values))
        return Joined(name, sources)

    def _add_companion(self, name: str, scales: list[float | None]) -> None:
        """The scales of a quantized weight, one or one per expert; absent means 1."""
        values = np.array([1.0 if scale is None else scale for scale in scales], np.float32)
        if (values != 1).any():
            self._tensors[name] = in_memory(name, values)

    def _arranged(self, piece: _Piece) -> TensorSource:
        """The tensor of one piece: its rows in GGUF's order, its values GGUF's."""
        source, place = piece.weight.source, piece.place
        if place.tensor.shape is not None:
            source = self._reshaped(piece)
        turns = place.tensor.transposed_if
        if len(source.shape) > 1 and (place.tensor.transposed or (turns and turns(place.h, source.shape))):
            source = Transposed(self._floats(piece, source))
        rows = source.shape[-2] if len(source.shape) > 1 else source.shape[-1]
        try:
            order = place.order(rows)
            columns = place.column_order(source.shape[-1]) if len(source.shape) > 1 else None
        except ValueError as problem:
            raise CheckpointError(
                self._path,
                f"{piece.weight.name} does not fit: {problem}",
                found=source.shape,
            ) from None
        if order is not None and len(source.shape) == 1:
            values = float_rows(source.rows(0, 1), source.type).reshape(-1)
            source = in_memory(place.name, values[order])
        elif order is not None:
            stack = np.arange(source.n_rows // rows)[:, None] * rows
            shape = (*source.shape[:-2], len(order), source.shape[-1])
            if isinstance(place.tensor.rows, OfHeads):
                shape = (place.heads, len(order) // place.heads, source.shape[-1])
            source = Reordered(source, (stack + order[None, :]).reshape(-1), shape)
            if place.tensor.is_turned:
                source = Transposed(self._floats(piece, source))
        if columns is not None:
            source = ReorderedColumns(self._floats(piece, source), columns)
        if place.tensor.factors is not None:
            source = self._multiplied(piece, source)
        return source if place.values is None else _changed(source, place.values)

    def _multiplied(self, piece: _Piece, source: TensorSource) -> TensorSource:
        """Its rows times their factors."""
        try:
            factors = piece.place.factors
            rows = source.n_rows if len(source.shape) > 1 else source.shape[0]
            columns = [np.broadcast_to(factor, (rows,))[:, None] for factor in factors]
        except ValueError as problem:
            raise CheckpointError(
                self._path, f"{piece.weight.name} does not fit: {problem}", found=source.shape
            ) from None
        if not factors or all((column == 1).all() for column in columns):
            return source
        floats = widened(self._floats(piece, source))

        def compute(start: int, stop: int) -> Bytes:
            values = float_rows(floats.rows(start, stop), F32)
            for column in columns:
                values = values * (column[:, 0] if len(source.shape) == 1 else column[start:stop])
            return np.ascontiguousarray(values, np.float32).view(np.uint8)

        return Computed(source.name, source.shape, F32, compute, [floats])

    def _reshaped(self, piece: _Piece) -> TensorSource:
        source, shape = piece.weight.source, piece.place.tensor.shape
        assert shape is not None
        try:
            return in_memory(
                source.name, values_of(source).reshape(shape.forward(piece.place.h, source.shape))
            )
        except ValueError as problem:
            raise CheckpointError(
                self._path, f"{piece.weight.name} does not fit: {problem}", found=source.shape
            ) from None

    def _floats(self, piece: _Piece, source: TensorSource) -> TensorSource:
        """The source, whose columns are to move: they cannot where they are quantized together."""
        if source.type.is_float:
            return source
        raise UnsupportedError(
            self._path,
            f"{piece.weight.name} is quantized, and GGUF has its columns in another order",
            found=source.type,
            hint="`convert` or `merge` with --dequantize, or from the model before it was quantized",
        )


def _changed(source: TensorSource, values: Values) -> TensorSource:
    """The tensor with its values as GGUF has them."""
    floats = widened(source)

    def compute(start: int, stop: int) -> Bytes:
        changed = values.forward(float_rows(floats.rows(start, stop), F32))
        return np.ascontiguousarray(changed, np.float32).view(np.uint8)

    return Computed(source.name, source.shape, F32, compute, [floats])


#: Parts of names, before `.weight`, of what llama.cpp's converter keeps in F32 (conversion/base.py, `prepare_tensors`).
_FLOAT32 = (
    "_norm",
    ".ffn_gate_inp",
    ".ffn_gate_inp_shexp",
    "position_embd",
    "token_types",
    ".ssm_conv1d",
    ".ssm_conv1d_q",
    ".ssm_conv1d_k",
    ".ssm_conv1d_v",
    ".shortconv.conv",
    ".altup_correct_coef",
    ".altup_predict_coef",
    ".indexer.proj",
)


def _is_float32_in_gguf(name: str, shape: tuple[int, ...]) -> bool:
    """Whether the tensor is F32 whatever the output type."""
    stem = name.removesuffix(".weight")
    return len(shape) <= 1 or stem == name or stem.endswith(_FLOAT32)
