"""A model's tensors under their Hugging Face names, sorted by what becomes of them in a quantized checkpoint."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np

from loragraft.adapters.delta import Change
from loragraft.archs import ARCHS
from loragraft.archs.metadata import MetadataKeys
from loragraft.errors import UnsupportedError
from loragraft.formats.gguf.scales import companion, scale_of
from loragraft.formats.source import ModelSource, TensorSource
from loragraft.formats.views import in_memory, values_of
from loragraft.huggingface.tensor_names import CheckpointNames, Place, TensorNames
from loragraft.quants.roles import scale_group
from loragraft.quants.types import BY_NAME
from loragraft.streaming.checkpoint.heads import HeadStack, RowPart, matrix_of_heads, matrix_of_parts
from loragraft.streaming.checkpoint.matrix import GROUP, Matrix

MXFP4 = BY_NAME["MXFP4"]
_EMBEDDING = "token_embd.weight"
#: Matrices that stay in floating point, as ModelOpt's default leaves them.
_NOT_LINEAR = (_EMBEDDING, "output.weight", "position_embd.weight", "per_layer_token_embd.weight")
_ROUTERS = (".ffn_gate_inp.weight", ".ffn_gate_inp_shexp.weight")


class Contents:
    """A model's tensors under their Hugging Face names."""

    def __init__(
        self,
        model: ModelSource,
        deltas: Mapping[str, tuple[Change, ...]],
        notes: list[str],
        *,
        keep_f16: bool,
        mxfp4: bool = False,
    ) -> None:
        self.model, self._deltas, self._mxfp4 = model, deltas, mxfp4
        self._names = CheckpointNames(TensorNames(model.metadata), model.tensors)
        if _EMBEDDING not in model.tensors:
            raise UnsupportedError(model.path, f"has no {_EMBEDDING}", expected="a whole language model")
        keeps = keep_f16 and model.tensors[_EMBEDDING].type.name == "F16"
        self.dtype = BY_NAME["F16" if keeps else "BF16"]
        """Of everything that stays in floating point."""
        self.groups: dict[Hashable, list[Matrix]] = {}
        """Matrices to write as NVFP4: those that share a scale together."""
        self.packed: dict[str, Matrix] = {}
        """Stacks to write as MXFP4, which is all that is quantized then."""
        self.floats: dict[str, Matrix] = {}
        self.vectors: dict[str, TensorSource] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        """Of vectors that have another one in the checkpoint."""
        self._done: set[str] = set()
        for name, tensor in model.tensors.items():
            companions = name.endswith((".scale", ".input_scale")) and not self._names.origins(name)
            if companions or name == "rope_freqs.weight":
                continue
            self._sort(name, tensor)
        self._add_scalars()
        known = [matrix.input_scale is not None for group in self.groups.values() for matrix in group]
        self.algorithm = "NVFP4" if known and all(known) else "W4A16_NVFP4"
        if mxfp4:
            self._check_stacks(notes)
        elif not known:
            notes.append("no linear of this model has a form in NVFP4: all weights stay in floating point")
        if not known:
            self.algorithm = "MXFP4" if self.packed else self.dtype.name
        if any(known) and not all(known):
            notes.append(
                f"{known.count(False)} linears have no input_scale: all are left out, the export is weight-only"
            )

    def _check_stacks(self, notes: list[str]) -> None:
        """Stacks whose rows are not whole blocks of MXFP4 stay in floating point, and all others with them."""
        if not self.packed:
            raise UnsupportedError(
                self.model.path,
                "no checkpoint of this architecture has experts in MXFP4",
                found=self.model.arch,
                hint="--format modelopt or compressed-tensors",
            )
        widths = {matrix.source.columns for matrix in self.packed.values()}
        if any(width % MXFP4.block for width in widths):
            notes.append(
                f"rows of {max(widths, key=lambda width: width % MXFP4.block)} weights are not whole blocks of MXFP4: "
                "the experts stay in floating point"
            )
            self.floats |= self.packed
            self.packed = {}

    def _sort(self, name: str, tensor: TensorSource) -> None:
        if stacks := self._names.stacks_of(name):
            self._of_heads(*stacks)
            return
        origins = self._names.origins(name)
        parts = None if origins else self._names.parts_of(name)
        if parts is not None and parts[1][0].tensor.columns is not None:
            self._of_columns(*parts)
            return
        if parts is not None and len(tensor.shape) > 1:
            self._of_parts(*parts)
            return
        if not origins:
            raise UnsupportedError(
                self.model.path, f"tensor {name!r} has no Hugging Face name", found=tensor.shape
            )
        if len(tensor.shape) == 3 and origins[0].expert is None and origins[0].place.tensor.shape is None:
            self._of_parts(origins[0].name, [origins[0].place])
            return
        reshaped = origins[0].place.tensor.shape is not None or name.endswith(".bias")
        if reshaped or (len(tensor.shape) == 1 and not name.endswith(_ROUTERS)):
            for origin in origins:
                self.vectors[origin.name] = self._vector(tensor, origin.place)
            return
        # GGUF drops the axis of a router with one row.
        rows = tensor.shape[-2] if len(tensor.shape) > 1 else 1
        for origin in origins:
            moved = origin.place.tensor
            if moved.values is not None:
                raise UnsupportedError(
                    self.model.path,
                    f"tensor {name!r} does not have its checkpoint's values, so it cannot be exported",
                    found=tensor.shape,
                )
            expert = origin.expert or 0
            columns = origin.place.column_order(tensor.columns)
            order = origin.place.rows_in_gguf(rows)
            factor = origin.place.factor
            matrix = Matrix(
                origin.name,
                tensor,
                order,
                expert,
                self._factor(self._scale_of(name), expert) or 1.0,
                self._factor(companion(name, "input_scale"), expert),
                self._deltas.get(name, ()),
                None if columns is None else np.argsort(columns),
                None if factor is None else np.broadcast_to(factor, rows)[order],
                transposed=moved.transposed,
            )
            if name in _NOT_LINEAR or name.endswith(_ROUTERS):
                self.floats[origin.name] = matrix
            else:
                self._add_linear(matrix, (scale_group(name), expert))

    def _add_linear(self, matrix: Matrix, group: Hashable) -> None:
        """Quantized only as a module's weight: a parameter without a module (Gemma 4's experts) has no layout in NVFP4
        that transformers loads."""
        alone = not matrix.name.endswith(".weight")
        if self._mxfp4 or matrix.transposed or alone or matrix.source.columns % GROUP:
            self.floats[matrix.name] = matrix
        else:
            self.groups.setdefault(group, []).append(matrix)

    def _add_scalars(self) -> None:
        """Tensors that GGUF has as keys."""
        keys = MetadataKeys(self.model.metadata)
        for hf, (key, shape) in ARCHS.by_name(keys.arch).scalars.items():
            for layer, value in enumerate(keys.global_numbers(key, keys.count("block_count"))):
                name = f"model.layers.{layer}.{hf}"
                self.vectors[name] = in_memory(name, np.full(1, value, np.float32))
                self.shapes[name] = shape

    def _of_heads(self, name: str, places: list[Place]) -> None:
        """The matrix that several stacks by head are parts of; it comes with the first of them."""
        if name in self._done:
            return
        self._done.add(name)
        tensors = self.model.tensors
        stacks = []
        for place in places:
            if place.name not in tensors:
                raise UnsupportedError(
                    self.model.path, f"lacks {place.name}", expected="a whole language model"
                )
            scale = tensors.get(self._scale_of(place.name) or "")
            stacks.append(
                HeadStack(
                    tensors[place.name],
                    place.tensor.is_turned,
                    self._deltas.get(place.name, ()),
                    None if scale is None else values_of(scale).reshape(-1),
                )
            )
        source = matrix_of_heads(name, stacks)
        self._add_linear(Matrix(name, source, np.arange(source.n_rows), 0, 1.0, None), ((name,), 0))

    def _of_parts(self, name: str, places: list[Place]) -> None:
        """The matrix (of each expert) whose rows several tensors have; it comes with the first of them."""
        if name in self._done:
            return
        self._done.add(name)
        tensors = self.model.tensors
        found = [place for place in places if place.name in tensors]
        shape = tensors[found[0].name].shape
        experts = shape[0] if len(shape) == 3 else 1
        rows = sum(tensors[place.name].n_rows for place in found) // experts
        parts = []
        for place in found:
            scale = tensors.get(self._scale_of(place.name) or "")
            multiplier = None if scale is None else values_of(scale).reshape(-1)
            order = place.order(rows)
            order = np.arange(rows) if order is None else order
            if experts * len(order) != tensors[place.name].n_rows or place.tensor.factors or place.values:
                raise UnsupportedError(self.model.path, f"{place.name} is not a part of {name}", found=rows)
            of_all = (rows * np.arange(experts)[:, None] + order).reshape(-1)
            parts.append(RowPart(tensors[place.name], of_all, self._deltas.get(place.name, ()), multiplier))
        source = matrix_of_parts(name, parts)
        stack = experts if len(shape) == 3 else None
        turned = places[0].tensor.transposed
        matrix = Matrix(name, source, np.arange(experts * rows), 0, 1.0, None, stack=stack, transposed=turned)
        if not turned:
            self._add_linear(matrix, ((name,), 0))
        elif self._mxfp4:
            self.packed[name] = matrix
        else:
            raise UnsupportedError(
                self.model.path,
                f"{name} is stacked by expert [in, out], which has no layout in NVFP4 here",
                found=(experts, rows, source.columns),
                hint="gpt-oss goes to its own layout: --format mxfp4",
            )

    def _of_columns(self, name: str, places: list[Place]) -> None:
        """The biases of experts whose elements several tensors have; they come with the first of them."""
        if name in self._done:
            return
        self._done.add(name)
        found = [
            values_of(self.model.tensors[place.name]) for place in places if place.name in self.model.tensors
        ]
        whole = np.zeros((len(found[0]), sum(part.shape[1] for part in found)), np.float32)
        for place, part in zip(places, found, strict=True):
            order = place.column_order(whole.shape[1])
            whole[:, order] = part
        self.vectors[name] = in_memory(name, whole)

    def _scale_of(self, weight: str) -> str | None:
        """The scale that goes into the weight; None for one that the checkpoint has beside it (Gemma 4's experts)."""
        scale = scale_of(weight, self.model.tensors)
        return None if scale is None or self._names.origins(scale) else scale

    def _factor(self, name: str | None, expert: int) -> float | None:
        tensor = self.model.tensors.get(name or "")
        if tensor is None:
            return None
        values = values_of(tensor).reshape(-1)
        return float(values[expert if len(values) > 1 else 0])

    @staticmethod
    def _vector(tensor: TensorSource, place: Place) -> TensorSource:
        """As the checkpoint has it."""
        if place.as_it_is:
            return tensor
        values = values_of(tensor)
        values = values[place.rows_in_gguf(len(values))]
        if (factor := place.factor) is not None:
            values = values / factor
        if place.tensor.shape is not None:
            values = values.reshape(place.tensor.shape.inverse(values.shape))
        return in_memory(tensor.name, values if place.values is None else place.values.inverse(values))

    def unquantized_modules(self) -> list[str]:
        """The linears that stay in floating point, as `ignore` and `exclude_modules` name them."""
        return sorted(matrix.module for matrix in self.floats.values()) + (
            ["lm_head"] if "lm_head.weight" not in self.floats else []
        )
