"""The native core's functions as Python sees them; each is documented where native/bind/ defines it."""

from collections.abc import Sequence

from loragraft.backends.batch import Ids
from loragraft.quants.codec import Bytes, Floats, Ints
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
    losses: Floats,
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
        def cols(self) -> int: ...
        @property
        def has_q8(self) -> bool: ...
        def pack(self, pool: engine.ThreadPool, arena: engine.Arena) -> bool: ...
        def gather(self, pool: engine.ThreadPool, ids: Ids, y: Floats) -> None: ...

    class LinearEnd:
        """The epilogue: scale [experts], b [experts, rows, rank], dora_scale and bias [experts, rows], each or none."""

        def __init__(
            self,
            experts: int,
            rows: int,
            scale: Floats | None,
            b: Floats | None,
            bias: Floats | None,
            arch_scale: float,
            dora_scale: Floats | None = None,
        ) -> None: ...
        @property
        def rank(self) -> int: ...

    class Input:
        """The x of products, [rows, cols]; quantized to 8 bits by the first product that wants it."""

        def set(self, x: Floats) -> None: ...
        @property
        def rows(self) -> int: ...

    class LayerCache:
        def __init__(self, kv_heads: int, head_dim: int) -> None: ...

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
        def get_state(self, sequence: int, layer: int, out: Floats) -> None: ...
        def set_state(self, sequence: int, layer: int, state: Floats) -> None: ...

    @staticmethod
    def has_type(kind: int) -> bool: ...
    @staticmethod
    def linear(
        pool: ThreadPool,
        weight: Weight,
        x: Input,
        y: Floats,
        end: LinearEnd,
        xa: Floats | None,
        xa_first: int,
        q8: bool,
    ) -> None: ...
    @staticmethod
    def linears(
        pool: ThreadPool,
        x: Input,
        products: list[tuple[Weight, Floats, LinearEnd, int]],
        xa: Floats | None,
        q8: bool,
    ) -> None: ...
    @staticmethod
    def experts_linear(
        pool: ThreadPool,
        weight: Weight,
        x: Input,
        ids: Ids,
        y: Floats,
        end: LinearEnd,
        xa: Floats | None,
        q8: bool,
    ) -> None: ...
    @staticmethod
    def attention(
        pool: ThreadPool,
        cache: LayerCache,
        q: Floats,
        k: Floats,
        v: Floats,
        y: Floats,
        past: int,
        heads: int,
        scale: float,
        window: int,
    ) -> None: ...
    @staticmethod
    def rms_norm(pool: ThreadPool, x: Floats, w: Floats, y: Floats, eps: float) -> None: ...
    @staticmethod
    def layer_norm(
        pool: ThreadPool, x: Floats, w: Floats, b: Floats | None, y: Floats, eps: float
    ) -> None: ...
    @staticmethod
    def rope(
        pool: ThreadPool,
        x: Floats,
        y: Floats,
        cosines: Floats,
        sines: Floats,
        heads: int,
        adjacent: bool,
    ) -> None: ...
    @staticmethod
    def round_nvfp4(pool: ThreadPool, x: Floats, y: Floats, scales: Floats) -> None: ...
    @staticmethod
    def silu(pool: ThreadPool, x: Floats, y: Floats) -> None: ...
    @staticmethod
    def sigmoid(pool: ThreadPool, x: Floats, y: Floats) -> None: ...
    @staticmethod
    def gelu_tanh(pool: ThreadPool, x: Floats, y: Floats) -> None: ...
    @staticmethod
    def softplus(pool: ThreadPool, x: Floats, y: Floats) -> None: ...
    @staticmethod
    def soft_cap(pool: ThreadPool, x: Floats, y: Floats, cap: float) -> None: ...
    @staticmethod
    def clamp(pool: ThreadPool, x: Floats, y: Floats, low: float, high: float) -> None: ...
    @staticmethod
    def gelu_erf(pool: ThreadPool, x: Floats, y: Floats) -> None: ...
    @staticmethod
    def silu_mul(pool: ThreadPool, gate: Floats, up: Floats, y: Floats) -> None: ...
    @staticmethod
    def add(pool: ThreadPool, a: Floats, b: Floats, y: Floats) -> None: ...
    @staticmethod
    def mul(pool: ThreadPool, a: Floats, b: Floats, y: Floats) -> None: ...
