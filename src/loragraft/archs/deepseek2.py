"""DeepSeek-V2 (arXiv 2405.04434), V3 and R1 (arXiv 2412.19437) and GLM-4.7 Flash: multi-head latent attention, dense
layers below, then experts of the best groups, beside shared ones. V2 judges a group by its best expert, under a
softmax; the others by its best two, under a sigmoid and a bias of the choice."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from loragraft.archs.arch import FEED_FORWARD, Arch, ConfigClass
from loragraft.archs.blocks import Decoder, Gated, Routed, by_feed_forward, latent_attention, swiglu
from loragraft.archs.config import Config
from loragraft.archs.glm4_moe import ALL_LAYERS, PREDICTION, predictors, with_predictors
from loragraft.archs.hparams import Hparams, Latent, dense_below, read_decoder, read_routing
from loragraft.archs.keys import Computed, Count, GgufModel
from loragraft.archs.keys.latent_attention import MULTIPLIER, assumed, latent_keys
from loragraft.archs.metadata import MetadataKeys
from loragraft.archs.rope import standard_magnitude
from loragraft.archs.tensors import EXPERTS, NORMS, OUTER, SHARED_EXPERTS, OfHeads, in_layer, router_bias
from loragraft.archs.tensors import FEED_FORWARD as FEED_FORWARD_TENSORS
from loragraft.errors import UnsupportedError
from loragraft.formats.gguf.values import Metadata, Value


def _method_back(model: GgufModel) -> dict[str, Any]:
    routing = model.h.routing
    if routing is not None and routing.gating != "softmax":
        raise UnsupportedError(
            "deepseek2.expert_gating_func", "DeepSeek-V2 has a softmax", found=routing.gating
        )
    limited = routing is not None and routing.groups > 1
    return {"topk_method": "group_limited_greedy" if limited else "greedy"}


def _dense_types(config: Config) -> Metadata:
    """GLM's list of layers; GGUF has how many dense ones come first."""
    kinds = config.get("mlp_layer_types")
    if kinds is None:
        return {"leading_dense_block_count": Value.u32(1)}
    first = kinds.index("sparse") if isinstance(kinds, list) and "sparse" in kinds else config.n_layers
    if kinds != ["dense"] * first + ["sparse"] * (config.n_layers - first):
        raise UnsupportedError(config.path, "dense layers above those with experts", found=repr(kinds)[:80])
    return {"leading_dense_block_count": Value.u32(first)}


def _dense_types_back(model: GgufModel) -> dict[str, Any]:
    kinds = {"dense": "dense", "experts": "sparse"}
    return {"mlp_layer_types": [kinds[layer.feed_forward] for layer in model.h.layers]}


def _is_prediction(config: Config, name: str) -> bool:
    """Of the layers behind the last, which predict tokens further on."""
    found = re.match(r"model\.layers\.(\d{1,6})\.", name)
    return found is not None and int(found[1]) >= config.n_layers


#: llama.cpp takes a softmax where the file says nothing.
_SIGMOID = Computed(frozenset(), lambda config: {"expert_gating_func": Value.u32(2)})
_LEADING = Count("leading_dense_block_count", ("first_k_dense_replace",), optional=True)
_DEFAULTS = {
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 4096,
    "first_k_dense_replace": 3,
    "n_group": 8,
    "topk_group": 4,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "n_shared_experts": 1,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}
