"""The native core's functions as Python sees them; each is documented where native/bind/ defines it."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from loragraft.arrays import Bytes, Floats, Ids, Ints
from loragraft.quants.grids import Levels

def isa() -> str: ...
def isas() -> list[str]: ...

# bind/stream.cpp
def stream_rows(
    src: Bytes,
    src_type: int,
    dst: Bytes | None,
    dst_type: int,
    rows: int,
    cols: int,
    deltas: Sequence[tuple[Floats, Floats, float]],
    through_f16: bool,
    importance: Floats | None,
    multiplier: float = 1.0,
    nvfp4_scale: float = 0.0,
    isa: str = "",
) -> tuple[int, int, int]: ...

# bind/os.cpp
def start_writeback(fd: int, offset: int, length: int) -> None: ...
def reserve(fd: int, size: int) -> int: ...
def guard_mappings() -> None: ...
def watch_mapping(data: Bytes, /) -> int: ...
def forget_mapping(slot: int) -> None: ...
def is_damaged(slot: int) -> bool: ...

# bind/quants.cpp
def supports(kind: int) -> bool: ...
def block(kind: int) -> tuple[int, int]: ...
def quantize(x: Floats, out: Bytes, kind: int, importance: Floats | None, isa: str) -> None: ...
def quantize_nvfp4(x: Floats, out: Bytes, scale: float, importance: Floats | None, isa: str) -> None: ...
def dequantize(data: Bytes, out: Floats, kind: int, isa: str) -> None: ...
def product(a: Floats, b: Floats, out: Floats, add: bool, upper: bool, isa: str) -> None: ...
def feedback_rows(isa: str) -> int: ...
def feedback(
    w: Floats,
    units: Floats | None,
    offset_units: Floats | None,
    scales: Ints,
    offsets: Ints | None,
    rounded: Levels,
    levels: Floats,
    uniform: bool,
    scale_table: Floats | None,
    scale_range: tuple[int, int],
    offset_table: Floats | None,
    offset_range: tuple[int, int],
    factor: Floats,
    pivots: Floats,
    h: Floats,
    block_factor: Floats,
    block_pivots: Floats,
    block_inverse: Floats,
    forward: bool,
    step: int,
    sweeps: Sequence[int],
    damping: float,
    losses: Floats | None,
    first: int,
    last: int,
    isa: str,
) -> None: ...

# bind/engine.cpp
class engine:
    """Runs graphs. Arrays are C-contiguous float32 unless said otherwise; outputs are filled in place."""

    class ThreadPool:
        def __init__(self, threads: int) -> None: ...
        @property
        def size(self) -> int: ...

    class Arena:
        """Memory for packed weights, in large pages where the system has them."""

    class Weight:
        """Rows of type `kind` (ggml's number), as stored; `experts` matrices of equal size on top of each other."""

        def __init__(self, data: Bytes, kind: int, cols: int, experts: int = 1) -> None: ...
        @property
        def rows(self) -> int: ...
        @property
        def cols(self) -> int: ...
        @property
        def has_q8(self) -> bool: ...
        def pack(self, pool: engine.ThreadPool, arena: engine.Arena) -> bool: ...
        def move(self, pool: engine.ThreadPool, arena: engine.Arena) -> None: ...
        def gather(self, ids: Ids, y: Floats) -> None: ...

    class Value:
        """Number `id`: `width` elements a row, `offset` floats a row into the program's memory; -1: the output."""

        def __init__(self, id: int, offset: int, width: int, wanted: bool) -> None: ...  # noqa: A002

    class LayerSite:
        """A linear layer in a step: scale and input_scale [experts], bias [experts * rows]."""

        def __init__(
            self,
            weight: engine.Weight,
            y: engine.Value,
            scale: Floats | None,
            bias: Floats | None,
            arch_scale: float,
            input_scale: Floats | None,
        ) -> None: ...

    class RopeTable: ...

    @staticmethod
    def scan_floats(heads: tuple[int, int, int, int, bool]) -> int:
        """Of the state of a scan: (heads, key_heads, key_dim, value_dim, tiled)."""

    class Adapter:
        """Steps are known by the numbers that the program's methods return."""

        def __init__(self) -> None: ...
        def linear(self, step: int, a: Floats, layers: Sequence[tuple[int, int, float, Floats]]) -> None:
            """a [experts, ranks, in]; of each layer its place in the step, its first row in a, its scale, and
            b [experts, rows, rank]. Both are kept as half floats where these hold every number."""

        def embed(self, step: int, a: Floats, b: Floats, scale: float) -> None: ...

    class AdapterSet:
        def __init__(self, members: tuple[tuple[engine.Adapter, float], ...]) -> None: ...
        def rescale(self, step: int, member: int, layer: int, b: Floats) -> None: ...
        def dora(self, step: int, layer: int, factors: Floats) -> None: ...

    class Program:
        """native/engine/program.h. `layers`: (kv_heads, key_dim, value_dim, window or 0) each. The methods that add a
        step return its number."""

        def __init__(
            self,
            threads: int,
            activations: str,
            floats_per_row: int,
            layers: list[tuple[int, int, int, int]],
            state_floats: list[int],
            keys_values: str,
            max_bytes: int,
        ) -> None: ...
        def embed(
            self,
            weight: engine.Weight,
            y: engine.Value,
            by_position: bool,
            scale: float,
            arch_scale: float,
            /,
        ) -> int: ...
        def hidden(self, y: engine.Value, /) -> int: ...
        def last(self, x: engine.Value, y: engine.Value, /) -> int: ...
        def linear(
            self, x: engine.Value, ids: engine.Value | None, layers: list[engine.LayerSite]
        ) -> int: ...
        def rms_norm(self, x: engine.Value, y: engine.Value, w: Floats, group: int, eps: float, /) -> int: ...
        def layer_norm(
            self, x: engine.Value, y: engine.Value, w: Floats, b: Floats | None, eps: float
        ) -> int: ...
        def unary(
            self, name: str, x: engine.Value, y: engine.Value, a: float = 0.0, b: float = 0.0
        ) -> int: ...
        def affine(self, x: engine.Value, y: engine.Value, factor: float, shift: float, /) -> int: ...
        def binary(self, name: str, a: engine.Value, b: engine.Value, y: engine.Value, /) -> int: ...
        def mul_rows(self, a: engine.Value, b: engine.Value, y: engine.Value, /) -> int: ...
        def all_experts(self, ids: engine.Value, /) -> int: ...
        def concat(self, a: engine.Value, b: engine.Value, y: engine.Value, parts: int, /) -> int: ...
        def split(self, x: engine.Value, y: engine.Value, parts: int, start: int, /) -> int: ...
        def top_k(self, logits: engine.Value, ids: engine.Value, /) -> int: ...
        def choose(
            self,
            logits: engine.Value,
            ids: engine.Value,
            gating: str,
            bias: npt.NDArray[np.float32] | None,
            groups: int,
            groups_used: int,
            best: int,
        ) -> int: ...
        def time_step(
            self, x: engine.Value, y: engine.Value, bias: Floats, low: float, high: float, /
        ) -> int: ...
        def short_conv(
            self, x: engine.Value, y: engine.Value, state: int, w: Floats, bias: Floats | None
        ) -> int: ...
        def scan(
            self,
            q: engine.Value,
            k: engine.Value,
            v: engine.Value,
            rate: engine.Value,
            beta: engine.Value | None,
            y: engine.Value,
            state: int,
            heads: tuple[int, int, int, int, bool],
            decay: Floats,
            skip: Floats | None,
        ) -> int: ...
        def match_rms(
            self, x: engine.Value, y: engine.Value, to: engine.Value, n: int, least: float, /
        ) -> int: ...
        def gaussian_top_k(self, x: engine.Value, to: engine.Value, n: int, deviations: float, /) -> int: ...
        def channel_scale(self, x: engine.Value, y: engine.Value, weight: Floats, /) -> int: ...
        def position_scale(
            self, x: engine.Value, y: engine.Value, length: float, offset: float, slope: float, /
        ) -> int: ...
        def xielu(
            self,
            x: engine.Value,
            y: engine.Value,
            alpha_p: float,
            alpha_n: float,
            beta: float,
            eps: float,
            /,
        ) -> int: ...
        def route(
            self,
            logits: engine.Value,
            ids: engine.Value,
            weights: engine.Value,
            gates: str,
            normalize: bool,
            scale: float,
            margin: float,
            /,
        ) -> int: ...
        def experts_sum(self, y: engine.Value, weights: engine.Value, total: engine.Value, /) -> int: ...
        def rope_table(
            self, per_position: npt.NDArray[np.float64], magnitude: float, /
        ) -> engine.RopeTable: ...
        def rope(
            self,
            x: engine.Value,
            y: engine.Value,
            table: engine.RopeTable,
            heads: int,
            adjacent: bool,
            /,
        ) -> int: ...
        def attention(
            self,
            q: engine.Value,
            k: engine.Value,
            v: engine.Value,
            y: engine.Value,
            layer: int,
            heads: int,
            scale: float,
            soft_cap: float,
            sinks: Floats | None,
            slopes: Floats | None = None,
            chunk: int = 0,
        ) -> int: ...
        @property
        def threads(self) -> engine.ThreadPool: ...
        def check(self, chosen: engine.AdapterSet, /) -> None: ...
        def open(self) -> int: ...
        def fork(self, sequence: int, length: int, /) -> int: ...
        def truncate(self, sequence: int, length: int, /) -> None: ...
        def close(self, sequence: int, /) -> None: ...
        @property
        def bytes(self) -> int: ...
        def run(
            self,
            tokens: Ids,
            sequences: npt.NDArray[np.int64],
            positions: Ids,
            wants: npt.NDArray[np.bool_],
            sets_of: Ids,
            sets: list[engine.AdapterSet],
            hidden: Floats | None,
            value: engine.Value,
            output: Floats,
            look: Callable[[int, Floats, Ids | None], None] | None,
        ) -> None: ...

    class StatePool:
        """native/engine/state_pool.h, for the tests. `layers`: (kv_heads, key_dim, value_dim, window or 0) each; rows
        are (sequence, position). MemoryError where `max_bytes` is not enough, ValueError for what else is refused."""

        def __init__(
            self,
            layers: list[tuple[int, int, int, int]],
            state_floats: list[int],
            type: str,  # noqa: A002 (the binding's name)
            max_bytes: int = 0,
            isa: str = "",
        ) -> None: ...
        def open(self) -> int: ...
        def fork(self, sequence: int, length: int) -> int: ...
        def truncate(self, sequence: int, length: int) -> None: ...
        def close(self, sequence: int) -> None: ...
        def length(self, sequence: int) -> int: ...
        @property
        def bytes(self) -> int: ...
        def reserve(self, tokens: list[tuple[int, int]]) -> None: ...
        def advance(self, tokens: list[tuple[int, int]]) -> None: ...
        def append(
            self, pool: engine.ThreadPool, layer: int, rows: list[tuple[int, int]], k: Floats, v: Floats
        ) -> None: ...
        def attend(
            self,
            pool: engine.ThreadPool,
            layer: int,
            rows: list[tuple[int, int]],
            q: Floats,
            y: Floats,
            heads: int,
            scale: float,
            soft_cap: float = 0.0,
            sinks: Floats | None = None,
        ) -> None: ...
        def get_state(self, sequence: int, position: int, layer: int, out: Floats) -> None: ...
        def set_state(self, sequence: int, layer: int, state: Floats) -> None: ...

    @staticmethod
    def has_type(kind: int) -> bool: ...
    @staticmethod
    def multiply(
        pool: ThreadPool,
        weight: Weight,
        x: Floats,
        y: Floats,
        q8: bool,
        ids: Ids | None = None,
        scale: float = 1.0,
        bias: Floats | None = None,
        arch_scale: float = 1.0,
        b: Floats | None = None,
        xa: Floats | None = None,
        dora_scale: Floats | None = None,
    ) -> None: ...
