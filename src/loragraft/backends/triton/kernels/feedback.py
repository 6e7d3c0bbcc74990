"""Rounding with error feedback: the loops of `quants.feedback`, which says what they do. A program takes ROWS rows
through all sub-blocks."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def loop(
    w,  # float32 [rows, cols]
    error,  # float32 [rows, cols]: w less what it was rounded to
    levels,  # int8 [rows, cols]
    scales,  # int32 [rows, subs]
    offsets,  # int32 [rows, subs]; AFFINE
    units,  # float32 [rows, subs]; UNITS
    offset_units,  # OFFSET_UNITS
    level_table,  # float32 [LEVELS], ascending
    scale_table,
    offset_table,
    panels,  # FORWARD: of the factor, of (b + 1) SUB rows each; else H: of cols rows each
    pivots,  # float32 [cols]
    block_factor,  # float32 [subs, SUB, SUB]; not FORWARD
    block_inverse,
    rows,
    cols,
    lowest_level,
    highest_level,
    scale_low,
    scale_high,
    offset_low,
    offset_high,
    step,
    FORWARD: tl.constexpr,
    AFFINE: tl.constexpr,
    HALF: tl.constexpr,  # scales are half floats, not numbers in a table
    HALF_OFFSETS: tl.constexpr,
    UNITS: tl.constexpr,
    OFFSET_UNITS: tl.constexpr,
    UNIFORM: tl.constexpr,
    LEVELS: tl.constexpr,
    SUB: tl.constexpr,
    ROWS: tl.constexpr,
    DEEP: tl.constexpr,  # errors that are multiplied at a time
):
    """FORWARD: the pass with feedback; else a sweep."""
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c, deep = tl.arange(0, SUB), tl.arange(0, DEEP)
    real = r < rows
    line = r.to(tl.int64) * cols
    subs = cols // SUB
    panel = panels
    for b in range(subs):
        at = line[:, None] + b * SUB + c[None, :]
        number = r.to(tl.int64) * subs + b
        own = tl.load(w + at, mask=real[:, None], other=0.0)
        above = b * SUB if FORWARD else cols
        # error x panel, over all columns that are rounded already
        sums = tl.zeros((ROWS, SUB), tl.float32)
        for first in range(0, above, DEEP):
            k = first + deep
            known = k < above
            left = tl.load(error + line[:, None] + k[None, :], mask=real[:, None] & known[None, :], other=0.0)
            right = tl.load(panel + k[:, None] * SUB + c[None, :], mask=known[:, None], other=0.0)
            sums += tl.dot(left, right, input_precision="ieee")
        scale0 = tl.load(scales + number, mask=real, other=0)
        offset0 = tl.zeros_like(scale0)
        if AFFINE:
            offset0 = tl.load(offsets + number, mask=real, other=0)
        unit = tl.full((ROWS,), 1.0, tl.float32)
        offset_unit = tl.full((ROWS,), 1.0, tl.float32)
        if UNITS:
            unit = tl.load(units + number, mask=real, other=0.0)
        if OFFSET_UNITS:
            offset_unit = tl.load(offset_units + number, mask=real, other=0.0)
        if FORWARD:
            target = own + sums
            reference = own
            factor = panel + b * SUB * SUB
            level = tl.zeros((ROWS, SUB), tl.float32)
            value = tl.zeros((ROWS, SUB), tl.float32)
            loss = tl.full((ROWS,), float("inf"), tl.float32)
        else:
            value = own - tl.load(error + at, mask=real[:, None], other=0.0)
            inverse = tl.load(block_inverse + b * SUB * SUB + c[:, None] * SUB + c[None, :])
            target = value + tl.dot(sums, inverse, input_precision="ieee")
            reference = target
            factor = block_factor + b * SUB * SUB
            level = tl.load(levels + at, mask=real[:, None], other=0).to(tl.float32)
            loss = _loss(target, value, factor, pivots + b * SUB, c, ROWS, SUB)
        scale, offset = scale0, offset0
        # The scale that stands, its neighbours, and then those of the offset.
        for attempt in range(5 if AFFINE else 3):
            move = tl.where(attempt % 2 == 1, -step, step)
            of_scale = (attempt == 1) | (attempt == 2)
            moved = tl.minimum(tl.maximum(scale0 + move, scale_low), scale_high)
            tried = tl.where(of_scale, moved, tl.where(attempt > 2, scale, scale0))
            shifted = offset0
            if AFFINE:
                moved = tl.minimum(tl.maximum(offset0 + move, offset_low), offset_high)
                shifted = tl.where(attempt > 2, moved, offset0)
            s = _number(tried, scale_table, unit, real, HALF)
            m = tl.zeros_like(s)
            if AFFINE:
                m = _number(shifted, offset_table, offset_unit, real, HALF_OFFSETS)
                if not HALF_OFFSETS:
                    m = -m
            inverse_scale = tl.where(s != 0, 1.0 / tl.where(s != 0, s, 1.0), 0.0)
            going, new_level, new_value = target, tl.zeros_like(target), tl.zeros_like(target)
            new_loss = tl.zeros_like(s)
            for j in range(SUB):
                here = (c == j)[None, :]
                wished = tl.sum(tl.where(here, going, 0.0), axis=1)
                meant = tl.sum(tl.where(here, reference, 0.0), axis=1)
                found = (wished - m) * inverse_scale
                found = tl.minimum(tl.maximum(found, lowest_level), highest_level)
                found = _nearest(found, level_table, LEVELS, UNIFORM)
                becomes = s * found + m
                rest = wished - becomes
                new_loss += tl.load(pivots + b * SUB + j) * rest * rest
                weights = tl.load(factor + j * SUB + c, mask=c > j, other=0.0)
                going += (meant - becomes)[:, None] * weights[None, :]
                new_level = tl.where(here, found[:, None], new_level)
                new_value = tl.where(here, becomes[:, None], new_value)
            better = new_loss < loss
            if step == 0:
                better = better & (attempt == 0)
            level = tl.where(better[:, None], new_level, level)
            value = tl.where(better[:, None], new_value, value)
            scale = tl.where(better, tried, scale)
            offset = tl.where(better, shifted, offset)
            loss = tl.where(better, new_loss, loss)
        tl.store(error + at, own - value, mask=real[:, None])
        tl.store(levels + at, level.to(tl.int8), mask=real[:, None])
        tl.store(scales + number, scale, mask=real)
        if AFFINE:
            tl.store(offsets + number, offset, mask=real)
        panel += ((b + 1) * SUB if FORWARD else cols) * SUB
        tl.debug_barrier()  # the next sub-block reads these errors, whichever threads wrote them


@triton.jit
def _loss(target, value, factor, pivots, c, ROWS: tl.constexpr, SUB: tl.constexpr):
    """What the values cost that stand."""
    loss = tl.zeros((ROWS,), tl.float32)
    going = target
    for j in range(SUB):
        here = (c == j)[None, :]
        wished = tl.sum(tl.where(here, going, 0.0), axis=1)
        meant = tl.sum(tl.where(here, target, 0.0), axis=1)
        becomes = tl.sum(tl.where(here, value, 0.0), axis=1)
        rest = wished - becomes
        loss += tl.load(pivots + j) * rest * rest
        weights = tl.load(factor + j * SUB + c, mask=c > j, other=0.0)
        going += (meant - becomes)[:, None] * weights[None, :]
    return loss


@triton.jit
def _number(number, table, unit, real, HALF: tl.constexpr):
    """What the number of a scale or offset means (`quants.grids.Numbers`)."""
    if HALF:
        bits = tl.where(number < 0, 0x8000 | -number, number)
        return bits.to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
    return tl.load(table + number, mask=real, other=0.0) * unit


@triton.jit
def _nearest(x, table, LEVELS: tl.constexpr, UNIFORM: tl.constexpr):
    """The nearest level; of two as near the even one where levels are whole numbers, else the upper one."""
    if UNIFORM:
        return (x + 12582912.0) - 12582912.0
    index = tl.zeros_like(x).to(tl.int32)
    for i in range(LEVELS - 1):
        middle = (tl.load(table + i) + tl.load(table + i + 1)) / 2
        index += (x >= middle).to(tl.int32)
    return tl.load(table + index)
