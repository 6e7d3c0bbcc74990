"""Random models of every architecture, small enough to run by the hundred; all weights float32."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from loragraft.adapters.lora import Adapter, LoraPair
from loragraft.archs.graphs import build_graph
from loragraft.arrays import Floats
from loragraft.formats.gguf.values import Value
from loragraft.graph.ops import Graph, TensorFact

WIDTH, HEADS, KV_HEADS, HEAD_DIM, FF, VOCAB, EXPERTS, USED = 32, 4, 2, 8, 64, 40, 4, 2
Q, KV = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM

ATTENTION = {"attn_q": (Q, WIDTH), "attn_k": (KV, WIDTH), "attn_v": (KV, WIDTH), "attn_output": (WIDTH, Q)}
FUSED_ATTENTION = {"attn_qkv": (Q + 2 * KV, WIDTH), "attn_output": (WIDTH, Q)}
GATED = {"ffn_gate": (FF, WIDTH), "ffn_up": (FF, WIDTH), "ffn_down": (WIDTH, FF)}
FUSED_GATED = {"ffn_up": (2 * FF, WIDTH), "ffn_down": (WIDTH, FF)}
PLAIN = {"ffn_up": (FF, WIDTH), "ffn_down": (WIDTH, FF)}
ROUTED = {
    "ffn_gate_inp": (EXPERTS, WIDTH),
    "ffn_gate_exps": (EXPERTS, FF, WIDTH),
    "ffn_up_exps": (EXPERTS, FF, WIDTH),
    "ffn_down_exps": (EXPERTS, WIDTH, FF),
}
FUSED_ROUTED = {
    "ffn_gate_inp": (EXPERTS, WIDTH),
    "ffn_gate_up_exps": (EXPERTS, 2 * FF, WIDTH),
    "ffn_down_exps": (EXPERTS, WIDTH, FF),
}
SHARED = {
    "ffn_gate_inp_shexp": (WIDTH,),  # a vector in files, one row in meaning
    "ffn_gate_shexp": (FF, WIDTH),
    "ffn_up_shexp": (FF, WIDTH),
    "ffn_down_shexp": (WIDTH, FF),
}

#: What a layer of each model multiplies by. A name after a slash tells variants of one architecture apart.
LAYERS = {
    "llama": ATTENTION | GATED,
    "llama/fused": FUSED_ATTENTION | FUSED_GATED,
    "llama/experts": ATTENTION | ROUTED,
    "qwen2": ATTENTION | GATED,
    "qwen2moe": ATTENTION | ROUTED | SHARED,
    "qwen3": ATTENTION | GATED,
    "qwen3moe": ATTENTION | ROUTED,
    "qwen3moe/fused": ATTENTION | FUSED_ROUTED,
    "starcoder2": ATTENTION | PLAIN,
    "gemma3": ATTENTION | GATED,
}
LAYER_NORM = {"starcoder2"}
HEAD_NORM = {"qwen3", "qwen3moe", "gemma3"}
#: Norms behind the parts of a layer.
POST_NORM = {"gemma3": ("post_attention_norm", "post_ffw_norm")}


def linears(model: str, *, layer: int = 0, tied: bool = False) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights multiplied by in one layer and outside the layers, by GGUF base name."""
    own = {f"blk.{layer}.{name}": shape for name, shape in LAYERS[model].items()}
    own["token_embd"] = (VOCAB, WIDTH)
    if not tied:
        own["output"] = (VOCAB, WIDTH)
    return own


@dataclass
class SmallModel:
    """`arrays` hold what a file would: quantized weights without their scale, scales, biases, norms."""

    name: str
    metadata: dict[str, Value]
    arrays: dict[str, Floats]
    adapters: list[tuple[Adapter, float]] = field(default_factory=list)

    @property
    def arch(self) -> str:
        return self.name.split("/")[0]

    def graph(self) -> Graph:
        """Without the adapters."""
        return build_graph(
            self.metadata, {name: TensorFact(a.shape, "F32") for name, a in self.arrays.items()}
        )


