"""Dense feed-forward networks, gated (Shazeer 2020, arXiv 2002.05202) and plain, and their activations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from loragraft.archs.blocks.norms import Norm
from loragraft.archs.hparams import Hparams
from loragraft.graph.build import GraphBuilder, Ref
from loragraft.graph.ops import Op

Activation = Callable[[GraphBuilder, Ref, str], Ref]
"""An activation of a value; the last is its node's label."""


def silu(g: GraphBuilder, x: Ref, label: str) -> Ref:
    return g.add(Op.SILU, (x,), label=label)


def gelu(g: GraphBuilder, x: Ref, label: str) -> Ref:
    """The tanh approximation."""
    return g.add(Op.GELU, (x,), label=label, approximate="tanh")


def gelu_erf(g: GraphBuilder, x: Ref, label: str) -> Ref:
    """As defined, by the error function."""
    return g.add(Op.GELU, (x,), label=label, approximate="none")


def relu(g: GraphBuilder, x: Ref, label: str) -> Ref:
    return g.add(Op.RELU, (x,), label=label)


def squared_relu(g: GraphBuilder, x: Ref, label: str) -> Ref:
    """max(x, 0)^2 (So et al. 2021, arXiv 2109.08668)."""
    positive = relu(g, x, label)
    return g.add(Op.MUL, (positive, positive), label=label)


def _times_sigmoid(g: GraphBuilder, x: Ref, label: str) -> Ref:
    """x * sigmoid(1.702 x), near GELU (Hendrycks and Gimpel 2016, arXiv 1606.08415)."""
    opened = g.add(Op.SIGMOID, (g.scale(x, 1.702, label),), label=label)
    return g.add(Op.MUL, (x, opened), label=label)


#: By the names that files have (`hparams.ACTIVATIONS`).
_NAMED: dict[str, Activation] = {
    "silu": silu,
    "gelu": gelu_erf,
    "gelu_pytorch_tanh": gelu,
    "relu": relu,
    "relu2": squared_relu,
    "quick_gelu": _times_sigmoid,
    "tanh": lambda g, x, label: g.add(Op.TANH, (x,), label=label),
    "sigmoid": lambda g, x, label: g.add(Op.SIGMOID, (x,), label=label),
}
Gate = Callable[[GraphBuilder, Ref, Ref, str], Ref]
"""What becomes of gate and up."""


def gated_by(activation: Activation) -> Gate:
    """activation(gate) * up"""

    def gate(g: GraphBuilder, gate: Ref, up: Ref, label: str) -> Ref:
        return g.add(Op.MUL, (activation(g, gate, label), up), label=label)

    return gate


def gate_of(h: Hparams, usual: Gate) -> Gate:
    """What the file names, or what is usual."""
    return usual if h.activation is None else gated_by(_NAMED[h.activation])


swiglu = gated_by(silu)
geglu = gated_by(gelu)
"""With the tanh approximation."""


@dataclass(frozen=True, slots=True)
class ClampedSwiglu:
    """gate * sigmoid(alpha * gate) * (up + 1), of a gate below `limit` and an up within it (gpt-oss)."""

    limit: float = 7.0
    alpha: float = 1.702

    def __call__(self, g: GraphBuilder, gate: Ref, up: Ref, label: str) -> Ref:
        gate = g.add(Op.CLAMP, (gate,), label=label, low=None, high=self.limit)
        up = g.add(Op.SHIFT, (g.clamp(up, self.limit, label),), label=label, value=1.0)
        opened = g.add(Op.SIGMOID, (g.scale(gate, self.alpha, label),), label=label)
        active = g.add(Op.MUL, (gate, opened), label=label)
        return g.add(Op.MUL, (active, up), label=label)


@dataclass(frozen=True, slots=True)
class Gated:
    """down(gate(ffn_gate(x), ffn_up(x))). Gate and up may be one tensor `ffn_up`, gate first."""

    gate: Gate
    sub_norm: Norm | None = None
    """Before `ffn_down` (BitNet)."""

    def __call__(self, g: GraphBuilder, h: Hparams, x: Ref, layer: int) -> Ref:
        blk = f"blk.{layer}"
        gate, up = self._gate_up(g, h.layers[layer].ff, x, blk)
        active = gate_of(h, self.gate)(g, gate, up, f"{blk}.ffn_act")
        if self.sub_norm is not None:
            active = self.sub_norm(g, h, active, f"{blk}.ffn_sub_norm")
        return g.linear(active, f"{blk}.ffn_down")

    def _gate_up(self, g: GraphBuilder, ff: int, x: Ref, blk: str) -> tuple[Ref, Ref]:
        if g.has(f"{blk}.ffn_gate.weight"):
            return g.linear(x, f"{blk}.ffn_gate"), g.linear(x, f"{blk}.ffn_up")
        fused = g.linear(x, f"{blk}.ffn_up")
        return g.split(fused, 0, ff, f"{blk}.ffn_up.gate"), g.split(fused, ff, 2 * ff, f"{blk}.ffn_up.up")


@dataclass(frozen=True, slots=True)
class Plain:
    """down(activation(up(x)))"""

    activation: Activation

    def __call__(self, g: GraphBuilder, h: Hparams, x: Ref, layer: int) -> Ref:
        blk = f"blk.{layer}"
        activation = self.activation if h.activation is None else _NAMED[h.activation]
        active = activation(g, g.linear(x, f"{blk}.ffn_up"), f"{blk}.ffn_act")
        return g.linear(active, f"{blk}.ffn_down")
