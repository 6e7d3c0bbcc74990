"""The keys of models with multi-head latent attention (`archs.deepseek2`), which GGUF has as one key-value head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from loragraft.archs.config import Config
from loragraft.archs.keys import usual
from loragraft.archs.keys.rope import RopeParameters
from loragraft.archs.keys.rule import GgufModel, Rule
from loragraft.archs.keys.values import Computed, Count, Number, shortest
from loragraft.archs.rope import standard_magnitude
from loragraft.errors import CheckpointError, UnsupportedError
from loragraft.formats.gguf.values import Metadata, Value

MULTIPLIER = "rope.scaling.yarn_log_multiplier"
"""A tenth of mscale_all_dim."""


def assumed(factor: float, all_dim: float) -> float:
    """What YaRN's cosines grow by in llama.cpp: with mscale_all_dim, only the scores grow."""
    return 1.0 if all_dim else standard_magnitude(factor)


class _Rope(RopeParameters):
    def to_gguf(self, config: Config) -> Metadata:
        kind, all_dim = config.rope["rope_type"], config.rope.get("mscale_all_dim")
        if all_dim and kind not in ("default", "yarn"):
            raise UnsupportedError(config.path, f"mscale_all_dim beside RoPE scaling {kind}", found=all_dim)
        if kind == "llama3":
            raise UnsupportedError(config.path, "RoPE scaling llama3 with latent attention")
        return super().to_gguf(config)

    def to_config(self, model: GgufModel) -> dict[str, Any]:
        found = RopeParameters(partial=True).to_config(model)
        all_dim = shortest(10 * model.keys.number(MULTIPLIER, 0.0, least=0.0))
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


def _gating_as_said(config: Config) -> Metadata:
    """Published files name it, transformers' do not."""
    known = {"softmax": 1, "sigmoid": 2}
    said = config.get("scoring_func")
    return {"expert_gating_func": Value.u32(known[said])} if said in known else {}


def _normalized(config: Config) -> Metadata:
    return {"expert_weights_norm": Value.boolean(True)} if config.get("norm_topk_prob") else {}


def _multiplier(config: Config) -> Metadata:
    all_dim = Config(config.path, config.rope).optional_number("mscale_all_dim")
    return {} if all_dim is None else {MULTIPLIER: Value.f32(0.1 * all_dim)}


def latent_keys(*first: Rule, dense: Rule, more: tuple[Rule, ...] = ()) -> tuple[Rule, ...]:
    layers, context, width, ff, heads, _, rope, norm, *experts, activation = usual.usual_keys(
        norm=usual.rms_norm(), rope=_Rope(assumed=assumed), experts=True, head_dim=_Heads(early=True)
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
        activation,
    )


def _query_rank(config: Config) -> Metadata:
    rank = config.given("q_lora_rank")
    return {} if rank is None else {"attention.q_lora_rank": Value.u32(config.integer("q_lora_rank"))}


def _query_rank_back(model: GgufModel) -> dict[str, Any]:
    key = "attention.q_lora_rank"
    return {"q_lora_rank": model.keys.count(key) if model.keys.has(key) else None}


def _normalized_back(model: GgufModel) -> dict[str, Any]:
    return {"norm_topk_prob": model.h.routing is not None and model.h.routing.normalize}
