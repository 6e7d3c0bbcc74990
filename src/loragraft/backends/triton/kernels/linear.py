"""A linear layer: the product dequantizes its tile of the weight, and the epilogue follows in its legal order: weight
scale, LoRA, DoRA, bias, architectural scale.

Rows have adapters of their own: a tile goes through the sets that it holds, one after the other, and each changes its
own rows. The part of A is another kernel, which leaves partial sums over ranges of columns.
"""

from __future__ import annotations

import triton
import triton.language as tl

from loragraft.backends.triton.kernels.blocks import columns, weights

SPLIT = 512
"""Columns of a partial sum of A x."""


@triton.jit
def linear(
    x,  # float32 [rows or rows of experts, inputs]
    weight,  # uint8 [experts * outputs, row_bytes]
    y,  # float32 [rows, outputs]
    scale,  # float32 [experts]
    bias,  # float32 [experts, outputs]
    low,  # float32 [splits, rows, low_stride]: A x
    terms,  # int32: see backends.gpu.tables
    floats,  # float32: the adapters' memory
    sets,  # int32: of each token the number of its set, -1 for none
    order,  # int32: rows by expert, -1 for none; tiles of BM
    experts,  # int32: of each tile
    table,
    rows,
    outputs,
    inputs,
    row_bytes,
    low_stride,
    number,  # of the linear
    set_count,
    used,  # experts of a token, or 1
    arch,
    KIND: tl.constexpr,
    PLANES: tl.constexpr,
    ROUTED: tl.constexpr,
    EACH: tl.constexpr,  # whether every expert has an x of its own
    SCALED: tl.constexpr,
    BIASED: tl.constexpr,
    ADAPTED: tl.constexpr,
    SPLITS: tl.constexpr,
    NUMBERS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BR: tl.constexpr,
):
    m, source, expert, live = _rows(tl.program_id(1), order, experts, rows, used, ROUTED, EACH, BM)
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    inside = n < outputs
    row = weight + (expert * outputs + n).to(tl.int64) * row_bytes
    sums = tl.zeros((BM, BN), tl.float32)
    for start in range(0, inputs // PLANES, BK):
        j = start + tl.arange(0, BK)
        known = j < inputs // PLANES
        for plane in tl.static_range(PLANES):
            at = source.to(tl.int64)[:, None] * inputs + columns(KIND, plane, j)[None, :]
            given = tl.load(x + at, mask=live[:, None] & known[None, :], other=0.0)
            tile = weights(KIND, plane, row[:, None], j[None, :], inside[:, None] & known[None, :], table)
            sums = _product(given, tile, sums, NUMBERS)
    if SCALED:
        sums = sums * tl.load(scale + expert)
    if ADAPTED:
        chosen = tl.load(sets + m // used, mask=live, other=-1)
        for number_of_set in range(set_count):
            mine = chosen == number_of_set
            if tl.max(mine.to(tl.int32), axis=0) > 0:
                entry = terms + (number * set_count + number_of_set) * 3
                first, count, lengths = tl.load(entry), tl.load(entry + 1), tl.load(entry + 2)
                for index in range(count):
                    term = terms + first + index * 5
                    b, rank, before = tl.load(term + 1), tl.load(term + 2), tl.load(term + 4)
                    gamma = tl.load(term + 3).to(tl.float32, bitcast=True)
                    part = tl.zeros((BM, BN), tl.float32)
                    for begin in range(0, rank, BR):
                        r = begin + tl.arange(0, BR)
                        of_mine = mine[:, None] & (r < rank)[None, :]
                        given = tl.zeros((BM, BR), tl.float32)
                        for split in range(SPLITS):
                            at = (split * rows + m).to(tl.int64)[:, None] * low_stride + before + r[None, :]
                            given += tl.load(low + at, mask=of_mine, other=0.0)
                        at = b + (expert * outputs + n).to(tl.int64)[:, None] * rank + r[None, :]
                        tile = tl.load(floats + at, mask=inside[:, None] & (r < rank)[None, :], other=0.0)
                        part = _product(given, tile, part, NUMBERS)
                    sums = tl.where(mine[:, None], sums + gamma * part, sums)
                if lengths != -1:
                    length = tl.load(floats + lengths + expert * outputs + n, mask=inside, other=0.0)
                    sums = tl.where(mine[:, None], sums * length[None, :], sums)
    if BIASED:
        sums = sums + tl.load(bias + expert * outputs + n, mask=inside, other=0.0)[None, :]
    sums = sums * arch
    at = m.to(tl.int64)[:, None] * outputs + n[None, :]
    tl.store(y + at, sums, mask=live[:, None] & inside[None, :])


@triton.jit
def lora(
    x,
    low,
    terms,
    floats,
    sets,
    order,
    experts,
    rows,
    inputs,
    low_stride,
    number,
    set_count,
    used,
    ROUTED: tl.constexpr,
    EACH: tl.constexpr,
    NUMBERS: tl.constexpr,
    SPLIT: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    BR: tl.constexpr,
):
    """Of the rows of a tile that are under one set, A x over one range of SPLIT columns."""
    number_of_set, split = tl.program_id(0), tl.program_id(2)
    m, source, expert, live = _rows(tl.program_id(1), order, experts, rows, used, ROUTED, EACH, BM)
    mine = tl.load(sets + m // used, mask=live, other=-1) == number_of_set
    entry = terms + (number * set_count + number_of_set) * 3
    first = tl.load(entry)
    count = tl.where(tl.max(mine.to(tl.int32), axis=0) > 0, tl.load(entry + 1), 0)
    for index in range(count):
        term = terms + first + index * 5
        a, rank, before = tl.load(term), tl.load(term + 2), tl.load(term + 4)
        for begin in range(0, rank, BR):
            r = begin + tl.arange(0, BR)
            sums = tl.zeros((BM, BR), tl.float32)
            for start in range(split * SPLIT, min(inputs, split * SPLIT + SPLIT), BK):
                c = start + tl.arange(0, BK)
                known = c < min(inputs, split * SPLIT + SPLIT)
                at = source.to(tl.int64)[:, None] * inputs + c[None, :]
                given = tl.load(x + at, mask=mine[:, None] & known[None, :], other=0.0)
                at = a + (expert * rank + r).to(tl.int64)[:, None] * inputs + c[None, :]
                tile = tl.load(floats + at, mask=(r < rank)[:, None] & known[None, :], other=0.0)
                sums = _product(given, tile, sums, NUMBERS)
            at = (split * rows + m).to(tl.int64)[:, None] * low_stride + before + r[None, :]
            tl.store(low + at, sums, mask=mine[:, None] & (r < rank)[None, :])


@triton.jit
def embed(
    ids,  # int32 [rows]
    weight,
    y,
    terms,
    floats,
    sets,
    table,
    inputs,
    row_bytes,
    number,
    set_count,
    scale,
    arch,
    KIND: tl.constexpr,
    PLANES: tl.constexpr,
    ADAPTED: tl.constexpr,
    BK: tl.constexpr,
    BR: tl.constexpr,
):
    """A row of the weight for each id; with adapters scale * W[id] + gamma * B[id] A."""
    m = tl.program_id(0)
    j = tl.program_id(1) * BK + tl.arange(0, BK)
    known = j < inputs // PLANES
    token = tl.load(ids + m)
    row = weight + token.to(tl.int64) * row_bytes
    for plane in tl.static_range(PLANES):
        c = columns(KIND, plane, j)
        values = weights(KIND, plane, row, j, known, table) * scale
        if ADAPTED:
            chosen = tl.load(sets + m)
            entry = terms + (number * set_count + tl.maximum(chosen, 0)) * 3
            first, count = tl.load(entry), tl.where(chosen >= 0, tl.load(entry + 1), 0)
            for index in range(count):
                term = terms + first + index * 5
                a, b, rank = tl.load(term), tl.load(term + 1), tl.load(term + 2)
                gamma = tl.load(term + 3).to(tl.float32, bitcast=True)
                part = tl.zeros((BK,), tl.float32)
                for begin in range(0, rank, BR):
                    r = begin + tl.arange(0, BR)
                    own = tl.load(floats + b + token.to(tl.int64) * rank + r, mask=r < rank, other=0.0)
                    at = a + r.to(tl.int64)[:, None] * inputs + c[None, :]
                    tile = tl.load(floats + at, mask=(r < rank)[:, None] & known[None, :], other=0.0)
                    part += tl.sum(own[:, None] * tile, axis=0)
                values = values + gamma * part
        tl.store(y + m.to(tl.int64) * inputs + c, values * arch, mask=known)


@triton.jit
def _rows(tile, order, experts, rows, used, ROUTED: tl.constexpr, EACH: tl.constexpr, BM: tl.constexpr):
    """Of a tile: its rows, the rows of x that they read, its expert, and which rows there are."""
    at = tile * BM + tl.arange(0, BM)
    if ROUTED:
        m = tl.load(order + at)
        live = m >= 0
        m = tl.maximum(m, 0)
        expert = tl.load(experts + tile)
        source = m if EACH else m // used
    else:
        m, live, source = at, at < rows, at
        expert = tile * 0
    return m, source, expert, live


@triton.jit
def _product(x, w, sums, NUMBERS: tl.constexpr):
    """sums + x w^T: of float32 numbers ("f32"), of bfloat16 ones ("bf16"), or of these by the product for float32
    ("rounded"): the interpreter has no other."""
    if NUMBERS == "bf16":
        sums = tl.dot(x.to(tl.bfloat16), tl.trans(w.to(tl.bfloat16)), sums)
    elif NUMBERS == "rounded":
        sums = tl.dot(_rounded(x), tl.trans(_rounded(w)), sums, input_precision="ieee")
    else:
        tl.static_assert(NUMBERS == "f32")
        sums = tl.dot(x, tl.trans(w), sums, input_precision="ieee")
    return sums


@triton.jit
def _rounded(x):
    """To the nearest bfloat16 number, ties to even: the interpreter's own conversion cuts off."""
    bits = x.to(tl.int32, bitcast=True)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).to(tl.float32, bitcast=True)
