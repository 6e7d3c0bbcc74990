"""Blocks that no architecture with recorded logits has yet, against NumPy in float64, on both backends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gpu import WITH_GPUS
from loragraft.archs.blocks import Attention, ClampedSwiglu, Decoder, Gated, Plain, squared_relu
from loragraft.archs.hparams import Hparams, Layer
from loragraft.archs.rope import Rope
from loragraft.arrays import Doubles
from loragraft.backends.cpu.program import NativeBackend
from loragraft.backends.program import Backend
from loragraft.backends.reference import ReferenceBackend
from loragraft.graph.build import GraphBuilder, Ref
from loragraft.graph.ops import Op, TensorFact
from loragraft.graph.spec import verify
from running import logits_of
from tolerances import NATIVE_F32, REFERENCE, nmse

VOCABULARY, WIDTH, HEADS, HEAD_DIM, FF = 9, 12, 2, 6, 10
IDS = np.array([3, 1, 4, 1, 5], np.int32)
BACKENDS = [
    pytest.param(ReferenceBackend(), REFERENCE, id="reference"),
    pytest.param(NativeBackend(), NATIVE_F32, id="native"),
    *WITH_GPUS,
]
ROPE = Rope(4, (1.0, 0.1), 1.0)
H = Hparams(
    arch="toy",
    layers=(Layer(HEADS, HEADS, HEAD_DIM, HEAD_DIM, ROPE, None, FF),),
    context=16,
    width=WIDTH,
    norm_eps=1e-6,
    experts=0,
    experts_used=0,
)
SHAPES = {
    "token_embd": (VOCABULARY, WIDTH),
    "output_norm": (WIDTH,),
    "blk.0.attn_norm": (WIDTH,),
    "blk.0.ffn_norm": (WIDTH,),
    "blk.0.attn_post": (WIDTH,),
    "blk.0.ffn_post": (WIDTH,),
    **{f"blk.0.attn_{part}": (WIDTH, WIDTH) for part in "qkv"},
    "blk.0.attn_output": (WIDTH, WIDTH),
    "blk.0.ffn_gate": (FF, WIDTH),
    "blk.0.ffn_up": (FF, WIDTH),
    "blk.0.ffn_down": (WIDTH, FF),
}


def drawn(*left_out: str) -> dict[str, npt.NDArray[np.float32]]:
    rng = np.random.default_rng(4)
    found = {}
    for name, shape in SHAPES.items():
        values = rng.normal(0, 1, shape).astype(np.float32)
        if name not in left_out:
            found[f"{name}.weight"] = values
    return found


class Model:
    """The same in float64."""

    def __init__(self, weights: dict[str, npt.NDArray[np.float32]]) -> None:
        self.w = {name.removesuffix(".weight"): array.astype(np.float64) for name, array in weights.items()}

    def norm(self, name: str, x: Doubles) -> Doubles:
        return np.asarray(x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-6) * self.w[name])

    def rotated(self, x: Doubles) -> Doubles:
        """The first four elements of each head, halves."""
        heads = x.reshape(len(x), HEADS, HEAD_DIM).copy()
        angles = np.arange(len(x))[:, None, None] * np.array([1.0, 0.1])
        a, b = heads[..., :2].copy(), heads[..., 2:4].copy()
        heads[..., :2] = a * np.cos(angles) - b * np.sin(angles)
        heads[..., 2:4] = a * np.sin(angles) + b * np.cos(angles)
        return heads

    def attention(self, x: Doubles, clamp: float, turns: bool) -> Doubles:
        q, k, v = (np.clip(x @ self.w[f"blk.0.attn_{part}"].T, -clamp, clamp) for part in "qkv")
        plain = (len(x), HEADS, HEAD_DIM)
        q, k = (self.rotated(part) if turns else part.reshape(plain) for part in (q, k))
        scores = np.einsum("thd,shd->hts", q, k) / np.sqrt(HEAD_DIM)
        scores[:, np.triu(np.ones((len(x), len(x)), bool), 1)] = -np.inf
        chances = np.exp(scores - scores.max(axis=-1, keepdims=True))
        chances /= chances.sum(axis=-1, keepdims=True)
        mixed = np.einsum("hts,shd->thd", chances, v.reshape(plain)).reshape(x.shape)
        return np.asarray(mixed @ self.w["blk.0.attn_output"].T)

    def plain(self, x: Doubles) -> Doubles:
        up = np.maximum(x @ self.w["blk.0.ffn_up"].T, 0)
        return np.asarray((up * up) @ self.w["blk.0.ffn_down"].T)

    def logits(self, x: Doubles) -> Doubles:
        return np.asarray(self.norm("output_norm", x) @ self.w["token_embd"].T)


def parallel(m: Model, x: Doubles) -> Doubles:
    """One norm for both, half of what they add."""
    y = m.norm("blk.0.attn_norm", x)
    return x + 0.5 * (m.attention(y, np.inf, True) + m.plain(y))


def norms_behind(m: Model, x: Doubles) -> Doubles:
    """No norm before; q, k and v clamped; no rotation."""
    x = x + m.norm("blk.0.attn_post", m.attention(x, 0.5, False))
    return x + m.norm("blk.0.ffn_post", m.plain(x))


CASES: dict[str, tuple[Decoder, Hparams, tuple[str, ...], Callable[[Model, Doubles], Doubles]]] = {
    "parallel": (
        Decoder(
            Attention("halves"), Plain(squared_relu), pre_norms=("attn_norm", "attn_norm"), parallel=True
        ),
        replace(H, residual_scale=0.5),
        ("blk.0.ffn_norm", "blk.0.attn_post", "blk.0.ffn_post", "blk.0.ffn_gate"),
        parallel,
    ),
    "norms behind": (
        Decoder(
            Attention("halves"),
            Plain(squared_relu),
            pre_norms=(None, None),
            post_norms=("attn_post", "ffn_post"),
        ),
        replace(H.with_layers(lambda index, layer: replace(layer, rope=None)), clamp_qkv=0.5),
        ("blk.0.attn_norm", "blk.0.ffn_norm", "blk.0.ffn_gate"),
        norms_behind,
    ),
}


@pytest.mark.parametrize(("backend", "tolerance"), BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_residual_structures(case: str, backend: Backend, tolerance: float) -> None:
    decoder, h, left_out, layer = CASES[case]
    weights = drawn(*left_out)
    h = replace(h, embedding_scale=3.0, logit_scale=0.25, logit_softcap=2.0)
    graph = decoder(h, {name: TensorFact(array.shape, "F32") for name, array in weights.items()})
    verify(graph)
    assert len(graph.cuts) == 2
    model = Model(weights)
    x = layer(model, 3.0 * model.w["token_embd"][IDS])
    expected = 2.0 * np.tanh(0.25 * model.logits(x) / 2.0)
    assert nmse(logits_of(backend, graph, weights, IDS), expected) < tolerance


@pytest.mark.parametrize(("backend", "tolerance"), BACKENDS)
def test_clamped_swiglu(backend: Backend, tolerance: float) -> None:
    weights = {
        name: array * 4 for name, array in drawn().items() if "ffn_" in name or name.startswith("token")
    }
    del weights["blk.0.ffn_norm.weight"], weights["blk.0.ffn_post.weight"]
    g = GraphBuilder("toy", {name: TensorFact(array.shape, "F32") for name, array in weights.items()})
    graph = g.finish(Gated(ClampedSwiglu(limit=2.0))(g, H, g.embed(g.tokens()), 0))
    w = {name: array.astype(np.float64) for name, array in weights.items()}
    x = w["token_embd.weight"][IDS]
    gate = np.minimum(x @ w["blk.0.ffn_gate.weight"].T, 2.0)
    up = np.clip(x @ w["blk.0.ffn_up.weight"].T, -2.0, 2.0)
    expected = (gate / (1 + np.exp(-1.702 * gate)) * (up + 1)) @ w["blk.0.ffn_down.weight"].T
    assert nmse(logits_of(backend, graph, weights, IDS), expected) < tolerance


def test_parts_by_layer() -> None:
    """Each layer takes the part that it names."""
    from loragraft.archs.blocks import by_feed_forward, by_mixer

    def part(name: str) -> Any:
        def build(g: GraphBuilder, h: Hparams, x: Ref, layer: int) -> Ref:
            return g.add(Op.SHIFT, (x,), label=name, value=1.0)

        return build

    own = (replace(H.layers[0], mixer="recurrence"), replace(H.layers[0], feed_forward="experts"))
    h = replace(H, layers=own)
    tensors = {"token_embd.weight": TensorFact((VOCABULARY, WIDTH), "F32")}
    tensors |= {f"{name}.weight": TensorFact((WIDTH,), "F32") for name in ("output_norm", "n")}
    decoder = Decoder(
        by_mixer(attention=part("attention"), recurrence=part("recurrence")),
        by_feed_forward(dense=part("dense"), experts=part("experts")),
        pre_norms=(None, None),
        unused=lambda h, name: name == "n.weight",
    )
    graph = decoder(h, tensors)
    verify(graph)
    named = [node.label for node in graph.nodes if node.op is Op.SHIFT]
    assert named == ["recurrence", "dense", "attention", "experts"]
