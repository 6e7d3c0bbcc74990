"""The weights of a graph as the native kernels want them: stored rows referenced, epilogues packed once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from loragraft import _native
from loragraft.backends.batch import Floats
from loragraft.backends.cpu.plan import LinearStep, NodeStep, Plan, plan
from loragraft.backends.program import Weights
from loragraft.errors import UnsupportedError
from loragraft.formats.source import TensorSource
from loragraft.graph.ops import Graph, Op
from loragraft.quants.types import BY_NAME

engine = _native.engine


@dataclass(frozen=True, slots=True)
class Product:
    """A weight without an epilogue of its own."""

    weight: Any
    end: Any
    rows: int


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear step's weight and epilogue."""

    weight: Any
    end: Any
    rows: int
    lora: Product | None
    """What x is first multiplied by for the adapters: for a dense layer, the stacked A of all layers with this input;
    for experts, their own A."""
    xa_first: int
    """Where this layer's columns of that product begin."""
    input_scale: Floats | None
    """ModelOpt's scale of the activations, [1] or [experts]."""
    nvfp4: bool
    """Whether the weight is NVFP4: the only one whose activations can be NVFP4 too."""


class Model:
    """The weights of a graph for the kernels: stored rows are referenced, epilogues packed once."""

    def __init__(self, graph: Graph, weights: Weights, pool: engine.ThreadPool, *, pack: bool) -> None:
        """`pack`: give weights the layout that products with 8-bit activations are fastest in, at the cost of as much
        memory again as they take."""
        self.plan: Plan = plan(graph)
        self._pool = pool
        self._arena = engine.Arena() if pack else None
        self._weights = weights
        self._floats: dict[str, Floats] = {}
        self._matrices: dict[str, Any] = {}
        shared_a = {
            x: _product(np.concatenate([self.floats(name) for name in names]))
            for x, names in self.plan.shared_a.items()
        }
        seen: dict[int, int] = {}
        self.linears: dict[int, Linear] = {}
        for linear in self.plan.linears:
            self.linears[linear.result] = self._linear(linear, shared_a, seen)
        for step in self.plan.steps:
            if isinstance(step, NodeStep):
                for name in step.node.weights:
                    self.matrix(name) if step.node.op is Op.EMBED else self.floats(name)

    def matrix(self, name: str) -> Any:
        """The kernels' view of a weight's rows as they are stored."""
        if name not in self._matrices:
            tensor = self._weights[name]
            if isinstance(tensor, TensorSource):
                if not engine.has_type(tensor.type.id):
                    raise UnsupportedError(name, "no native kernel for this tensor type", found=tensor.type)
                experts = tensor.shape[0] if len(tensor.shape) == 3 else 1
                rows = tensor.rows(0, tensor.n_rows)
                self._matrices[name] = engine.Weight(rows, tensor.type.id, tensor.columns, experts)
            else:
                self._matrices[name] = _matrix_of(tensor)
        return self._matrices[name]

    def floats(self, name: str) -> Floats:
        """A small tensor (norm, bias, scale, adapter) as float32 in its shape."""
        if name not in self._floats:
            tensor = self._weights[name]
            if isinstance(tensor, TensorSource):
                rows = engine.Weight(
                    np.ascontiguousarray(tensor.rows(0, tensor.n_rows)), tensor.type.id, tensor.columns
                )
                values = np.empty((tensor.n_rows, tensor.columns), np.float32)
                rows.gather(self._pool, np.arange(tensor.n_rows, dtype=np.int32), values)
                self._floats[name] = values.reshape(tensor.shape)
            else:
                self._floats[name] = np.ascontiguousarray(tensor, np.float32)
        return self._floats[name]

    def _linear(self, step: LinearStep, shared_a: dict[int, Product], seen: dict[int, int]) -> Linear:
        tensor = self._weights[step.weight]
        dense = step.ids is None
        experts = 1 if dense else tensor.shape[0]
        rows = tensor.shape[-2] if len(tensor.shape) > 1 else 1
        b = lora = None
        first = 0
        if step.loras:
            parts = [self.floats(term.b) * np.float32(term.gamma) for term in step.loras]
            b = np.ascontiguousarray(np.concatenate(parts, axis=-1).reshape(experts, rows, -1))
            if dense:
                lora, first = shared_a[step.x], seen.get(step.x, 0)
                seen[step.x] = first + b.shape[-1]
            else:
                lora = _product(np.concatenate([self.floats(term.a) for term in step.loras], axis=1))
        bias = self.floats(step.bias).reshape(experts, rows) if step.bias else None
        dora = self.floats(step.dora_scale).reshape(experts, rows) if step.dora_scale else None
        scale = self.floats(step.scale) if step.scale else None
        arch = step.arch_scale if isinstance(step.arch_scale, float) else self.floats(*step.arch_scale)[0]
        end = engine.LinearEnd(experts, rows, scale, b, bias, float(arch), dora)
        input_scale = self.floats(step.input_scale) if step.input_scale else None
        nvfp4 = isinstance(tensor, TensorSource) and tensor.type.name == "NVFP4"
        weight = self.matrix(step.weight)
        if (
            self._arena is not None
            and weight.pack(self._pool, self._arena)
            and isinstance(tensor, TensorSource)
        ):
            tensor.release(
                0, tensor.n_rows
            )  # the file's pages are read no more, but for the rows of an embedding
        return Linear(weight, end, rows, lora, first, input_scale, nvfp4)


def _product(a: Floats) -> Product:
    experts = a.shape[0] if a.ndim == 3 else 1
    end = engine.LinearEnd(experts, a.shape[-2], None, None, None, 1.0)
    return Product(_matrix_of(a), end, a.shape[-2])


def _matrix_of(array: Floats) -> Any:
    array = np.ascontiguousarray(array, np.float32)
    experts = array.shape[0] if array.ndim == 3 else 1
    rows = array.reshape(-1, array.shape[-1])
    return engine.Weight(rows.view(np.uint8), BY_NAME["F32"].id, rows.shape[1], experts)