def small_model(
    name: str,
    rng: np.random.Generator,
    *,
    layers: int = 1,
    tied: bool = False,
    biased: tuple[str, ...] = (),
    scaled: tuple[str, ...] = (),
) -> SmallModel:
    """A model called `name` in LAYERS; `biased` and `scaled` list the linears that have a bias or a weight scale."""
    arch = name.split("/")[0]
    arrays: dict[str, Floats] = {}
    shapes = {base: shape for i in range(layers) for base, shape in linears(name, layer=i, tied=tied).items()}
    for base, shape in shapes.items():
        weight = rng.standard_normal(shape, dtype=np.float32) / np.float32(np.sqrt(shape[-1]))
        if base in scaled:
            # Far from 1 and different for every expert, as real scales are: a mistake must show.
            scale = rng.uniform(0.01, 0.05, shape[:-2] or (1,)).astype(np.float32)
            arrays[f"{base}.scale"] = scale
            weight = weight / scale[:, None, None] if len(shape) == 3 else weight / scale
        arrays[f"{base}.weight"] = weight
        if base in biased:
            arrays[f"{base}.bias"] = rng.standard_normal(shape[:-1] or (1,), dtype=np.float32)
    norms = {"output_norm": WIDTH}
    for i in range(layers):
        norms |= {f"blk.{i}.attn_norm": WIDTH, f"blk.{i}.ffn_norm": WIDTH}
        norms |= {f"blk.{i}.{name}": WIDTH for name in POST_NORM.get(arch, ())}
        if arch in HEAD_NORM:
            norms |= {f"blk.{i}.attn_q_norm": HEAD_DIM, f"blk.{i}.attn_k_norm": HEAD_DIM}
    for base, size in norms.items():
        arrays[f"{base}.weight"] = 1 + rng.standard_normal(size, dtype=np.float32) / 4
        if arch in LAYER_NORM:
            arrays[f"{base}.bias"] = rng.standard_normal(size, dtype=np.float32) / 4
    return SmallModel(name, _metadata(arch, layers, moe=any("_exps" in base for base in shapes)), arrays)


def _metadata(arch: str, layers: int, *, moe: bool) -> dict[str, Value]:
    keys = {
        "block_count": Value.u32(layers),
        "context_length": Value.u32(64),
        "embedding_length": Value.u32(WIDTH),
        "feed_forward_length": Value.u32(FF),
        "attention.head_count": Value.u32(HEADS),
        "attention.head_count_kv": Value.u32(KV_HEADS),
        "rope.freq_base": Value.f32(10000.0),
    }
    norm = "layer_norm_epsilon" if arch in LAYER_NORM else "layer_norm_rms_epsilon"
    keys[f"attention.{norm}"] = Value.f32(1e-5)
    if moe:
        keys |= {"expert_count": Value.u32(EXPERTS), "expert_used_count": Value.u32(USED)}
    return {"general.architecture": Value.string(arch)} | {
        f"{arch}.{key}": value for key, value in keys.items()
    }


def random_adapter(
    rng: np.random.Generator, shapes: dict[str, tuple[int, ...]], rank: int = 3, *, dora: bool = False
) -> Adapter:
    """Deltas as large as the weights themselves, for the linears of `shapes` (base name to weight shape); with `dora`,
    rows that become a fraction as long."""
    pairs = {}
    for base, shape in shapes.items():
        shape = shape if len(shape) > 1 else (1, *shape)
        a = rng.standard_normal((*shape[:-2], rank, shape[-1]), dtype=np.float32)
        b = rng.standard_normal((*shape[:-1], rank), dtype=np.float32)
        scale = float(1 / np.sqrt(rank * shape[-1]))
        magnitude = rng.uniform(0.2, 0.4, shape[:-1]).astype(np.float32) if dora else None
        pairs[f"{base}.weight"] = LoraPair(f"{base}.weight", a, b, scale, magnitude)
    return Adapter(Path("random"), pairs, n_tensors=2 * len(pairs))
