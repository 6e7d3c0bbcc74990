"""Llama (Touvron et al. 2023, arXiv 2302.13971) and what shares its graph: Mistral, Mixtral."""

from __future__ import annotations

from loragraft.archs.arch import ATTENTION, FEED_FORWARD, Arch, ConfigClass
from loragraft.archs.blocks import Attention, Decoder, Gated, Routed, by_feed_forward, swiglu
from loragraft.archs.config import Config
from loragraft.archs.keys import Computed, Count, HeadDim, RopeParameters, Rule
from loragraft.archs.keys.usual import rms_norm, usual_keys
from loragraft.archs.keys.windows import BY_LAYER_TYPES, EVERY_LAYER, Windows
from loragraft.archs.tensors import EXPERTS, NORMS, OUTER, RopePairs, Tensor, experts, in_layer
from loragraft.archs.tensors import FEED_FORWARD as FEED_FORWARD_TENSORS
from loragraft.formats.gguf.values import Metadata, Value
from loragraft.graph.llama_cpp import PublishedArch


def _rotary(config: Config) -> Metadata:
    return {"rope.dimension_count": Value.u32(config.head_dim)}


def llama_keys(
    *,
    experts: bool = False,
    windows: Windows | None = None,
    head_dim: HeadDim | None = None,
    activation: str | None = "silu",
    rope: Rule = RopeParameters(llama3=True),  # noqa: B008 (it never changes)
    more: tuple[Rule, ...] = (),
) -> tuple[Rule, ...]:
    """What llama.cpp's converter writes of Llama and of what it derives from it, then `more`."""
    return usual_keys(
        norm=rms_norm(),
        rope=rope,
        experts=experts,
        head_dim=head_dim or HeadDim(always=True),
        windows=windows,
        activation=activation,
        more=(Count("vocab_size", ("vocab_size",)), Computed(frozenset(), _rotary), *more),
    )


LLAMA = ConfigClass(
    "llama",
    "LlamaForCausalLM",
    keys=llama_keys(),
    defaults={"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 2048},
    biases={"attention_bias": ATTENTION, "mlp_bias": FEED_FORWARD},
    experts=False,
)
_MISTRAL_DEFAULTS = {
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 131072,
    "num_key_value_heads": 8,
    "sliding_window": 4096,
}
MISTRAL = ConfigClass(
    "mistral",
    "MistralForCausalLM",
    keys=llama_keys(windows=EVERY_LAYER),
    defaults=_MISTRAL_DEFAULTS,
    experts=False,
)
MINISTRAL = ConfigClass(
    "ministral",
    "MinistralForCausalLM",
    keys=llama_keys(windows=BY_LAYER_TYPES),
    defaults=_MISTRAL_DEFAULTS,
    experts=False,
)
MIXTRAL = ConfigClass(
    "mixtral",
    "MixtralForCausalLM",
    keys=llama_keys(experts=True, windows=EVERY_LAYER),
    defaults={
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
    experts=True,
)
#: Attention whose rows of q and k GGUF has in another order.
PERMUTED_ATTENTION = (
    in_layer("self_attn.q_proj", "attn_q", RopePairs("heads")),
    in_layer("self_attn.k_proj", "attn_k", RopePairs("kv_heads")),
    in_layer("self_attn.v_proj", "attn_v"),
    in_layer("self_attn.o_proj", "attn_output"),
)
TENSORS: tuple[Tensor, ...] = (
    *OUTER,
    *NORMS,
    *PERMUTED_ATTENTION,
    *FEED_FORWARD_TENSORS,
    in_layer("block_sparse_moe.gate", "ffn_gate_inp"),
    *experts("block_sparse_moe", gate="w1", down="w2", up="w3"),
    *EXPERTS,
)
ARCH = Arch(
    name="llama",
    classes=(LLAMA, MISTRAL, MINISTRAL, MIXTRAL),
    tensors=TENSORS,
    llama_cpp=PublishedArch(biases=FEED_FORWARD | {"attn_output"}),
    build=Decoder(
        attention=Attention(pairs="adjacent"),
        feed_forward=by_feed_forward(dense=Gated(swiglu), experts=Routed(normalize=True)),
    ),
    fixed={"expert_weights_norm": True},
)
