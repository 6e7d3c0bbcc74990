"""Dispatches of recurrent layers, whose states lie in a buffer for each."""

from __future__ import annotations

from collections.abc import Iterator

from loragraft.backends.gpu.tables import NONE
from loragraft.backends.webgpu.dispatches import Dispatch, Dispatches
from loragraft.backends.webgpu.shaders import shader
from loragraft.graph.ops import Node, Op


def short_conv(b: Dispatches, node: Node, y: int) -> Iterator[Dispatch]:
    channels, taps = b.shapes[y][-1], b.shape_of(node.weights[0])[-1]
    state = b.state(y)
    values = {
        "x": b.place(node.inputs[0]),
        "y": b.place(y),
        "channels": channels,
        "taps": taps,
        "weight": b.offset(node.weights[0]),
        "bias": b.offset(node.weights[1]) if len(node.weights) > 1 else NONE,
    }
    yield b.dispatch(shader("convolve"), b.threads(y, channels), values, state=state)
    if taps > 1:
        yield b.dispatch(shader("keep"), lambda p: (-(-channels // 64), p.runs, 1), values, state=state)


def scan(b: Dispatches, node: Node, y: int) -> Iterator[Dispatch]:
    at = node.attrs
    if node.op is Op.GATED_DELTA:
        q, k, v, dt, beta = (b.place(value) for value in node.inputs)
        skip = NONE
    else:
        v, k, q, dt = (b.place(value) for value in node.inputs)
        beta, skip = NONE, b.offset(node.weights[1])
    yield b.dispatch(
        shader("scan"),
        lambda p: (-(-at["value_dim"] // 64), at["heads"], p.runs),
        {
            "q": q,
            "k": k,
            "v": v,
            "dt": dt,
            "beta": beta,
            "y": b.place(y),
            "decay": b.offset(node.weights[0]),
            "skip": skip,
            "heads": at["heads"],
            "key_heads": at["key_heads"],
            "key_dim": at["key_dim"],
            "value_dim": at["value_dim"],
            "tiled": int(bool(at.get("tiled"))),
        },
        state=b.state(y),
    )
