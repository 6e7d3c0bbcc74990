"""LFM2 with experts (Liquid AI, arXiv 2511.23404): most layers share tokens out among experts, chosen with a bias."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from loragraft.archs import lfm2
from loragraft.archs.arch import Arch, ConfigClass
from loragraft.archs.blocks import Gated, Routed, by_feed_forward, swiglu
from loragraft.archs.config import Config
from loragraft.archs.hparams import Hparams, dense_below, read_routing
from loragraft.archs.keys import Computed, Count, GgufModel, KvHeads, NormTopK, usual
from loragraft.archs.metadata import MetadataKeys
from loragraft.archs.recurrence import KvHeadsByKind
from loragraft.archs.tensors import Part, Tensor, experts, in_layer, router_bias
from loragraft.formats.gguf.values import Metadata, Value


def hyperparameters(keys: MetadataKeys) -> Hparams:
    """The weights of the experts chosen sum to 1, and are not scaled, unless the file says otherwise."""
    routing = read_routing(keys, "sigmoid", normalize=True)
    return replace(dense_below(keys, lfm2.hyperparameters(keys)), routing=routing)


def _scale(config: Config) -> Metadata:
    """llama.cpp has none here, and so its converter writes none."""
    scale = config.optional_number("routed_scaling_factor")
    return {} if scale in (None, 1.0) else {"expert_weights_scale": Value.f32(scale)}


def _scale_back(model: GgufModel) -> dict[str, Any]:
    return {"routed_scaling_factor": model.keys.optional_number("expert_weights_scale") or 1.0}


def _of_scale(config: Config) -> list[str]:
    if not _scale(config):
        return []
    said = f"routed_scaling_factor = {config.get('routed_scaling_factor')}"
    return [f"{said} is kept, but llama.cpp computes lfm2moe as if it were 1"]


def _bias_back(model: GgufModel) -> dict[str, Any]:
    return {"use_expert_bias": any(name.endswith(".exp_probs_b.bias") for name in model.shapes)}


def _of_bias(config: Config) -> list[str]:
    if config.get("use_expert_bias"):
        return []
    return ["use_expert_bias is false: llama.cpp wants that bias, and will not load the file"]


LFM2_MOE = ConfigClass(
    "lfm2_moe",
    "Lfm2MoeForCausalLM",
    keys=tuple(
        KvHeadsByKind(lfm2.CONV, lfm2.ATTENTION, lambda config, layer: lfm2.ATTENTION)
        if isinstance(rule, KvHeads)
        else rule
        for rule in usual.usual_keys(
            norm=usual.rms_norm("norm_eps"),
            experts=True,
            more=(
                Count("expert_feed_forward_length", ("moe_intermediate_size",)),
                Count("leading_dense_block_count", ("num_dense_layers",), optional=True),
                Computed(frozenset(), lambda config: {"expert_gating_func": Value.u32(2)}),
                Count("vocab_size", ("vocab_size",)),
                Count("shortconv.l_cache", ("conv_L_cache",)),
                NormTopK(True),
                Computed(frozenset(["routed_scaling_factor"]), _scale, _scale_back, _of_scale),
                Computed(frozenset(["use_expert_bias"]), lambda config: {}, _bias_back, _of_bias),
            ),
        )
    ),
    defaults={
        **lfm2.DEFAULTS,
        "intermediate_size": 7168,
        "moe_intermediate_size": 1792,
        "num_experts": 32,
        "num_experts_per_tok": 4,
        "num_dense_layers": 2,
        "norm_topk_prob": True,
        "use_expert_bias": True,
    },
    biases=lfm2.BIASES,
    ignores=frozenset(["tie_embedding"]),
    experts=True,
)
_STACKS = tuple(
    Tensor(f"model.layers.{{i}}.feed_forward.experts.{hf}", f"blk.{{i}}.{gguf}.weight", part, exact=True)
    for hf, gguf, part in (
        ("gate_up_proj", "ffn_gate_exps", Part(0)),
        ("gate_up_proj", "ffn_up_exps", Part(1)),
        ("down_proj", "ffn_down_exps", None),
    )
)
ARCH = Arch(
    name="lfm2moe",
    classes=(LFM2_MOE,),
    tensors=(
        *lfm2.ARCH.tensors,
        in_layer("feed_forward.gate", "ffn_gate_inp"),
        router_bias("feed_forward.expert_bias"),
        *experts("feed_forward", gate="w1", up="w3", down="w2"),
        *_STACKS,
    ),
    hparams=hyperparameters,
    build=replace(
        lfm2.DECODER,
        feed_forward=by_feed_forward(dense=Gated(swiglu), experts=Routed(normalize=True, gating="sigmoid")),
    ),
)
