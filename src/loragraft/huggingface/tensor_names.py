"""Tensor names of Hugging Face and of GGUF, both ways, for models and adapters: from the tables of the records."""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from dataclasses import dataclass

import numpy as np

from loragraft.archs import ARCHS
from loragraft.archs.graphs import read_hparams
from loragraft.archs.hparams import Hparams
from loragraft.archs.tensors import OfHeads, Order, Tensor, Values
from loragraft.arrays import Floats
from loragraft.formats.gguf.values import Metadata

#: Buffers that old checkpoints carry beside their weights.
_BUFFERS = (
    ".attention.bias",
    ".attention.masked_bias",
    ".attn.bias",
    ".attn.masked_bias",
    ".rotary_emb.inv_freq",
)
_EXPERT = re.compile(r"(?<=\.experts\.)\d{1,4}(?=\.)")
_PARTS = (".weight", ".bias")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a Hugging Face tensor goes: the whole of GGUF tensor `name`, or a part of it."""

    name: str
    tensor: Tensor
    h: Hparams
    layer: int
    expert: int | None = None
    """It is one expert's matrix of the stack `name` [n_expert, out, in], or that of another module of several."""

    @property
    def stacked(self) -> int:
        """How many matrices that stack has."""
        return self.h.experts if self.tensor.stack is None else self.tensor.stack(self.h)

    @property
    def as_it_is(self) -> bool:
        """Whether it is a tensor of its own, with the checkpoint's rows, columns and values."""
        own = self.tensor
        changes = (own.rows, own.columns, own.values, own.fused, own.factors)
        return changes == (None,) * 5 and not (self.tensor.transposed or self.tensor.shape)

    @property
    def values(self) -> Values | None:
        return self.tensor.values

    @property
    def factors(self) -> list[Floats]:
        """What the rows are multiplied by, one after another: [] or [rows]. Raises ValueError if the file does not say
        it."""
        if self.tensor.factors is None:
            return []
        of = self.tensor.factors
        found = of.bias(self.h) if self.name.endswith(".bias") else of.weight(self.h)
        return [np.asarray(factor, np.float32) for factor in found]

    @property
    def factor(self) -> Floats | None:
        """All of them as one."""
        return np.prod(np.stack(np.broadcast_arrays(*found)), 0) if (found := self.factors) else None

    def order(self, rows: int) -> Order | None:
        """Row i of the GGUF tensor is row order[i] of this one, which has `rows`; None: all, in order. Raises
        ValueError if so many rows do not divide as they must."""
        return None if self.tensor.rows is None else self.tensor.rows.order(self.h, self.layer, rows)

    def column_order(self, columns: int) -> Order | None:
        """The same of the columns of a weight."""
        if self.tensor.columns is None:
            return None
        order = self.tensor.columns.order(self.h, self.layer, columns)
        return None if np.array_equal(order, np.arange(columns)) else order

    @property
    def heads(self) -> int:
        """How many matrices the GGUF tensor has of this one's rows, stacked by head; 0: it is not such a stack."""
        rows = self.tensor.rows
        return rows.find(self.h, self.layer)[0] if isinstance(rows, OfHeads) else 0

    def rows_of(self, shape: tuple[int, ...]) -> int:
        """How many rows of the checkpoint's matrix a GGUF tensor of this shape has."""
        if not self.heads:
            return shape[-2]
        return self.heads * (shape[-1] if self.tensor.is_turned else shape[-2])

    @property
    def span(self) -> tuple[int, int] | None:
        """Which rows of the GGUF tensor are this one's, if it is one of several; else None."""
        return None if self.tensor.fused is None else self.tensor.fused.span(self.h, self.layer)

    @property
    def parts(self) -> int:
        """How many tensors of the checkpoint the GGUF tensor is made of, experts aside."""
        return 1 if self.tensor.fused is None else len(self.tensor.fused.rows(self.h, self.layer))

    def rows_in_gguf(self, rows: int) -> Order:
        """Row i of the checkpoint's tensor is row rows_in_gguf[i] of GGUF's, which has `rows` and all of this one's."""
        first, last = self.span or (0, rows)
        order = self.order(last - first)
        return first + (np.arange(last - first) if order is None else np.argsort(order))


