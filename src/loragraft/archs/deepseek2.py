"""DeepSeek-V2 (arXiv 2405.04434), V3 and R1 (arXiv 2412.19437) and GLM-4.7 Flash: multi-head latent attention, dense
layers below, then experts of the best groups, beside shared ones. V2 judges a group by its best expert, under a
softmax; the others by its best two, under a sigmoid and a bias of the choice."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from loragraft.archs.arch import FEED_FORWARD, Arch, ConfigClass
from loragraft.archs.blocks import Decoder, Gated, Routed, by_feed_forward, latent_attention, swiglu
from loragraft.archs.config import Config
from loragraft.archs.glm4_moe import ALL_LAYERS, PREDICTION, predictors, with_predictors
from loragraft.archs.hparams import Hparams, Latent, dense_below, read_decoder, read_routing
from loragraft.archs.keys import Computed, Count, GgufModel, Number, RopeParameters, Rule, usual
from loragraft.archs.keys.values import shortest
from loragraft.archs.metadata import MetadataKeys
from loragraft.archs.rope import standard_magnitude
from loragraft.archs.tensors import EXPERTS, NORMS, OUTER, SHARED_EXPERTS, OfHeads, in_layer, router_bias
from loragraft.archs.tensors import FEED_FORWARD as FEED_FORWARD_TENSORS
from loragraft.errors import CheckpointError, UnsupportedError
from loragraft.formats.gguf.values import Metadata, Value

_MULTIPLIER = "rope.scaling.yarn_log_multiplier"
"""A tenth of mscale_all_dim."""


def _assumed(factor: float, all_dim: float) -> float:
    """What YaRN's cosines grow by in llama.cpp: with mscale_all_dim, only the scores grow."""
    return 1.0 if all_dim else standard_magnitude(factor)


class _Rope(RopeParameters):
    def to_gguf(self, config: Config) -> Metadata:
        kind, all_dim = config.rope["rope_type"], config.rope.get("mscale_all_dim")
        if all_dim and kind not in ("default", "yarn"):
            raise UnsupportedError(config.path, f"mscale_all_dim beside RoPE scaling {kind}", found=all_dim)
        return super().to_gguf(config)

    def to_config(self, model: GgufModel) -> dict[str, Any]:
        found = RopeParameters(partial=True).to_config(model)
        all_dim = shortest(10 * model.keys.number(_MULTIPLIER, 0.0, least=0.0))
        scaling = found.get("rope_scaling", {})
        if all_dim and scaling.get("rope_type") == "yarn":
            relative = model.keys.number("rope.scaling.attn_factor", 1.0)
            scaling |= {"mscale": all_dim, "mscale_all_dim": all_dim}
            if relative != 1.0:
                scaling["attention_factor"] = shortest(relative)
        return found


