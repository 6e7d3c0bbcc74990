"""Kernels with their grids: what a pass calls, in tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from loragraft.backends.gpu.pages import PAGE
from loragraft.backends.triton.device import Device
from loragraft.backends.triton.weights import Matrix


@dataclass(frozen=True, slots=True)
class Tiles:
    """Rows, outputs, inputs and ranks of a tile. They are the same for any number of rows: the order of a sum may
    depend on them."""

    rows: int
    outputs: int
    inputs: int
    ranks: int = 16


_THREE_STAGES = 180_000
"""Bytes of shared memory for three tiles of the largest type at a time. Two take less than 99 kB, which is what cards
that are not for data centres have."""


def stages_of(device: Device) -> int:
    """Tiles of a weight that are on their way at a time."""
    return 3 if (device.shared_bytes or 0) >= _THREE_STAGES else 2


def tiles_of(device: Device, *, exact: bool) -> Tiles:
    if device.interpreted:
        return Tiles(16, 128, 128)
    return Tiles(16, 64, 64) if exact else Tiles(64, 64, 64)


@dataclass(slots=True)
class Adapters:
    """Of a pass. `terms`: the table of backends.gpu.tables; `ranks` of each linear; `sets`: the number of the set of
    each row, and of each wanted row."""

    terms: Any
    floats: Any
    ranks: tuple[int, ...]
    count: int
    sets: Any
    wanted_sets: Any
    linears: frozenset[int]
    """The numbers of those that some set changes."""


@dataclass(frozen=True, slots=True)
class Routing:
    """Rows of experts in tiles of one expert each. `order` int32 [tiles * rows of a tile], -1: none; `experts` int32
    [tiles]."""

    order: Any
    experts: Any
    used: int


class Launcher:
    """Launches kernels on one device."""

    def __init__(self, device: Device, *, exact: bool) -> None:
        from loragraft.backends.triton.kernels import attention, blocks, linear, recurrent, rows

        self.device, self._tiles = device, tiles_of(device, exact=exact)
        self._stages = stages_of(device)
        self._numbers = "f32" if exact else "rounded" if device.interpreted else "bf16"
        self._attention, self._linear, self._rows, self._recurrent = attention, linear, rows, recurrent
        self._planes = blocks.PLANES
        self._table = device.tensor(blocks.TABLE)
        self._none = device.empty(1, kind="int32")

    def routing(self, ids: Any, experts: int) -> Routing:
        """ids int32 [tokens, used] -> their rows by expert. Nothing waits for the device."""
        torch, size = self.device.torch, self._tiles.rows
        flat = ids.reshape(-1).long()
        most = min(len(flat), experts) + len(flat) // size
        counts = (flat[:, None] == torch.arange(experts, device=flat.device)).sum(dim=0)
        tiles = (counts + size - 1) // size
        order = torch.argsort(flat, stable=True)
        ends, tile_ends = torch.cumsum(counts, 0), torch.cumsum(tiles, 0)
        of = flat[order]
        within = torch.arange(len(flat), device=flat.device) - (ends - counts)[of]
        padded = torch.full((most * size,), -1, dtype=torch.int32, device=flat.device)
        padded[(tile_ends - tiles)[of] * size + within] = order.to(torch.int32)
        own = torch.searchsorted(tile_ends, torch.arange(most, device=flat.device), right=True)
        return Routing(padded, own.clamp(max=experts - 1).to(torch.int32), ids.shape[-1])

    def linear(
        self,
        x: Any,
        matrix: Matrix,
        outputs: int,
        number: int,
        adapters: Adapters,
        *,
        scale: Any,
        bias: Any,
        arch: float,
        wanted: bool,
        routing: Routing | None = None,
    ) -> Any:
        """x float32 [rows, inputs], or of routed experts [tokens, used, inputs] -> [rows, outputs] or [tokens, used,
        outputs]."""
        tile, inputs = self._tiles, matrix.columns
        each = routing is not None and x.dim() == 3
        used = 1 if routing is None else routing.used
        rows = len(x) * used
        order, experts = (self._none,) * 2 if routing is None else (routing.order, routing.experts)
        tiles = -(-rows // tile.rows) if routing is None else len(routing.experts)
        sets = adapters.wanted_sets if wanted else adapters.sets
        y = self.device.empty(rows, outputs)
        rank = adapters.ranks[number]
        splits = -(-inputs // self._linear.SPLIT) if rank else 0
        low = self.device.empty(max(1, splits), rows, max(1, rank))
        x = x.contiguous()
        if rank:
            self._linear.lora[(adapters.count, tiles, splits)](
                x,
                low,
                adapters.terms,
                adapters.floats,
                sets,
                order,
                experts,
                rows,
                inputs,
                rank,
                number,
                adapters.count,
                used,
                ROUTED=routing is not None,
                EACH=each,
                NUMBERS=self._numbers,
                SPLIT=self._linear.SPLIT,
                BM=tile.rows,
                BK=tile.inputs,
                BR=tile.ranks,
            )
        self._linear.linear[(-(-outputs // tile.outputs), tiles)](
            x,
            matrix.rows,
            y,
            self._none if scale is None else scale,
            self._none if bias is None else bias,
            low,
            adapters.terms,
            adapters.floats,
            sets,
            order,
            experts,
            self._table,
            rows,
            outputs,
            inputs,
            matrix.row_bytes,
            max(1, rank),
            number,
            adapters.count,
            used,
            arch,
            KIND=matrix.kind,
            PLANES=self._planes[matrix.kind],
            ROUTED=routing is not None,
            EACH=each,
            SCALED=scale is not None,
            BIASED=bias is not None,
            ADAPTED=number in adapters.linears,
            SPLITS=splits,
            NUMBERS=self._numbers,
            BM=tile.rows,
            BN=tile.outputs,
            BK=tile.inputs,
            BR=tile.ranks,
            num_stages=self._stages,
        )
        return y if routing is None else y.reshape(len(x), used, outputs)

    def embed(
        self, ids: Any, matrix: Matrix, number: int, adapters: Adapters, *, scale: float, arch: float
    ) -> Any:
        """ids int32 [rows] -> [rows, columns]"""
        tile, planes = self._tiles, self._planes[matrix.kind]
        y = self.device.empty(len(ids), matrix.columns)
        self._linear.embed[(len(ids), -(-matrix.columns // planes // tile.inputs))](
            ids,
            matrix.rows,
            y,
            adapters.terms,
            adapters.floats,
            adapters.sets,
            self._table,
            matrix.columns,
            matrix.row_bytes,
            number,
            adapters.count,
            scale,
            arch,
            KIND=matrix.kind,
            PLANES=planes,
            ADAPTED=number in adapters.linears,
            BK=tile.inputs,
            BR=tile.ranks,
        )
        return y

    def norm(self, x: Any, size: int, weight: Any, bias: Any, eps: float, *, centred: bool) -> Any:
        """Of every `size` elements of x."""
        x = x.contiguous()
        y = self.device.torch.empty_like(x)
        self._rows.norm[(x.numel() // size,)](
            x,
            self._none if weight is None else weight,
            self._none if bias is None else bias,
            y,
            size,
            1 if weight is None else weight.numel() // size,
            eps,
            CENTRED=centred,
            WEIGHTED=weight is not None,
            BIASED=bias is not None,
            BLOCK=_power(size),
        )
        return y

    def gaussian_top_k(self, x: Any, deviations: float) -> Any:
        """Of what the last axis has."""
        x, size = x.contiguous(), x.shape[-1]
        y = self.device.torch.empty_like(x)
        self._rows.gaussian_top_k[(x.numel() // size,)](x, y, size, deviations, BLOCK=_power(size))
        return y

    def match_rms(self, x: Any, model: Any, least: float) -> Any:
        """x [rows, ..., size] as large as `model` [rows, width]."""
        x, model, size, width = x.contiguous(), model.contiguous(), x.shape[-1], model.shape[-1]
        y = self.device.torch.empty_like(x)
        groups = x.numel() // (size * max(len(x), 1))
        self._rows.match_rms[(x.numel() // size,)](
            x, model, y, size, groups, width, least, BLOCK=_power(size), WIDE=_power(width)
        )
        return y

    def softmax(self, x: Any) -> Any:
        """Of every row [rows, size]."""
        x = x.contiguous()
        y = self.device.torch.empty_like(x)
        self._rows.softmax[(len(x),)](x, y, x.shape[-1], BLOCK=_power(x.shape[-1]))
        return y

    def attention(
        self,
        q: Any,
        keys: Any,
        values: Any,
        sinks: Any,
        slopes: Any,
        tables: Any,
        lists: Any,
        positions: Any,
        at: Any,
    ) -> Any:
        """`at`: the attributes of the node."""
        value_dim = at.get("value_dim") or at["head_dim"]
        q = q.contiguous()
        y = self.device.empty(len(q), at["heads"] * value_dim)
        group = at["heads"] // at["kv_heads"]
        self._attention.attention[(len(q), at["kv_heads"])](
            q,
            keys,
            values,
            y,
            self._none if sinks is None else sinks,
            self._none if slopes is None else slopes,
            tables,
            lists,
            positions,
            at["kv_heads"],
            group,
            at["head_dim"],
            value_dim,
            at["window"] or 0,
            at.get("chunk") or 0,
            at["scale"],
            at.get("softcap") or 1.0,
            SINKS=sinks is not None,
            CAPPED=at.get("softcap") is not None,
            SLOPED=slopes is not None,
            PAGE=PAGE,
            BLOCK=64,
            GROUP=max(16, _power(group)),
            HEAD=max(16, _power(at["head_dim"])),
            VALUE=max(16, _power(value_dim)),
        )
        return y

    def convolve(self, x: Any, weight: Any, bias: Any, states: Any, runs: Any, run_of: Any) -> Any:
        """Each channel [rows, channels] with its taps, and then the last rows into `states`."""
        x = x.contiguous()
        channels, kept = x.shape[-1], weight.shape[-1] - 1
        y = self.device.torch.empty_like(x)
        blocks = -(-channels // _CHANNELS)
        self._recurrent.convolve[(len(x), blocks)](
            x,
            weight,
            self._none if bias is None else bias,
            y,
            states,
            runs,
            run_of,
            channels,
            KEPT=kept,
            BIASED=bias is not None,
            BLOCK=_CHANNELS,
        )
        last = self.device.empty(len(runs), kept, channels)
        self._recurrent.keep[(len(runs), blocks)](x, states, last, runs, channels, KEPT=kept, BLOCK=_CHANNELS)
        states[runs[:, 3].long()] = last
        return y

    def scan(
        self,
        q: Any,
        k: Any,
        v: Any,
        dt: Any,
        beta: Any,
        decay: Any,
        skip: Any,
        states: Any,
        runs: Any,
        at: Any,
    ) -> Any:
        """`at`: the attributes of the node; with `beta` the gated delta rule, with `skip` Mamba-2's."""
        q, k, v, dt = (part.contiguous() for part in (q, k, v, dt))
        y = self.device.torch.empty_like(v)
        columns = _INTERPRETED_COLUMNS if self.device.interpreted else _COLUMNS
        self._recurrent.scan[(len(runs), at["heads"], -(-at["value_dim"] // columns))](
            q,
            k,
            v,
            dt,
            self._none if beta is None else beta.contiguous(),
            y,
            states,
            decay,
            self._none if skip is None else skip,
            runs,
            at["heads"],
            at["key_heads"],
            at["key_dim"],
            at["value_dim"],
            TILED=bool(at.get("tiled")),
            DELTA=beta is not None,
            KEY=max(16, _power(at["key_dim"])),
            VALUE=columns,
        )
        return y


_CHANNELS = 128
_COLUMNS, _INTERPRETED_COLUMNS = 16, 128
"""Of a state that one program holds."""


def _power(size: int) -> int:
    """The smallest power of two that is not below."""
    return 1 << (size - 1).bit_length()
