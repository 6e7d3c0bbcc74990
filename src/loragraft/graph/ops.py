"""The nodes of a model's graph, as plain data.

A graph is a list of nodes in order of execution; a node's value is named by its index. Values are float32 arrays
whose first axis is the token (T tokens in the batch); `TOKENS` and `TOP_K` give int32. What each op means is defined by
`loragraft.backends.reference_ops`; which sequences of ops are legal, by `loragraft.graph.spec`. Every node of a linear
layer's chain (the product and its epilogue) carries the linear's GGUF name as its label.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Op(StrEnum):
    """`(values; weights; attributes) -> value`. d: embedding width, E: experts, k: experts used."""

    TOKENS = "tokens"
    """() -> ids int32 [T]"""
    HIDDEN = "hidden"
    """(; width) -> [T, width], given by the caller: where a slice of a graph begins (`graph.slices`)"""
    POSITIONS = "positions"
    """(; most) -> int32 [T]: each token's position in its sequence, below `most`; a later one is a GraphError"""
    EMBED = "embed"
    """(ids; W [vocab, d]) -> [T, d]; rows of W"""
    EMBED_SCALE = "embed_scale"
    """(x; s [1]) -> x * s; the per-tensor scale of a quantized embedding"""
    EMBED_LORA = "embed_lora"
    """(x, ids; A [r, d], B [vocab, r]; scale) -> x + scale * B[ids] A"""

    RMS_NORM = "rms_norm"
    """(x; w [n] or [d / n, n] or none; eps, group or none) -> x / rms(x) * w, over the n elements of each group (n = d,
    or a head), which has a row of w of its own if there are several; without a weight, n is `group`"""
    LAYER_NORM = "layer_norm"
    """(x; w [d] or none, b [d] or none; eps) -> (x - mean) / std * w + b"""

    MATCH_RMS = "match_rms"
    """(x [..., n], y [m]; least) -> x * rms(y) / sqrt(max(mean(x^2), least)): each n elements of x as large as y"""
    GAUSSIAN_TOP_K = "gaussian_top_k"
    """(x; deviations) -> max(x - mean - deviations * std, 0): what is far above the mean, as if x were Gaussian"""
    CHANNEL_SCALE = "channel_scale"
    """(x; w [n]) -> x * w, each channel by its own"""

    MATMUL = "matmul"
    """(x [T, in]; W [out, in] or [in] for out = 1, input scale [1] if the file has one) -> [T, out]; W as stored:
    without any per-tensor scale. The input scale is a calibrated scale of 4-bit activations; float and 8-bit
    activations do not need it."""
    WEIGHT_SCALE = "weight_scale"
    """(y; s [1]) -> y * s; the per-tensor scale of the MATMUL's weight: y is now fully dequantized"""
    LORA = "lora"
    """(y, x; A [r, in], B [out, r]; scale) -> y + scale * (x A^T) B^T"""
    DORA_SCALE = "dora_scale"
    """(y; g [out]) -> y * g; what takes each row of an adapted weight to its trained length (`adapters.dora`)"""
    BIAS = "bias"
    """(y; b [out]) -> y + b"""
    ARCH_SCALE = "arch_scale"
    """(y; s [1] or none; value) -> y * s or y * value; a scale that the architecture itself defines"""

    EXPERTS_MATMUL = "experts_matmul"
    """(x [T, in] or [T, k, in], ids [T, k]; W [E, out, in], input scale [E] if any) -> [T, k, out]"""
    EXPERTS_WEIGHT_SCALE = "experts_weight_scale"
    """(y [T, k, out], ids; s [E]) -> y * s[ids]"""
    EXPERTS_LORA = "experts_lora"
    """(y [T, k, out], x, ids; A [E, r, in], B [E, out, r]; scale) -> y + scale * per-expert (x A^T) B^T"""
    EXPERTS_DORA_SCALE = "experts_dora_scale"
    """(y [T, k, out], ids; g [E, out]) -> y * g[ids]"""
    EXPERTS_BIAS = "experts_bias"
    """(y [T, k, out], ids; b [E, out]) -> y + b[ids]"""
    ALL_EXPERTS = "all_experts"
    """(x; count) -> ids int32 [T, count]: 0 to count - 1 in every row. A stack with a matrix for each head is
    multiplied as experts that are all chosen."""
    TOP_K = "top_k"
    """(logits [T, E]; bias [E] or none; k, gating "softmax" | "sigmoid" or none, groups, groups_used, group_best or
    none) -> ids int32 [T, k]; largest first, ties to the lower index. With a gating the gates' values are compared,
    with a bias these plus the bias. Of `groups` groups of experts, only those in the best `groups_used` are chosen
    from; a group is as good as the sum of its best `group_best` experts."""
    ROUTE = "route"
    """(logits [T, E], ids [T, k]; gating "softmax" | "sigmoid" | "sparse_mixer", normalize, scale, margin or none) ->
    weights [T, k]: the gate's values of the experts chosen, made to sum to 1 if `normalize`, times `scale`. Of
    "sparse_mixer" each expert's value is of a softmax over those that were not chosen before it and whose logits l are
    near its own m: (m - l) / max(|l|, m) <= margin (Liu et al. 2024, arXiv 2409.12136)"""
    EXPERTS_SUM = "experts_sum"
    """(y [T, k, d], weights [T, k]) -> [T, d]"""

    POSITION_SCALE = "position_scale"
    """(x; length, offset, slope) -> x * (1 + slope ln(1 + floor((position + offset) / length))), by the rows'
    positions: attention that grows sharper in long texts (Nakanishi 2025, arXiv 2501.19399)"""
    ROPE = "rope"
    """(x [T, heads * head_dim]; factors [rotary / 2] or none, or long and short ones; heads, head_dim, rotary, pairs
    "adjacent" | "halves", frequencies: rotary / 2 floats, magnitude, most, context and original or none) -> same shape.
    In each head, pair i of the first `rotary` elements, (2i, 2i + 1) or (i, i + rotary / 2), turns by position *
    frequencies[i] / factors[i] and grows by `magnitude`; the batch gives the positions. Base and context extension
    (linear, YaRN) are in the frequencies. Of long and short factors, the long ones are for programs whose context
    (`context`, unless `Options` names one) is longer than `original`. A position from `most` on is a GraphError."""
    ATTENTION = "attention"
    """(q, k, v; sinks [heads] or none; layer, heads, kv_heads, head_dim, scale, window or none, value_dim or none,
    softcap, slopes, chunk or none) -> [T, heads * value_dim]; appends k and v of each row to what its sequence holds
    of `layer`, attends causally over that. `head_dim`: of q and k; `value_dim`: of v, where it is another. Scores s
    (scaled) become softcap * tanh(s / softcap). `slopes`: a number for each head, which its scores lose for every
    position that the key lies back (ALiBi, Press et al. 2021, arXiv 2108.12409). `chunk`: a token sees what lies in
    its own chunk of so many positions. A sink is one more score of its head, whose value is 0 (Xiao et al. 2023,
    arXiv 2309.17453, section 3.3)."""

    SHORT_CONV = "short_conv"
    """(x [T, c]; W [c, width], b [c] or none; layer) -> [T, c]: y[t] = b + sum over j of W[:, j] x[t - width + 1 + j],
    each channel by itself. What stands before a sequence is 0; a sequence keeps its last width - 1 rows."""
    TIME_STEP = "time_step"
    """(x [T, heads]; b [heads]; low, high) -> ln(1 + exp(x + b)), within low and high"""
    GATED_DELTA = "gated_delta"
    """(q, k [T, key_heads * key_dim], v [T, heads * value_dim], dt, beta [T, heads]; A [heads]; layer, heads,
    key_heads, key_dim, value_dim, tiled) -> [T, heads * value_dim]. Each head has a state S [key_dim, value_dim],
    zeros at first: S' = exp(A dt) S, S = S' + k (beta (v - S'^T k))^T, y = S^T q (Yang et al. 2024, arXiv 2412.06464).
    Head h has the query and key of head h % key_heads if `tiled`, else of head h // (heads / key_heads)."""
    STATE_SPACE = "state_space"
    """(x [T, heads * value_dim], B, C [T, key_heads * key_dim], dt [T, heads]; A [heads], D [heads]; layer, heads,
    key_heads, key_dim, value_dim) -> [T, heads * value_dim]. S = exp(A dt) S + B (dt x)^T, y = S^T C + D x (Dao and Gu
    2024, arXiv 2405.21060): states and heads as in GATED_DELTA, not tiled; `key_heads` are the groups of B and C."""

    SPLIT = "split"
    """(x; start, stop, group or none) -> x[..., start:stop], of each `group` elements if there is one; takes a fused
    projection apart"""
    CONCAT = "concat"
    """(a [..., m], b [..., n]) -> [..., m + n]; a first"""
    RESHAPE = "reshape"
    """(x; parts) -> [T, parts, n] with the same elements in order, or [T, n] for parts = 0: heads apart, or together"""
    ADD = "add"
    """(a, b) -> a + b"""
    MUL = "mul"
    """(a, b) -> a * b, broadcasting a last axis of 1"""
    SILU = "silu"
    """(x) -> x * sigmoid(x)"""
    SIGMOID = "sigmoid"
    """(x) -> 1 / (1 + exp(-x))"""
    GELU = "gelu"
    """(x; approximate "tanh" | "none") -> gelu(x)"""
    RELU = "relu"
    """(x) -> max(x, 0)"""
    TANH = "tanh"
    """(x) -> tanh(x)"""
    SOFTPLUS = "softplus"
    """(x) -> ln(1 + exp(x))"""
    XIELU = "xielu"
    """(x; alpha_p, alpha_n, beta, eps) -> alpha_p x^2 + beta x above 0, alpha_n (exp(min(x, eps)) - 1 - x) + beta x
    elsewhere (Huang and Schlag 2024, arXiv 2411.13010)"""
    SOFT_CAP = "soft_cap"
    """(x; cap) -> cap * tanh(x / cap)"""
    CLAMP = "clamp"
    """(x; low or none, high or none) -> min(max(x, low), high)"""
    SHIFT = "shift"
    """(x; value) -> x + value"""
    LAST = "last"
    """(x) -> the rows whose logits are wanted"""


