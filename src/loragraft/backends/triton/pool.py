"""Keys and values of every attention layer, in pages; states of every recurrent one, in slots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from loragraft.backends.batch import Batch
from loragraft.backends.gpu.pages import PAGE
from loragraft.backends.gpu.states import Move, state_shapes
from loragraft.backends.triton.device import Device
from loragraft.errors import PoolError
from loragraft.graph.ops import Graph, Op


class Pool:
    """float16 or float32 [slots, kv_heads * head_dim] for the keys of each layer, and for its values."""

    def __init__(self, device: Device, graph: Graph, *, halves: bool) -> None:
        self._device, self._kind = device, "float16" if halves else "float32"
        self._widths: dict[int, tuple[int, int]] = {}
        for node in graph.nodes:
            if node.op is Op.ATTENTION:
                at = node.attrs
                values = at.get("value_dim") or at["head_dim"]
                self._widths[at["layer"]] = at["kv_heads"] * at["head_dim"], at["kv_heads"] * values
        self._held: dict[int, tuple[Any, Any]] = {}
        self.pages = 0
        each = 2 if halves else 4
        self.page_bytes = PAGE * each * sum(sum(widths) for widths in self._widths.values())

    def grow(self, pages: int) -> None:
        """To so many pages, with what it holds. Raises PoolError if there is no memory."""
        with self._device.refusing(PoolError):
            grown = {
                layer: tuple(self._device.empty(pages * PAGE, width, kind=self._kind) for width in widths)
                for layer, widths in self._widths.items()
            }
            for layer, held in self._held.items():
                for old, new in zip(held, grown[layer], strict=True):
                    new[: len(old)].copy_(old)
        self._held = {layer: (keys, values) for layer, (keys, values) in grown.items()}
        self.pages = pages

    def copy(self, copies: Sequence[tuple[int, int]]) -> None:
        """Pages (from, to)."""
        for held in self._held.values():
            for tensor in held:
                pages = tensor.view(self.pages, PAGE, -1)
                for old, new in copies:
                    pages[new].copy_(pages[old])

    def extend(self, layer: int, keys: Any, values: Any, slots: Any) -> tuple[Any, Any]:
        """Keep keys and values of rows in their slots; all of the layer."""
        held = self._held[layer]
        for tensor, new in zip(held, (keys, values), strict=True):
            tensor[slots] = new.to(tensor.dtype)
        return held


class StatePool:
    """float32 [slots, ...] for the states of each recurrent node, by its number."""

    def __init__(self, device: Device, graph: Graph) -> None:
        self._device, self._shapes = device, state_shapes(graph)
        self.held: dict[int, Any] = {}
        self.slots = 0
        self.slot_bytes = 4 * sum(prod(shape) for shape in self._shapes.values())

    def grow(self, slots: int) -> None:
        """As `Pool.grow`."""
        with self._device.refusing(PoolError):
            grown = {node: self._device.empty(slots, *shape) for node, shape in self._shapes.items()}
            for node, old in self.held.items():
                grown[node][: len(old)].copy_(old)
        self.held, self.slots = grown, slots


def find(
    batch: Batch, tables: Mapping[int, list[int]], moves: Mapping[int, Move]
) -> dict[str, npt.NDArray[Any]]:
    """Where the rows of `batch` find their sequence: `tables` int32, the pages of one sequence after the other; `lists`
    int32 [rows], where that of a row's begins; `slots` int64 [rows], of the row itself. Of recurrent layers `runs` as
    in kernels/recurrent.py; `run_of` int32 [rows]."""
    lists, slots = np.empty(len(batch), np.int32), np.empty(len(batch), np.int64)
    run_of = np.empty(len(batch), np.int32)
    pages: list[int] = []
    runs: list[tuple[int, int, int, int]] = []
    for run in batch.runs():
        table = np.array(tables[run.sequence], np.int64)
        rows = slice(run.first, run.stop)
        positions = batch.positions[rows]
        lists[rows] = len(pages)
        slots[rows] = table[positions // PAGE] * PAGE + positions % PAGE
        pages += tables[run.sequence]
        run_of[rows] = len(runs)
        old, new = moves.get(run.sequence, (None, -1))
        runs.append((run.first, run.stop, -1 if old is None else old, new))
    return {
        "tables": np.array(pages, np.int32),
        "lists": lists,
        "slots": slots,
        "runs": np.array(runs, np.int32),
        "run_of": run_of,
    }
