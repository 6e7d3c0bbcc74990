"""Where the pairs and factors of a PEFT adapter go: every module's onto the GGUF weight that the module became."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from loragraft.adapters.advice import merge_with_peft
from loragraft.adapters.lora import EMBEDDING, OUTPUT, LoraPair
from loragraft.adapters.methods.method import ModuleDelta, ModuleTransform
from loragraft.adapters.methods.orthogonal import SharedBlock
from loragraft.adapters.peft_config import LoraSettings
from loragraft.adapters.transform import Transform
from loragraft.arrays import Floats
from loragraft.errors import AdapterError
from loragraft.formats.peft import CONFIG
from loragraft.formats.source import ModelSource, TensorSource
from loragraft.huggingface.tensor_names import Place
from loragraft.huggingface.wrappers import TextNames

Part = tuple[Floats, Floats, float, Floats | None]
"""A, B, scale and magnitude."""


@dataclass(slots=True)
class _Target:
    """The pairs for one GGUF weight: one, or one per expert or part of it (key None, or which)."""

    place: Place
    parts: dict[int | None, Part] = field(default_factory=dict)


class AdapterPlacement:
    def __init__(
        self,
        path: Path,
        base: ModelSource,
        names: TextNames,
        settings: LoraSettings,
        replaced: Mapping[str, TensorSource],
    ) -> None:
        self._path, self._base, self._names, self._settings = path, base, names, settings
        self._shapes = {name: tensor.shape for name, tensor in {**base.tensors, **replaced}.items()}
        self._shapes.setdefault(OUTPUT, self._shapes[EMBEDDING])  # tied
        self._targets: dict[str, _Target] = {}
        self.transforms: dict[str, Transform] = {}
        """By target."""

    def add(self, delta: ModuleDelta) -> None:
        """Find the weights that `delta` changes, and keep its part for each."""
        module = delta.module
        places = self._names.places(f"{module}.weight")
        if places:
            scale = self._scale(module, delta.a.shape[0]) if delta.scale is None else delta.scale
            if delta.embedding:
                self._add_embedding(places[0], delta, scale)
                return
            for place in places:
                columns = self._shapes.get(place.name, (0,))[-1] if delta.cut else delta.a.shape[1]
                self._add(place, module, delta.a[:, :columns], delta.b, scale, delta.magnitude)
            return
        stack = module
        while stack.endswith(".base_layer"):
            stack = stack.removesuffix(".base_layer")
        if stack.endswith(".experts") and self._names.places(f"{stack}.gate_up_proj"):
            self._add_stack(stack, delta)
            return
        raise self._nowhere(module)

    def _nowhere(self, module: str) -> AdapterError:
        return AdapterError(
            self._path,
            f"adapts {module}, but the base model has no such tensor",
            found=f"{self._base.path.name}: {self._base.arch}, {self._names.layers} layers",
            expected="the model that it was trained on",
        )

    def add_transform(self, one: ModuleTransform) -> None:
        """Find the weight that `one` multiplies, and its bias if that is multiplied too."""
        places = self._names.places(f"{one.module}.weight")
        if not places:
            raise self._nowhere(one.module)
        for place in places:
            shape = self._shapes.get(place.name)
            whole = place.expert is None and place.tensor.fused is None and place.values is None
            turned = one.rotation is not None and place.tensor.columns is not None
            if not whole or turned or shape is None or len(shape) != 2:
                raise AdapterError(
                    self._path,
                    f"changes {one.module} by {', '.join(one.parts)}, which is honoured of matrices alone",
                    found=f"{place.name} {shape}",
                    hint=merge_with_peft(self._path),
                )
            if place.name in self.transforms:
                raise AdapterError(self._path, f"adapts {one.module} twice")
            self.transforms[place.name] = self._transform(place, one, shape)

    def _transform(self, place: Place, one: ModuleTransform, shape: tuple[int, ...]) -> Transform:
        rotation = one.rotation
        try:
            if isinstance(rotation, SharedBlock):
                rotation = rotation.of_size(shape[1])
            lengths, columns = one.lengths, one.columns
            if lengths is not None and (order := place.order(len(lengths))) is not None:
                lengths = lengths[order]
            order = place.column_order(shape[1])
            if columns is not None and order is not None and len(columns) == shape[1]:
                columns = columns[order]
        except ValueError as problem:
            raise AdapterError(self._path, f"{one.module} does not fit: {problem}", found=shape) from None
        sizes = (
            shape[0] if lengths is None else len(lengths),
            rotation.size if rotation is not None else shape[1] if columns is None else len(columns),
        )
        if sizes != shape:
            raise AdapterError(
                self._path,
                f"what it does to {one.module} does not fit {self._base.path.name}'s {place.name}",
                found=sizes,
                expected=shape,
            )
        bias = f"{place.name.removesuffix('.weight')}.bias"
        return Transform(
            lengths, columns, rotation, bias if one.of_bias and bias in self._base.tensors else None
        )

    def pairs(self) -> dict[str, LoraPair]:
        """All pairs, by target."""
        found = {}
        for name, target in self._targets.items():
            if target.place.tensor.fused is not None:
                found[name] = self._joined(name, target)
            else:
                one = None in target.parts
                found[name] = self._single(name, target) if one else self._stacked(name, target)
        return found

    def _scale(self, name: str, rank: int) -> float:
        expected = self._settings.rank_of(name)
        if rank != expected:
            raise AdapterError(
                self._path,
                f"the rank of {name} is not the one that {CONFIG} says",
                found=rank,
                expected=expected,
                hint=f"are {CONFIG} and the weights of one training? If they are, set r (or rank_pattern, for this "
                f"module) to {rank}; the scale is lora_alpha / r",
            )
        return self._settings.scale_of(name)

    def _add_embedding(self, place: Place, delta: ModuleDelta, scale: float) -> None:
        if place.name != EMBEDDING:
            raise AdapterError(
                self._path, f"{delta.module} is not an embedding of the base model", found=place.name
            )
        self._add(place, delta.module, delta.b.T, delta.a.T, scale)

    def _add_stack(self, stack: str, delta: ModuleDelta) -> None:
        """One of the parameters of a layer's fused experts; which one, its shape says."""
        fits = []
        for parameter in ("gate_up_proj", "down_proj"):
            places = self._names.places(f"{stack}.{parameter}")
            shape = self._shapes.get(places[0].name)
            if shape is None or not f"{stack}.{parameter}".endswith(self._settings.parameters):
                continue
            experts, out, columns = shape[0], shape[1] * len(places), shape[2]
            rank = self._settings.rank_of(f"{stack}.{parameter}")
            for swapped in (False, True):
                rows, width = (columns, out) if swapped else (out, columns)
                if delta.a.shape == (experts * rank, width) and delta.b.shape == (rows, rank * experts):
                    fits.append(
                        (swapped == self._settings.swapped_experts, parameter, places, experts, swapped)
                    )
        if not fits:
            raise AdapterError(
                self._path,
                f"the shapes of {delta.module} do not fit any experts of the base model",
                found=f"A {delta.a.shape}, B {delta.b.shape}",
                expected="A (experts * r, in), B (out, r * experts)",
            )
        _, parameter, places, experts, swapped = max(fits, key=lambda fit: fit[0])
        name = f"{stack}.{parameter}"
        rank = delta.a.shape[0] // experts
        a = delta.a.reshape(experts, rank, -1)
        b = delta.b.reshape(delta.b.shape[0], rank, experts).transpose(2, 0, 1)
        if swapped:
            a, b = b.transpose(0, 2, 1), a.transpose(0, 2, 1)
        for place in places:
            self._add(place, name, a, b, self._settings.scale_of(name))

    def _add(
        self,
        place: Place,
        module: str,
        a: Floats,
        b: Floats,
        scale: float,
        magnitude: Floats | None = None,
    ) -> None:
        whole = self._shapes.get(place.name)
        if whole is None:
            raise AdapterError(
                self._path, f"adapts {module}, but the base has no {place.name}", found=self._base.path.name
            )
        a, b, magnitude = self._ordered(place, module, a, b, magnitude)
        shape = (*a.shape[:-2], b.shape[-2], a.shape[-1])
        expected = whole if place.expert is None else whole[1:]
        if len(expected) == 1:  # GGUF drops the axis of a weight with one row
            expected = (1, *expected)
        if (span := place.span) is not None:
            expected = (span[1] - span[0], *whole[1:])
        if shape != expected:
            raise AdapterError(
                self._path,
                f"the shape of its delta for {module} is not that of {self._base.path.name}'s {place.name}",
                found=shape,
                expected=expected,
            )
        parts = self._targets.setdefault(place.name, _Target(place)).parts
        which = place.expert if place.tensor.fused is None else place.tensor.fused.index
        if which in parts:
            raise AdapterError(self._path, f"adapts {module} twice")
        parts[which] = (np.ascontiguousarray(a), np.ascontiguousarray(b), scale, magnitude)

    def _ordered(
        self, place: Place, module: str, a: Floats, b: Floats, magnitude: Floats | None
    ) -> tuple[Floats, Floats, Floats | None]:
        """Columns of A, rows of B and of the magnitude as the weight has them in GGUF."""
        if place.values is not None:
            raise AdapterError(
                self._path, f"adapts {module}, whose values change on conversion to GGUF", found=place.name
            )
        try:
            order, columns = place.order(b.shape[-2]), place.column_order(a.shape[-1])
            factor = place.factor
        except ValueError as problem:
            raise AdapterError(
                self._path, f"its delta for {module} does not fit ({problem})", found=(a.shape, b.shape)
            ) from None
        if columns is not None:
            a = a[..., columns]
        if factor is not None:  # the delta's rows are multiplied as the weight's
            b = b * (factor if factor.ndim == 0 else factor[:, None])
            magnitude = None if magnitude is None else magnitude * factor
        if order is None:
            return a, b, magnitude
        if place.heads:
            return self._by_head(
                place, module, a, b[order], magnitude if magnitude is None else magnitude[order]
            )
        return a, b[..., order, :], None if magnitude is None else magnitude[order]

    def _by_head(
        self, place: Place, module: str, a: Floats, b: Floats, magnitude: Floats | None
    ) -> tuple[Floats, Floats, Floats | None]:
        """The pair of a stack by head: each has its rows of B, and all of A; transposed, it is A^T B^T."""
        b = b.reshape(place.heads, -1, b.shape[-1])
        a = np.broadcast_to(a, (place.heads, *a.shape))
        if not place.tensor.is_turned:
            return a, b, None if magnitude is None else magnitude.reshape(place.heads, -1)
        if magnitude is not None:
            raise AdapterError(
                self._path,
                f"DoRA of {module} is not supported: its rows are columns in GGUF",
                found=place.name,
                hint=merge_with_peft(self._path),
            )
        return b.swapaxes(1, 2), a.swapaxes(1, 2), None

    def _single(self, name: str, target: _Target) -> LoraPair:
        return LoraPair(name, *target.parts[None])

    def _stacked(self, name: str, target: _Target) -> LoraPair:
        """Experts adapted one by one, as a stack: zeros for the others, and up to the largest rank."""
        experts, out, columns = self._shapes[name]
        parts: Mapping[int | None, Part] = target.parts
        scales = {scale for _, _, scale, _ in parts.values()}
        common = scales.pop() if len(scales) == 1 else 1.0
        rank = max(a.shape[0] for a, _, _, _ in parts.values())
        stack_a, stack_b = (
            np.zeros((experts, rank, columns), np.float32),
            np.zeros((experts, out, rank), np.float32),
        )
        lengths = np.zeros((experts, out), np.float32)
        decomposed = False
        for expert, (a, b, scale, magnitude) in parts.items():
            stack_a[expert, : a.shape[0]] = a
            stack_b[expert, :, : b.shape[1]] = b if common == scale else b * np.float32(scale / common)
            if magnitude is not None:
                lengths[expert], decomposed = magnitude, True
        if decomposed and len(parts) < experts:
            raise AdapterError(
                self._path,
                f"DoRA of some experts of {name} only is not supported",
                found=f"{len(parts)} of {experts}",
                hint=merge_with_peft(self._path),
            )
        return LoraPair(name, stack_a, stack_b, common, lengths if decomposed else None)

    def _joined(self, name: str, target: _Target) -> LoraPair:
        """Parts of a fused weight adapted one by one, as one pair: each has its own columns of B, and rows."""
        place, parts = target.place, target.parts
        fused = place.tensor.fused
        assert fused is not None
        scales = {scale for _, _, scale, _ in parts.values()}
        common = scales.pop() if len(scales) == 1 else 1.0
        b = np.zeros((self._shapes[name][0], sum(a.shape[0] for a, _, _, _ in parts.values())), np.float32)
        lengths = np.zeros(len(b), np.float32)
        decomposed = [magnitude is not None for _, _, _, magnitude in parts.values()]
        if any(decomposed) and (not all(decomposed) or len(parts) < place.parts):
            raise AdapterError(
                self._path,
                f"DoRA of a part of {name} only is not supported",
                found=f"{sum(decomposed)} of {place.parts} parts",
                hint=merge_with_peft(self._path),
            )
        done = 0
        for index, (_, own, scale, magnitude) in sorted(parts.items(), key=lambda item: item[0] or 0):
            first, last = replace(fused, index=index or 0).span(place.h, place.layer)
            block = own if common == scale else own * np.float32(scale / common)
            b[first:last, done : done + own.shape[1]] = block
            done += own.shape[1]
            if magnitude is not None:
                lengths[first:last] = magnitude
        a = np.concatenate([parts[index][0] for index in sorted(parts, key=lambda index: index or 0)])
        return LoraPair(name, a, b, common, lengths if any(decomposed) else None)
