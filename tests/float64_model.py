"""The oracle of the graph tests: each model written out in float64, y = W x + b with W = s Wq + sum of gamma B A; an
adapter that is DoRA's makes g (W + s B A) of the W before it, by its strength.

It shares nothing with loragraft's graphs: no epilogue, no adapters at run time, one token's history at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from small_models import (
    EXPERTS,
    FF,
    HEAD_DIM,
    HEAD_NORM,
    HEADS,
    KV,
    KV_HEADS,
    LAYER_NORM,
    POST_NORM,
    USED,
    WIDTH,
    Q,
    SmallModel,
)

Doubles = npt.NDArray[np.float64]


class Float64Model:
    def __init__(self, model: SmallModel) -> None:
        self.model = model
        self.arrays = {name: array.astype(np.float64) for name, array in model.arrays.items()}

    def weight(self, base: str, stored: str | None = None) -> Doubles:
        """s Wq, and every adapter in turn; the adapters of `base` over the weight stored as another layer's if tied."""
        stored = stored or base
        weight = np.atleast_2d(self.arrays[f"{stored}.weight"])
        if f"{stored}.scale" in self.arrays:
            scale = self.arrays[f"{stored}.scale"]
            weight = weight * (scale[:, None, None] if weight.ndim == 3 else scale)
        alone = weight
        for adapter, factor in self.model.adapters:
            if pair := adapter.pairs.get(f"{base}.weight"):
                delta = pair.scale * pair.b.astype(np.float64) @ pair.a.astype(np.float64)
                if pair.magnitude is None:
                    weight = weight + factor * delta
                    continue
                length = np.linalg.norm(alone + delta, axis=-1)
                tuned = (pair.magnitude / length)[..., None] * (weight + delta)
                weight = (1 - factor) * weight + factor * tuned
        return weight

    def linear(self, base: str, x: Doubles, stored: str | None = None) -> Doubles:
        return self.weight(base, stored) @ x + self.arrays.get(f"{base}.bias", 0.0)

    def expert(self, base: str, expert: int, x: Doubles) -> Doubles:
        bias = self.arrays[f"{base}.bias"][expert] if f"{base}.bias" in self.arrays else 0.0
        return self.weight(base)[expert] @ x + bias

    def norm(self, base: str, x: Doubles) -> Doubles:
        if self.model.arch in LAYER_NORM:
            x = x - x.mean()
        y = x / np.sqrt((x * x).mean() + np.float64(np.float32(1e-5))) * self.arrays[f"{base}.weight"]
        return y + self.arrays.get(f"{base}.bias", 0.0)

    def rotate(self, head: Doubles, position: int) -> Doubles:
        turned = head.copy()
        for i in range(HEAD_DIM // 2):
            a, b = (2 * i, 2 * i + 1) if self.model.arch == "llama" else (i, i + HEAD_DIM // 2)
            angle = position * 10000.0 ** (-2 * i / HEAD_DIM)
            turned[a] = head[a] * np.cos(angle) - head[b] * np.sin(angle)
            turned[b] = head[a] * np.sin(angle) + head[b] * np.cos(angle)
        return turned

    def heads(self, x: Doubles, norm: str, position: int) -> list[Doubles]:
        parts = np.split(x, len(x) // HEAD_DIM)
        if self.model.arch in HEAD_NORM:
            parts = [self.norm(norm, part) for part in parts]
        return [self.rotate(part, position) for part in parts]

    def attention(self, blk: str, x: Doubles, history: list[tuple[list[Doubles], list[Doubles]]]) -> Doubles:
        if f"{blk}.attn_qkv.weight" in self.arrays:
            q, k, v = np.split(self.linear(f"{blk}.attn_qkv", x), [Q, Q + KV])
        else:
            q, k, v = (self.linear(f"{blk}.attn_{p}", x) for p in "qkv")
        position = len(history)
        queries = self.heads(q, f"{blk}.attn_q_norm", position)
        history.append((self.heads(k, f"{blk}.attn_k_norm", position), np.split(v, KV_HEADS)))
        mixed = []
        for head, query in enumerate(queries):
            shared = head // (HEADS // KV_HEADS)
            scores = np.array([query @ keys[shared] for keys, _ in history]) / np.sqrt(HEAD_DIM)
            chances = np.exp(scores - scores.max())
            chances /= chances.sum()
            mixed.append(sum(c * values[shared] for c, (_, values) in zip(chances, history, strict=True)))
        return self.linear(f"{blk}.attn_output", np.concatenate(mixed))

    def feed_forward(self, blk: str, x: Doubles) -> Doubles:
        if f"{blk}.ffn_gate_inp.weight" in self.arrays:
            return self.mixture(blk, x)
        if self.model.arch == "starcoder2":
            return self.linear(f"{blk}.ffn_down", gelu(self.linear(f"{blk}.ffn_up", x)))
        if f"{blk}.ffn_gate.weight" in self.arrays:
            gate, up = self.linear(f"{blk}.ffn_gate", x), self.linear(f"{blk}.ffn_up", x)
        else:
            gate, up = np.split(self.linear(f"{blk}.ffn_up", x), 2)
        active = gelu(gate) if self.model.arch == "gemma3" else silu(gate)
        return self.linear(f"{blk}.ffn_down", active * up)

    def behind(self, blk: str, part: int, y: Doubles) -> Doubles:
        """The norm behind attention (0) or feed-forward (1), where there is one."""
        names = POST_NORM.get(self.model.arch)
        return y if names is None else self.norm(f"{blk}.{names[part]}", y)

    def mixture(self, blk: str, x: Doubles) -> Doubles:
        logits = self.linear(f"{blk}.ffn_gate_inp", x)
        chances = np.exp(logits - logits.max())
        chances /= chances.sum()
        chosen = sorted(range(EXPERTS), key=lambda e: -chances[e])[:USED]
        total = sum(chances[e] for e in chosen) if self.model.arch != "qwen2moe" else 1.0
        y = np.zeros(WIDTH)
        for e in chosen:
            if f"{blk}.ffn_gate_up_exps.weight" in self.arrays:
                gate, up = np.split(self.expert(f"{blk}.ffn_gate_up_exps", e, x), [FF])
            else:
                gate, up = self.expert(f"{blk}.ffn_gate_exps", e, x), self.expert(f"{blk}.ffn_up_exps", e, x)
            y += chances[e] / total * self.expert(f"{blk}.ffn_down_exps", e, silu(gate) * up)
        if f"{blk}.ffn_up_shexp.weight" in self.arrays:
            gate, up = self.linear(f"{blk}.ffn_gate_shexp", x), self.linear(f"{blk}.ffn_up_shexp", x)
            strength = 1 / (1 + np.exp(-self.linear(f"{blk}.ffn_gate_inp_shexp", x)))
            y = y + strength * self.linear(f"{blk}.ffn_down_shexp", silu(gate) * up)
        return y

    def logits(self, ids: Sequence[int]) -> Doubles:
        """[tokens, vocab]"""
        layers = self.model.metadata[f"{self.model.arch}.block_count"].data
        histories: list[list[tuple[list[Doubles], list[Doubles]]]] = [[] for _ in range(layers)]
        rows = []
        for token in ids:
            x = self.weight("token_embd")[token] * (np.sqrt(WIDTH) if self.model.arch == "gemma3" else 1.0)
            for layer, history in enumerate(histories):
                blk = f"blk.{layer}"
                x = x + self.behind(blk, 0, self.attention(blk, self.norm(f"{blk}.attn_norm", x), history))
                x = x + self.behind(blk, 1, self.feed_forward(blk, self.norm(f"{blk}.ffn_norm", x)))
            tied = "token_embd" if "output.weight" not in self.arrays else None
            rows.append(self.linear("output", self.norm("output_norm", x), tied))
        return np.array(rows)


def gelu(x: Doubles) -> Doubles:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def silu(x: Doubles) -> Doubles:
    return x / (1 + np.exp(-x))