@dataclass(frozen=True)
class _Heads(Rule):
    """Heads as the absorbed form has them, one for keys and values; their own sizes under names of their own. `early`:
    where the converter writes the first two if config.json has a head_dim."""

    early: bool = False

    @property
    def config_keys(self) -> frozenset[str]:
        if self.early:
            return frozenset(["head_dim", "qk_head_dim"])
        return frozenset(["qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "kv_lora_rank"])

    def to_gguf(self, config: Config) -> Metadata:
        rank, turned = config.integer("kv_lora_rank"), config.integer("qk_rope_head_dim")
        keys = {"attention.key_length": Value.u32(rank + turned), "attention.value_length": Value.u32(rank)}
        if self.early:
            return keys if config.get("head_dim") is not None else {}
        return {
            "attention.kv_lora_rank": Value.u32(rank),
            **keys,
            "attention.key_length_mla": Value.u32(config.integer("qk_nope_head_dim") + turned),
            "attention.value_length_mla": Value.u32(config.integer("v_head_dim")),
        }

    def to_config(self, model: GgufModel) -> dict[str, Any]:
        sizes = model.h.latent
        assert sizes is not None
        return {
            "kv_lora_rank": sizes.rank,
            "qk_nope_head_dim": sizes.plain,
            "qk_rope_head_dim": sizes.turned,
            "v_head_dim": sizes.value,
        }


def _one_kv_head(config: Config) -> Metadata:
    if config.n_kv_heads != config.n_heads:
        raise CheckpointError(
            config.path,
            "bad num_key_value_heads",
            found=config.n_kv_heads,
            expected=f"{config.n_heads}, as heads",
        )
    return {"attention.head_count_kv": Value.u32(1)}


class _Groups(Rule):
    """V2 has groups of experts only if it says how to choose in them."""

    @property
    def config_keys(self) -> frozenset[str]:
        return frozenset(["n_group", "topk_group"])

    def to_gguf(self, config: Config) -> Metadata:
        method = config.get("topk_method")
        if method not in (None, "greedy", "group_limited_greedy", "noaux_tc"):
            raise UnsupportedError(
                config.path, "unknown way to choose experts", found=f"topk_method = {method!r}"
            )
        if method == "greedy" and (config.optional_integer("n_group") or 1) > 1:
            return {}
        return {key: value for rule in usual.GROUPS for key, value in rule.to_gguf(config).items()}

    def to_config(self, model: GgufModel) -> dict[str, Any]:
        return {key: value for rule in usual.GROUPS for key, value in rule.to_config(model).items()}

    def notes(self, config: Config, arch: str) -> list[str]:
        limited = config.get("topk_method") == "group_limited_greedy"
        if not limited or (config.optional_integer("n_group") or 1) < 2:
            return []
        return [
            f"{config.path.name}: a group of experts is judged by its best one, as in transformers; llama.cpp takes "
            "the best two, so that other experts may be chosen there"
        ]


def _method_back(model: GgufModel) -> dict[str, Any]:
    routing = model.h.routing
    if routing is not None and routing.gating != "softmax":
        raise UnsupportedError(
            "deepseek2.expert_gating_func", "DeepSeek-V2 has a softmax", found=routing.gating
        )
    limited = routing is not None and routing.groups > 1
    return {"topk_method": "group_limited_greedy" if limited else "greedy"}


def _gating_as_said(config: Config) -> Metadata:
    """Published files name it, transformers' do not."""
    known = {"softmax": 1, "sigmoid": 2}
    said = config.get("scoring_func")
    return {"expert_gating_func": Value.u32(known[said])} if said in known else {}


def _normalized(config: Config) -> Metadata:
    return {"expert_weights_norm": Value.boolean(True)} if config.get("norm_topk_prob") else {}


def _multiplier(config: Config) -> Metadata:
    all_dim = Config(config.path, config.rope).optional_number("mscale_all_dim")
    return {} if all_dim is None else {_MULTIPLIER: Value.f32(0.1 * all_dim)}


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


def _keys(*first: Rule, dense: Rule, more: tuple[Rule, ...] = ()) -> tuple[Rule, ...]:
    layers, context, width, ff, heads, _, rope, norm, *experts = usual.usual_keys(
        norm=usual.rms_norm(), rope=_Rope(assumed=_assumed), experts=True, head_dim=_Heads(early=True)
    )
    *experts, early, file_type = experts
    return (
        *(first or (layers,)),
        *(context, width, ff, heads),
        Computed(
            frozenset(["num_key_value_heads"]),
            _one_kv_head,
            lambda model: {"num_key_value_heads": model.h.layers[0].heads},
        ),
        *(rope, norm, *experts),
        _Groups(),
        Computed(frozenset(["scoring_func"]), _gating_as_said),
        *(early, file_type, dense),
        Count("vocab_size", ("vocab_size",)),
        Computed(frozenset(["q_lora_rank"]), _query_rank, _query_rank_back),
        _Heads(),
        Count("expert_feed_forward_length", ("moe_intermediate_size",)),
        Count("expert_shared_count", ("n_shared_experts",)),
        Number("expert_weights_scale", "routed_scaling_factor"),
        Computed(frozenset(["norm_topk_prob"]), _normalized, _normalized_back),
        Computed(
            frozenset(),
            lambda config: {"rope.dimension_count": Value.u32(config.integer("qk_rope_head_dim"))},
        ),
        Computed(frozenset(), _multiplier),
        *more,
    )


def _query_rank(config: Config) -> Metadata:
    rank = config.given("q_lora_rank")
    return {} if rank is None else {"attention.q_lora_rank": Value.u32(config.integer("q_lora_rank"))}


def _query_rank_back(model: GgufModel) -> dict[str, Any]:
    key = "attention.q_lora_rank"
    return {"q_lora_rank": model.keys.count(key) if model.keys.has(key) else None}


def _normalized_back(model: GgufModel) -> dict[str, Any]:
    return {"norm_topk_prob": model.h.routing is not None and model.h.routing.normalize}


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
    keys=_keys(dense=_LEADING, more=(Computed(frozenset(["topk_method"]), lambda config: {}, _method_back),)),
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
        "hidden_act": ("silu",),
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
    keys=_keys(dense=_LEADING, more=(_SIGMOID,)),
    defaults=_DEFAULTS,
    requires={
        "hidden_act": ("silu",),
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
    keys=_keys(
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
    requires={"hidden_act": ("silu",), "scoring_func": ("sigmoid",), "rope_interleave": (True,)},
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
    all_dim = 10 * keys.number(_MULTIPLIER, 0.0, least=0.0)
    scaled = keys.text("rope.scaling.type", "linear") == "yarn"
    factor = keys.number("rope.scaling.factor", 1.0) if scaled else 1.0
    grown = standard_magnitude(factor, all_dim) if all_dim else 1.0
    less = _assumed(factor, all_dim) / standard_magnitude(factor)
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
