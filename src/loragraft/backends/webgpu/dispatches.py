"""What steps are made of: dispatches, and where the values of a plan lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from loragraft.backends.gpu.program import halves
from loragraft.backends.gpu.states import state_shapes
from loragraft.backends.gpu.tables import NONE, RopeTable
from loragraft.backends.plan import Plan
from loragraft.backends.program import Options
from loragraft.backends.webgpu.buffers import Constants, DeviceWeights
from loragraft.backends.webgpu.device import PARAMETERS, Device
from loragraft.backends.webgpu.passes import Pass
from loragraft.backends.webgpu.shaders import Shader, shader
from loragraft.graph.ops import Graph
from loragraft.graph.spec import value_shapes

Grid = tuple[int, int, int]
ROWS = 8
"""Rows that a product takes at a time, where there are more than two."""
FOLD = 32768
"""Workgroups along one axis, at most."""


@dataclass(frozen=True, slots=True)
class Dispatch:
    """One run of a kernel. `grid`: of a pass, how many workgroups; none of them where a number is 0. `data`: the bind
    group of weights; `layer`: the attention whose keys and values it works on; `state`: the recurrent node whose states
    it does. `few`: takes the place of `pipeline`, which has ROWS rows along z, in passes of one or two rows."""

    pipeline: Any
    parameters: int
    grid: Callable[[Pass], Grid]
    data: Any = None
    layer: int | None = None
    state: int | None = None
    few: Any = None


@dataclass(frozen=True, slots=True)
class Layer:
    """Keys and values of one attention, in words for each token; `halves`: two elements to a word."""

    key_width: int
    value_width: int
    halves: bool

    @property
    def key_words(self) -> int:
        return -(-self.key_width // 2) if self.halves else self.key_width

    @property
    def value_words(self) -> int:
        return -(-self.value_width // 2) if self.halves else self.value_width

    @property
    def words(self) -> int:
        return self.key_words + self.value_words


@dataclass(frozen=True, slots=True)
class Observed:
    """What an observer is shown before a step: the weights, and where x and the ids lie."""

    weights: tuple[str, ...]
    x: int
    ids: int | None


@dataclass(slots=True)
class Steps:
    """The dispatches of a plan in order, step by step."""

    steps: list[list[Dispatch]]
    observed: dict[int, Observed]
    copies: list[Dispatch]
    layers: list[Layer]
    states: list[int]
    """The floats of a sequence's state, of each recurrent node."""
    ropes: list[RopeTable]
    parameters: bytes
    numbers: int
    """How many linears and embeddings there are, in the order in which adapters number them."""
    experts_used: int
    """The most that a row uses in any layer, at least 1."""
    shapes: list[tuple[int, ...]]
    """Of every node's value, without its rows."""
    largest: list[Dispatch]
    """What makes of the output the place of each row's largest element, and that."""


#: The numbers of kernels/pointwise.wgsl.
POINTWISE = (
    "ADD",
    "MUL",
    "BROADCAST",
    "SILU_MUL",
    "SILU",
    "SIGMOID",
    "GELU_TANH",
    "GELU_ERF",
    "RELU",
    "SOFT_CAP",
    "SOFTPLUS",
    "CLAMP",
    "AFFINE",
    "SPLIT",
    "LAST",
    "CONCAT",
    "COUNT",
    "XIELU",
    "POSITION_SCALE",
    "TIME_STEP",
    "CHANNEL_SCALE",
)


class Dispatches:
    """Makes the dispatches of a plan one by one; `made` is what has been made so far."""

    def __init__(
        self,
        device: Device,
        graph: Graph,
        plan: Plan,
        weights: DeviceWeights,
        constants: Constants,
        options: Options,
    ) -> None:
        self.device, self.plan, self.weights, self.constants = device, plan, weights, constants
        self.shapes, self.context = value_shapes(graph), options.context
        self.halves = halves(options)
        self._parameters: list[bytes] = []
        self.ropes: dict[Any, int] = {}
        self.graph = graph
        self._states = state_shapes(graph)
        self.made = Steps([], {}, [], [], [], [], b"", 0, 1, self.shapes, [])

    def place(self, node: int) -> int:
        """Where the value of a node lies in a row; NONE for what has no place."""
        offset = self.plan.places[node].offset
        return NONE if offset is None else offset

    def wanted(self, node: int) -> int:
        """1 if the value has the wanted rows alone."""
        return int(self.plan.places[node].wanted)

    def width(self, node: int) -> int:
        """Elements of a row of the value."""
        return int(np.prod(self.shapes[node], dtype=np.int64))

    def dispatch(
        self,
        kernel: Shader,
        grid: Callable[[Pass], Grid],
        values: Mapping[str, int | float],
        **more: Any,
    ) -> Dispatch:
        """A run of `kernel` with `values` for its parameters; `more`: the other fields of `Dispatch`."""
        offset = len(self._parameters) * PARAMETERS
        self._parameters.append(kernel.parameters(values).ljust(PARAMETERS, b"\0"))
        return Dispatch(self.device.pipeline(kernel), offset, grid, **more)

    def rows(self, node: int) -> Callable[[Pass], int]:
        """How many rows of the value a pass computes."""
        return (lambda p: p.wanted) if self.plan.places[node].wanted else (lambda p: p.rows)

    def threads(self, node: int, each: int) -> Callable[[Pass], Grid]:
        """A thread for each of `each` things of a row of the value of `node`."""
        rows = self.rows(node)
        return lambda p: folded(-(-rows(p) * each // 64))

    def offset(self, name: str | None) -> int:
        """Where a small tensor lies in `constants`; NONE for none."""
        return NONE if name is None else self.constants.offset(name)

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Of a tensor of the model."""
        return self.graph.tensors[name].shape

    def state(self, node: int) -> int:
        """The number of the states of a recurrent node."""
        self.made.states.append(int(np.prod(self._states[node], dtype=np.int64)))
        return len(self.made.states) - 1

    def pointwise(
        self, op: str, result: int, x: int, other: int | None = None, **values: int | float
    ) -> Dispatch:
        """kernels/pointwise.wgsl: the value `result` of `x` and `other`, element by element."""
        width = self.width(result)
        given: dict[str, int | float] = {
            "op": POINTWISE.index(op),
            "x": self.place(x),
            "other": self.place(x if other is None else other),
            "y": self.place(result),
            "width": width,
            "wanted": self.wanted(result),
            "part": 1,
            "stride": 1,
            "start": 0,
            "a": 0.0,
            "b": 0.0,
            "c": 0.0,
            "d": 0.0,
        }
        return self.dispatch(shader("pointwise"), self.threads(result, width), {**given, **values})


def folded(count: int) -> Grid:
    """`count` workgroups, some more if they do not fit along one axis: kernels number them x first."""
    if count <= FOLD:
        return count, int(count > 0), 1
    return FOLD, -(-count // FOLD), 1
