"""Qwen3-Next: gated delta nets beside gated attention, norms stored less 1, experts beside a shared one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from loragraft.archs.arch import ATTENTION, Arch, ConfigClass
from loragraft.archs.blocks import (
    Attention,
    Decoder,
    Gated,
    GatedDeltaNet,
    Part,
    Routed,
    by_mixer,
    rms_norm,
    routed_if_there,
    swiglu,
)
from loragraft.archs.config import Config
from loragraft.archs.hparams import Hparams, Recurrence, Routing, read_decoder
from loragraft.archs.keys import (
    Computed,
    Count,
    NormTopK,
    RopeParameters,
    RotaryPart,
    Rule,
    SparseLayers,
    usual,
)
from loragraft.archs.metadata import MetadataKeys
from loragraft.archs.recurrence import RecurrentLayers, with_recurrent_layers
from loragraft.archs.tensors import ATTENTION as ATTENTION_TENSORS
from loragraft.archs.tensors import (
    EXPERTS,
    FEED_FORWARD,
    LOG_DECAY,
    PLUS_ONE,
    SHARED_EXPERT,
    SQUEEZED,
    Order,
    Reordered,
    Rows,
    Tensor,
    in_layer,
)
from loragraft.formats.gguf.values import Value

#: Behind the usual keys.
DELTA_KEYS: tuple[Rule, ...] = (
    Count("ssm.conv_kernel", ("linear_conv_kernel_dim",)),
    Count("ssm.state_size", ("linear_key_head_dim",)),
    Count("ssm.group_count", ("linear_num_key_heads",)),
    Count("ssm.time_step_rank", ("linear_num_value_heads",)),
    Computed(
        frozenset(["linear_value_head_dim"]),
        lambda config: {
            "ssm.inner_size": Value.u32(
                config.integer("linear_value_head_dim") * config.integer("linear_num_value_heads")
            )
        },
        lambda model: {"linear_value_head_dim": _sizes(model.h).value_dim},
    ),
    RecurrentLayers(),
    RotaryPart(),
)
EXPERT_KEYS: tuple[Rule, ...] = (
    Count("expert_feed_forward_length", ("moe_intermediate_size",)),
    Count("expert_shared_feed_forward_length", ("shared_expert_intermediate_size",)),
)
DELTA_DEFAULTS = {
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.25,
    "max_position_embeddings": 32768,
    "head_dim": 256,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "full_attention_interval": 4,
}


def is_predictor(config: Config, name: str) -> bool:
    """Of layers that predict further tokens."""
    return name.startswith(("mtp.", "model.mtp."))


def _sizes(h: Hparams) -> Recurrence:
    assert h.recurrence is not None
    return h.recurrence


def _by_key_head(index: int) -> Callable[[Hparams, int, int], Order]:
    """Part `index` of rows that stand by key head: its query, its key, its values, their gates."""

    def find(h: Hparams, layer: int, rows: int) -> Order:
        sizes = _sizes(h)
        each = sizes.heads // sizes.key_heads * sizes.value_dim
        borders = np.cumsum([0, sizes.key_dim, sizes.key_dim, each, each])
        if rows != sizes.key_heads * borders[-1]:
            raise ValueError(f"{rows} rows are not those of {sizes.key_heads} key heads")
        groups = np.arange(rows).reshape(sizes.key_heads, -1)
        return groups[:, borders[index] : borders[index + 1]].reshape(-1)

    return find


def _q_k_v(h: Hparams, layer: int, rows: int) -> Order:
    return np.concatenate([_by_key_head(index)(h, layer, rows) for index in range(3)])


def delta_tensors(own: tuple[Tensor, ...], heads: Rows | None, conv: Rows | None) -> tuple[Tensor, ...]:
    """A model's tensors, `own` being the projections of a delta net; orders of what there is for each value head, and
    of the convolution's channels."""

    def exact(hf: str, gguf: str) -> Tensor:
        return Tensor(f"model.layers.{{i}}.linear_attn.{hf}", f"blk.{{i}}.{gguf}", heads, exact=True)

    return (
        Tensor("model.embed_tokens", "token_embd"),
        Tensor("model.norm", "output_norm", values=PLUS_ONE),
        Tensor("lm_head", "output"),
        in_layer("input_layernorm", "attn_norm", values=PLUS_ONE),
        in_layer("post_attention_layernorm", "post_attention_norm", values=PLUS_ONE),
        *ATTENTION_TENSORS,
        in_layer("self_attn.q_norm", "attn_q_norm", values=PLUS_ONE),
        in_layer("self_attn.k_norm", "attn_k_norm", values=PLUS_ONE),
        replace(exact("A_log", "ssm_a"), values=LOG_DECAY),
        exact("dt_bias", "ssm_dt.bias"),
        replace(in_layer("linear_attn.conv1d", "ssm_conv1d", conv), shape=SQUEEZED),
        in_layer("linear_attn.norm", "ssm_norm"),
        *own,
        *FEED_FORWARD,
        *EXPERTS,
        *SHARED_EXPERT,
    )


def delta_decoder(tiled: bool, feed_forward: Part) -> Decoder:
    return Decoder(
        attention=by_mixer(
            attention=Attention(pairs="halves", head_norm=rms_norm, gated=True), delta=GatedDeltaNet(tiled)
        ),
        feed_forward=feed_forward,
        pre_norms=("attn_norm", "post_attention_norm"),
    )


def hyperparameters(keys: MetadataKeys) -> Hparams:
    h = read_decoder(keys)
    predictors = min(keys.count("nextn_predict_layers", 0, least=0), len(h.layers) - 1)
    routing = Routing("softmax", keys.flag("expert_weights_norm", True))
    return with_recurrent_layers(keys, replace(h, routing=routing, predictors=predictors), "delta")


QWEN3_NEXT = ConfigClass(
    "qwen3_next",
    "Qwen3NextForCausalLM",
    keys=usual.usual_keys(
        norm=usual.rms_norm(),
        rope=RopeParameters(partial=True),
        experts=True,
        more=(
            *EXPERT_KEYS,
            NormTopK(True),
            SparseLayers(),
            *DELTA_KEYS,
        ),
    ),
    defaults={
        **DELTA_DEFAULTS,
        "num_key_value_heads": 2,
        "num_experts": 512,
        "num_experts_per_tok": 10,
        "norm_topk_prob": True,
    },
    requires={"hidden_act": ("silu",)},
    biases={"attention_bias": ATTENTION},
    left_out=is_predictor,
)
ARCH = Arch(
    name="qwen3next",
    classes=(QWEN3_NEXT,),
    tensors=delta_tensors(
        (
            in_layer("linear_attn.in_proj_qkvz", "attn_qkv", Reordered(_q_k_v)),
            in_layer("linear_attn.in_proj_qkvz", "attn_gate", Reordered(_by_key_head(3))),
            in_layer("linear_attn.in_proj_ba", "ssm_ba"),
            in_layer("linear_attn.out_proj", "ssm_out"),
        ),
        None,
        None,
    ),
    hparams=hyperparameters,
    build=delta_decoder(tiled=False, feed_forward=routed_if_there(Gated(swiglu), Routed(normalize=True))),
)