class TensorNames:
    """The places of one model's tensors, by the architecture and sizes in its GGUF metadata.

    Raises UnsupportedError for an architecture whose Hugging Face names are not known.
    """

    def __init__(self, metadata: Metadata) -> None:
        h = read_hparams(metadata)
        self._fill(h, ARCHS.by_name(h.arch).tensors)

    def _fill(self, h: Hparams, tensors: Sequence[Tensor]) -> None:
        self.layers, self.experts = len(h.layers), h.experts
        self._places: dict[str, list[Place]] = {}
        for tensor in tensors:
            if not tensor.when(h):
                continue
            for layer in range(self.layers if "{i}" in tensor.hf else 1):
                number = str(layer)
                hf, gguf = tensor.hf.replace("{i}", number), tensor.gguf.replace("{i}", number)
                modules = range(tensor.stack(h)) if tensor.stack is not None else [None]
                for part in [""] if tensor.exact else _PARTS:
                    for module in modules:
                        place = Place(gguf + part, tensor, h, layer, module)
                        name = hf if module is None else hf.replace("{e}", str(module))
                        self._places.setdefault(name + part, []).append(place)

    def by_name(self) -> dict[str, list[Place]]:
        """Every name that a tensor may have, with `{e}` for the expert, and where it goes."""
        return self._places

    @staticmethod
    def is_buffer(name: str) -> bool:
        """Whether the tensor is not a weight and may be left out."""
        return name.endswith(_BUFFERS)

    def places(self, name: str) -> tuple[Place, ...]:
        """Where the tensor `name` (with `.weight` or `.bias`) goes; empty if the architecture has no such tensor."""
        for candidate in (name, "model." + name):
            if candidate in self._places:
                return tuple(self._places[candidate])
            if found := _EXPERT.search(candidate):
                pattern = _EXPERT.sub("{e}", candidate, count=1)
                return tuple(
                    Place(place.name, place.tensor, place.h, place.layer, int(found[0]))
                    for place in self._places.get(pattern, [])
                )
        return ()


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a part of a GGUF tensor goes in a checkpoint."""

    name: str
    expert: int | None
    place: Place


def _are_parts(name: str, places: list[Place]) -> bool:
    """Whether each place has some rows of the tensor `name` (of a bias of experts: columns), so that they make it."""
    rows, columns = ([getattr(place.tensor, axis) for place in places] for axis in ("rows", "columns"))
    return all(columns) if any(columns) else all(rows) and not name.endswith(".bias")


class CheckpointNames:
    """The Hugging Face names of one model's tensors, from all `names` that they may have. Experts have a name each.
    `has`: the model's GGUF tensors, for names that depend on them."""

    def __init__(self, names: TensorNames, has: Container[str] = ()) -> None:
        self._origins: dict[str, list[Origin]] = {}
        self._by_head: dict[str, tuple[str, list[Place]]] = {}
        self._parts: dict[str, tuple[str, list[Place]]] = {}
        for hf, places in names.by_name().items():
            [place, *others] = places
            beside = place.tensor.beside
            if beside is not None and beside.replace("{i}", str(place.layer)) not in has:
                continue
            if place.heads and hf.endswith(".weight"):
                self._by_head.update({each.name: (hf, places) for each in places})
            elif others and _are_parts(hf, places):
                for each in places:
                    self._parts.setdefault(each.name, (hf, places))
            before = self._origins.setdefault(place.name, [])
            if place.expert is not None:
                before.append(Origin(hf, place.expert, place))
                continue
            partly = others and (place.tensor.rows or place.tensor.columns)
            if partly or (before and (place.span is None or len(before) == place.parts)):
                continue  # only a part of that tensor, or there are names that come before
            if "{e}" in hf:
                experts = range(names.experts)
                before += [Origin(hf.replace("{e}", str(e)), e, place) for e in experts]
            else:
                before.append(Origin(hf, None, place))

    def stacks_of(self, name: str) -> tuple[str, list[Place]] | None:
        """The checkpoint's matrix that GGUF tensor `name` is a stack of heads' parts of, and all these stacks."""
        return self._by_head.get(name)

    def parts_of(self, name: str) -> tuple[str, list[Place]] | None:
        """The checkpoint's matrix that GGUF tensor `name` has some rows of, and the places of them all."""
        return self._parts.get(name)

    def origins(self, name: str) -> list[Origin]:
        """The checkpoint tensors that GGUF tensor `name` is made of, experts in order; empty if it has none."""
        return self._origins.get(name, [])
