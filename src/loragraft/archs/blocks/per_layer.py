"""An embedding of every token for each layer (Gemma 3n and Gemma 4): part of it is looked up, part made of the model's
own embedding, and each layer adds what it makes of its share."""

from __future__ import annotations

from loragraft.archs.blocks.feed_forward import gelu
from loragraft.archs.hparams import Hparams
from loragraft.errors import FormatError
from loragraft.graph.build import GraphBuilder, Ref
from loragraft.graph.ops import Op

_KEPT = "per_layer"


def embed_per_layer(g: GraphBuilder, h: Hparams, ids: Ref, x: Ref) -> None:
    """Keeps [T, layers * width] under `per_layer`, of a model that has it."""
    width = h.extra["per_layer"]
    if not width:
        return
    rows, tokens = (g.fact(f"{name}.weight").shape[0] for name in ("per_layer_token_embd", "token_embd"))
    if rows < tokens:
        raise FormatError(
            "per_layer_token_embd.weight", "lacks rows of the vocabulary", found=rows, expected=tokens
        )
    found = g.embed(ids, "per_layer_token_embd", arch_scale=width**0.5)
    made = g.linear(x, "per_layer_model_proj", arch_scale=h.width**-0.5)
    made = g.rms_norm(made, "per_layer_proj_norm", h.norm_eps)
    both = g.add(Op.ADD, (made, found), label="per_layer_sum")
    g.kept[_KEPT] = g.scale(both, 2**-0.5, "per_layer_sum")


def add_per_layer(g: GraphBuilder, h: Hparams, x: Ref, layer: int) -> Ref:
    """The residual stream behind a layer: with post_norm(proj(gelu(inp_gate(x)) * the layer's share), and scaled."""
    blk, width = f"blk.{layer}", h.extra["per_layer"]
    if width:
        x = g.add(Op.ADD, (x, from_per_layer(g, h, x, layer)), label=f"{blk}.per_layer_residual")
    scale = f"{blk}.layer_output_scale.weight"
    return g.add(Op.ARCH_SCALE, (x,), (scale,), f"{blk}.layer_output_scale") if g.has(scale) else x


def from_per_layer(g: GraphBuilder, h: Hparams, x: Ref, layer: int) -> Ref:
    """post_norm(proj(gelu(inp_gate(x)) * the layer's share))"""
    blk, width = f"blk.{layer}", h.extra["per_layer"]
    share = g.split(g.kept[_KEPT], layer * width, (layer + 1) * width, f"{blk}.per_layer")
    if layer == len(h.layers) - 1:
        share = g.add(Op.LAST, (share,), label="last")
    gate = gelu(g, g.linear(x, f"{blk}.inp_gate"), f"{blk}.per_layer_act")
    added = g.add(Op.MUL, (gate, share), label=f"{blk}.per_layer_gated")
    return g.rms_norm(g.linear(added, f"{blk}.proj"), f"{blk}.post_norm", h.norm_eps)
