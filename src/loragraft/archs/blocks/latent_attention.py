"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1), the keys' and values' matrices absorbed:
queries go into the latent space, and what is attended to comes out of it. A sequence keeps one key and one value for
each token, whatever the number of heads; the value is the key's first part, and is kept beside it."""

from __future__ import annotations

from loragraft.archs.hparams import Hparams
from loragraft.graph.build import GraphBuilder, Ref
from loragraft.graph.ops import Op

_EPS = 1e-6
"""Of the latent vectors' norms, whatever config.json says of the others (transformers, `DeepseekV3RMSNorm`)."""


def latent_attention(g: GraphBuilder, h: Hparams, x: Ref, layer: int) -> Ref:
    """Heads and rope are the layer's, sizes `h.latent`'s. The file has the query's matrix in one, or in two with a norm
    between."""
    assert h.latent is not None
    blk, own, sizes = f"blk.{layer}", h.layers[layer], h.latent
    heads = g.add(Op.ALL_EXPERTS, (x,), label=f"{blk}.heads", count=own.heads)
    q = g.heads(_query(g, x, blk), own.heads, f"{blk}.q_heads")
    plain = g.split(q, 0, sizes.plain, f"{blk}.q_plain")
    turned = g.split(q, sizes.plain, sizes.plain + sizes.turned, f"{blk}.q_turned")
    turned = _rotate(g, h, g.flat(turned, f"{blk}.q_turned"), layer, own.heads, "q")
    absorbed = g.experts(plain, heads, f"{blk}.attn_k_b")
    q = g.concat(absorbed, g.heads(turned, own.heads, f"{blk}.q_turned"), f"{blk}.q_latent")

    both = g.linear(x, f"{blk}.attn_kv_a_mqa")
    latent = g.split(both, 0, sizes.rank, f"{blk}.latent")
    latent = g.rms_norm(latent, f"{blk}.attn_kv_a_norm", _EPS)
    key = g.split(both, sizes.rank, sizes.rank + sizes.turned, f"{blk}.k_turned")
    k = g.concat(latent, _rotate(g, h, key, layer, 1, "k"), f"{blk}.k_latent")

    mixed = g.add(
        Op.ATTENTION,
        (g.flat(q, f"{blk}.q_latent"), k, latent),
        label=f"{blk}.attention",
        layer=layer,
        heads=own.heads,
        kv_heads=1,
        head_dim=sizes.rank + sizes.turned,
        scale=(sizes.plain + sizes.turned) ** -0.5 if h.attention_scale is None else h.attention_scale,
        window=None,
        value_dim=sizes.rank,
        softcap=None,
    )
    mixed = g.heads(mixed, own.heads, f"{blk}.mixed_heads")
    values = g.experts(mixed, heads, f"{blk}.attn_v_b")
    return g.linear(g.flat(values, f"{blk}.values"), f"{blk}.attn_output")


def _query(g: GraphBuilder, x: Ref, blk: str) -> Ref:
    if not g.has(f"{blk}.attn_q_a.weight"):
        return g.linear(x, f"{blk}.attn_q")
    return g.linear(
        g.rms_norm(g.linear(x, f"{blk}.attn_q_a"), f"{blk}.attn_q_a_norm", _EPS), f"{blk}.attn_q_b"
    )


def _rotate(g: GraphBuilder, h: Hparams, x: Ref, layer: int, heads: int, name: str) -> Ref:
    rope = h.layers[layer].rope
    assert rope is not None
    assert h.latent is not None
    return g.add(
        Op.ROPE,
        (x,),
        label=f"blk.{layer}.rope_{name}",
        heads=heads,
        head_dim=h.latent.turned,
        rotary=rope.rotary,
        pairs="adjacent",
        frequencies=rope.frequencies,
        magnitude=rope.magnitude,
    )