RECURRENT = frozenset({Op.SHORT_CONV, Op.GATED_DELTA, Op.STATE_SPACE})
"""Those that keep a state of fixed size for each sequence, which says nothing of what it was before."""


@dataclass(frozen=True, slots=True)
class Node:
    """One operation: `inputs` are indices of earlier nodes, `weights` names of model or adapter tensors."""

    op: Op
    inputs: tuple[int, ...] = ()
    weights: tuple[str, ...] = ()
    attrs: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""
    """What the node is for, as the user would call it: the GGUF name of the linear, `blk.3.rope_q`, ..."""


@dataclass(frozen=True, slots=True)
class TensorFact:
    """What a graph needs to know of a tensor without its data. `shape` in NumPy order."""

    shape: tuple[int, ...]
    type: str
    """The name of its `QuantType`."""


@dataclass(frozen=True, slots=True)
class Graph:
    """A whole model, the value of node `output` being the logits [wanted rows, vocab]; or a slice of one."""

    arch: str
    nodes: tuple[Node, ...]
    output: int
    tensors: Mapping[str, TensorFact]
    """Every tensor of the model file and, after `graph.lora.attach`, of the adapters."""
    cuts: tuple[int, ...] = ()
    """Nodes of the residual stream [T, d]: cuts[i] is the value that enters layer i, the last one the output's norm."""
    unused: frozenset[str] = frozenset()
    """Tensors that the architecture declares it does not use (rope_freqs of a model that has none, ...)."""
    elsewhere: frozenset[str] = frozenset()
    """Of a slice: the linear layers of the whole model that it leaves out; adapters may target them."""
