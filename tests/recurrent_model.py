"""Models of one recurrent layer between embedding and output."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from loragraft.arrays import Floats
from loragraft.graph.build import GraphBuilder
from loragraft.graph.ops import Graph, Op, TensorFact

VOCAB, WIDTH, KEY, VALUE, HEADS, KEY_HEADS, TAPS = 30, 24, 7, 20, 4, 2, 4
Q, V = KEY_HEADS * KEY, HEADS * VALUE
KINDS = ("delta", "delta/tiled", "space")


def weights(value: int = VALUE) -> dict[str, Floats]:
    rng, channels = np.random.default_rng(3), 2 * Q + HEADS * value
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd": (VOCAB, WIDTH),
        "blk.0.qkv": (channels, WIDTH),
        "blk.0.gates": (2 * HEADS, WIDTH),
        "blk.0.conv": (channels, TAPS),
        "output": (VOCAB, HEADS * value),
    }
    made = {
        f"{name}.weight": (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)
        for name, shape in shapes.items()
    }
    made["blk.0.conv.bias"] = rng.standard_normal(channels).astype(np.float32) / 4
    made["blk.0.dt.bias"] = rng.standard_normal(HEADS).astype(np.float32)
    made["blk.0.a"] = -rng.uniform(0.02, 1.5, HEADS).astype(np.float32)
    made["blk.0.d"] = rng.standard_normal(HEADS).astype(np.float32)
    return made


def model(kind: str, value: int = VALUE) -> tuple[Graph, dict[str, Floats]]:
    """One recurrent layer between embedding and output. `value`: the width of a head's value."""
    tensors = weights(value)
    if kind != "space":
        del tensors["blk.0.d"]
    g = GraphBuilder("llama", {name: TensorFact(a.shape, "F32") for name, a in tensors.items()})
    x = g.embed(g.tokens())
    qkv, gates = g.linear(x, "blk.0.qkv"), g.linear(x, "blk.0.gates")
    conv = g.add(Op.SHORT_CONV, (qkv,), ("blk.0.conv.weight", "blk.0.conv.bias"), "blk.0.conv", layer=0)
    q, k = (g.split(conv, i * Q, (i + 1) * Q, "part") for i in range(2))
    q, k = (g.scale(g.plain_rms_norm(part, KEY, 1e-6, "norm"), KEY**-0.5, "unit") for part in (q, k))
    v = g.split(conv, 2 * Q, 2 * Q + HEADS * value, "part")
    # every other number: in groups of two
    dt = g.split(gates, 0, 1, "dt", group=2)
    beta = g.add(Op.SIGMOID, (g.split(gates, 1, 2, "beta", group=2),), label="beta")
    dt = g.add(Op.TIME_STEP, (dt,), ("blk.0.dt.bias",), "dt", low=0.1, high=2.5)
    sizes = {"heads": HEADS, "key_heads": KEY_HEADS, "key_dim": KEY, "value_dim": value}
    if kind == "space":
        dt = g.add(Op.ADD, (dt, beta), label="sum")
        y = g.add(Op.STATE_SPACE, (v, k, q, dt), ("blk.0.a", "blk.0.d"), "scan", layer=0, **sizes)
    else:
        tiled = kind == "delta/tiled"
        y = g.add(Op.GATED_DELTA, (q, k, v, dt, beta), ("blk.0.a",), "scan", layer=0, tiled=tiled, **sizes)
    logits = g.linear(g.add(Op.LAST, (y,), label="last"), "output")
    return g.finish(logits), tensors


def ids_of(count: int, seed: int = 0) -> npt.NDArray[np.int32]:
    return np.random.default_rng(seed).integers(0, VOCAB, count).astype(np.int32)