_IGNORES = frozenset(["ep_size", "aux_loss_alpha", "seq_aux", "num_nextn_predict_layers"])
_BIASES = frozenset(["attn_q_a", "attn_kv_a_mqa", "attn_output"])
DEEPSEEK_V2 = ConfigClass(
    "deepseek_v2",
    "DeepseekV2ForCausalLM",
    keys=latent_keys(
        dense=_LEADING, more=(Computed(frozenset(["topk_method"]), lambda config: {}, _method_back),)
    ),
    defaults={
        **_DEFAULTS,
        "max_position_embeddings": 2048,
        "first_k_dense_replace": 0,
        "n_group": None,
        "topk_group": None,
        "topk_method": "greedy",
        "norm_topk_prob": False,
        "routed_scaling_factor": 1.0,
        "n_shared_experts": 2,
    },
    requires={
        "norm_topk_prob": (False,),
        "scoring_func": ("softmax",),
        "moe_layer_freq": (1,),
    },
    ignores=_IGNORES,
    biases={
        "attention_bias": _BIASES,
        "mlp_bias": FEED_FORWARD | {"ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp"},
    },
)
DEEPSEEK_V3 = ConfigClass(
    "deepseek_v3",
    "DeepseekV3ForCausalLM",
    keys=latent_keys(dense=_LEADING, more=(_SIGMOID,)),
    defaults=_DEFAULTS,
    requires={
        "scoring_func": ("sigmoid",),
        "rope_interleave": (True,),
        "moe_layer_freq": (1,),
    },
    ignores=_IGNORES | {"topk_method"},
    biases={"attention_bias": _BIASES},
    left_out=_is_prediction,
)
GLM4_MOE_LITE = ConfigClass(
    "glm4_moe_lite",
    "Glm4MoeLiteForCausalLM",
    keys=latent_keys(
        ALL_LAYERS,
        dense=Computed(frozenset(["mlp_layer_types"]), _dense_types, _dense_types_back),
        more=(
            Computed(
                frozenset(),
                lambda config: (
                    {"nextn_predict_layers": Value.u32(predictors(config))} if predictors(config) else {}
                ),
            ),
            _SIGMOID,
        ),
    ),
    defaults={
        **_DEFAULTS,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 202752,
        "n_group": 1,
        "topk_group": 1,
        "routed_scaling_factor": 1.8,
        "q_lora_rank": 768,
        "qk_nope_head_dim": 192,
        "v_head_dim": 256,
    },
    requires={"scoring_func": ("sigmoid",), "rope_interleave": (True,)},
    ignores=frozenset(["topk_method", "first_k_dense_replace"]),
    biases={"attention_bias": _BIASES},
)


def hyperparameters(keys: MetadataKeys) -> Hparams:
    keys.cover("expert_shared_count", "attention.q_lora_rank")
    h = with_predictors(keys, dense_below(keys, read_decoder(keys)))
    rank, turned = keys.count("attention.kv_lora_rank"), keys.count("rope.dimension_count")
    latent = Latent(
        rank,
        plain=keys.count("attention.key_length_mla", least=turned + 1) - turned,
        turned=turned,
        value=keys.count("attention.value_length_mla"),
    )
    all_dim = 10 * keys.number(MULTIPLIER, 0.0, least=0.0)
    scaled = keys.text("rope.scaling.type", "linear") == "yarn"
    factor = keys.number("rope.scaling.factor", 1.0) if scaled else 1.0
    grown = standard_magnitude(factor, all_dim) if all_dim else 1.0
    less = assumed(factor, all_dim) / standard_magnitude(factor)
    routing = read_routing(keys, "softmax", normalize=False)
    return replace(
        h.with_layers(
            lambda i, own: replace(
                own, rope=own.rope and replace(own.rope, magnitude=own.rope.magnitude * less)
            )
        ),
        latent=latent,
        attention_scale=(latent.plain + latent.turned) ** -0.5 * grown * grown,
        routing=replace(routing, group_best=2 if routing.gating == "sigmoid" else 1),
    )


def _key_rows(h: Hparams, layer: int) -> tuple[int, int, int, int]:
    assert h.latent is not None
    return h.layers[layer].heads, 0, h.latent.plain, h.latent.plain + h.latent.value


def _value_rows(h: Hparams, layer: int) -> tuple[int, int, int, int]:
    heads, _, first, each = _key_rows(h, layer)
    return heads, first, each, each


ARCH = Arch(
    name="deepseek2",
    classes=(DEEPSEEK_V2, DEEPSEEK_V3, GLM4_MOE_LITE),
    tensors=(
        *OUTER,
        *NORMS,
        in_layer("self_attn.q_proj", "attn_q"),
        in_layer("self_attn.q_a_proj", "attn_q_a"),
        in_layer("self_attn.q_a_layernorm", "attn_q_a_norm"),
        in_layer("self_attn.q_b_proj", "attn_q_b"),
        in_layer("self_attn.kv_a_proj_with_mqa", "attn_kv_a_mqa"),
        in_layer("self_attn.kv_a_layernorm", "attn_kv_a_norm"),
        in_layer("self_attn.kv_b_proj", "attn_k_b", OfHeads(_key_rows, turned=True)),
        in_layer("self_attn.kv_b_proj", "attn_v_b", OfHeads(_value_rows)),
        in_layer("self_attn.o_proj", "attn_output"),
        *FEED_FORWARD_TENSORS,
        *EXPERTS,
        router_bias("mlp.gate.e_score_correction_bias"),
        *SHARED_EXPERTS,
        *PREDICTION,
    ),
    hparams=hyperparameters,
    build=Decoder(
        attention=latent_attention,
        feed_forward=by_feed_forward(dense=Gated(swiglu), experts=Routed(normalize=False)),
    ),
)
