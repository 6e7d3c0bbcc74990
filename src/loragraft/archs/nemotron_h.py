"""Nemotron-H (NVIDIA, arXiv 2504.03624): each layer is one part, Mamba-2, attention without RoPE, or a plain
feed-forward network with squared ReLU. Those with experts are in `nemotron_h_moe.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from loragraft.archs.arch import Arch, ConfigClass
from loragraft.archs.blocks import (
    Attention,
    Decoder,
    Mamba2,
    Part,
    Plain,
    by_mixer,
    squared_relu,
)
from loragraft.archs.config import CONTEXT, Config
from loragraft.archs.hparams import Hparams, Layer, read_decoder, read_routing
from loragraft.archs.keys import (
    FILE_TYPE,
    Computed,
    Count,
    GgufModel,
    HeadDim,
    Layers,
    Rule,
    usual,
)
from loragraft.archs.keys.layer_kinds import layer_kinds
from loragraft.archs.mamba_layers import LONGEST, mamba_tensors
from loragraft.archs.metadata import MetadataKeys
from loragraft.archs.qwen3_next import is_predictor
from loragraft.archs.recurrence import read_recurrence
from loragraft.archs.tensors import RopePairs, Rows, Tensor
from loragraft.errors import CheckpointError
from loragraft.formats.gguf.values import Metadata, Value, ValueType

MAMBA, ATTENDS, DENSE, EXPERTS = "mamba", "attention", "mlp", "moe"
_LETTERS = {"M": MAMBA, "*": ATTENDS, "-": DENSE, "E": EXPERTS}
_LISTS = ("layers_block_type", "layer_types")
_SIZES = ("expert_shared_feed_forward_length", "expert_shared_count", "moe_latent_size")
"""That the tensors say too."""
_LEAST_STEP = 0.001
"""Of a time step, in transformers. llama.cpp has none."""


def _kinds(config: Config) -> list[str]:
    pattern = config.get("hybrid_override_pattern")
    if pattern is None:
        key = next((key for key in _LISTS if config.get(key) is not None), _LISTS[0])
        return layer_kinds(config, tuple(_LETTERS.values()), lambda config, layer: MAMBA, key)
    if not isinstance(pattern, str) or len(pattern) != config.n_layers or not {*pattern} <= _LETTERS.keys():
        raise CheckpointError(
            config.path,
            "bad hybrid_override_pattern",
            found=repr(pattern)[:80],
            expected=f"{config.n_layers} of {', '.join(_LETTERS)}",
        )
    return [_LETTERS[letter] for letter in pattern]


def has_experts(values: Mapping[str, Any]) -> bool:
    """Whether there is a layer of experts: only then has llama.cpp another architecture."""
    kinds = (values.get(key) for key in ("hybrid_override_pattern", *_LISTS))
    return any(kind == "E" or kind == EXPERTS for kind in next((k for k in kinds if k is not None), ()))


def _by_layer(key: str, sizes: Mapping[str, int], config: Config) -> Metadata:
    return {key: Value.numbers(ValueType.INT32, [sizes.get(kind, 0) for kind in _kinds(config)])}


def _feed_forward(config: Config) -> Metadata:
    sizes = {DENSE: config.integer("intermediate_size")}
    if has_experts(config.values):
        sizes[EXPERTS] = config.integer("moe_intermediate_size")
    return _by_layer("feed_forward_length", sizes, config)


def _is_dense(model: GgufModel, layer: int) -> bool:
    return f"blk.{layer}.ffn_up.weight" in model.shapes


def _feed_forward_back(model: GgufModel) -> dict[str, Any]:
    sizes = [own.ff for layer, own in enumerate(model.h.layers) if _is_dense(model, layer)]
    return {"intermediate_size": max(sizes)} if sizes else {}


def _kv_heads_back(model: GgufModel) -> dict[str, Any]:
    letters = {MAMBA: "M", ATTENDS: "*"}
    kinds = [
        letters[own.mixer] if own.mixer in letters else "-" if _is_dense(model, layer) else "E"
        for layer, own in enumerate(model.h.layers)
    ]
    heads = max(layer.kv_heads for layer in model.h.layers) or model.h.layers[0].heads
    return {"num_key_value_heads": heads, "hybrid_override_pattern": "".join(kinds)}


def _inner(config: Config) -> Metadata:
    heads = config.integer("mamba_num_heads")
    inner = heads * config.integer("mamba_head_dim")
    return {"ssm.inner_size": Value.u32(inner), "ssm.time_step_rank": Value.u32(heads)}


def _inner_back(model: GgufModel) -> dict[str, Any]:
    sizes = model.h.recurrence
    assert sizes is not None
    return {"mamba_num_heads": sizes.heads, "mamba_head_dim": sizes.value_dim}


def hyperparameters(keys: MetadataKeys) -> Hparams:
    """Mamba's are the layers that have neither key-value heads nor a feed-forward width. Nothing turns."""
    keys.cover("rope.scaling.finetuned", *_SIZES)

    def layer(_: int, own: Layer) -> Layer:
        mixer = ATTENDS if own.kv_heads else DENSE if own.ff else MAMBA
        return replace(own, mixer=mixer, rope=None)

    h = replace(read_decoder(keys).with_layers(layer), recurrence=read_recurrence(keys))
    if not h.experts:
        return h
    return replace(h, routing=read_routing(keys, "sigmoid", normalize=True, group_best=2))


def keys(*more: Rule, before: tuple[Rule, ...] = ()) -> tuple[Rule, ...]:
    """`before` the file type, and `more` behind all."""
    return (
        Layers(),
        Computed(
            frozenset(CONTEXT),
            lambda config: {"context_length": Value.u32(LONGEST)},
            lambda model: {"max_position_embeddings": model.h.context},
        ),
        Count("embedding_length", usual.WIDTH),
        Computed(
            frozenset(["intermediate_size"]),
            _feed_forward,
            _feed_forward_back,
        ),
        Count("attention.head_count", usual.HEADS),
        Computed(
            frozenset(["num_key_value_heads", "hybrid_override_pattern", *_LISTS]),
            lambda config: _by_layer("attention.head_count_kv", {ATTENDS: config.n_kv_heads}, config),
            _kv_heads_back,
        ),
        usual.layer_norm("layer_norm_epsilon"),
        *before,
        FILE_TYPE,
        Count("vocab_size", ("vocab_size",)),
        Computed(
            frozenset(),
            lambda config: {"rope.dimension_count": Value.u32(config.hidden_size // config.n_heads)},
        ),
        Count("ssm.conv_kernel", ("conv_kernel",)),
        Count("ssm.state_size", ("ssm_state_size",)),
        Count("ssm.group_count", ("n_groups",)),
        Computed(frozenset(["mamba_num_heads", "mamba_head_dim"]), _inner, _inner_back),
        Computed(frozenset(), lambda config: {"rope.scaling.finetuned": Value.boolean(False)}),
        Computed(
            frozenset(["use_conv_bias"]),
            lambda config: {},
            lambda model: {"use_conv_bias": any(name.endswith("conv1d.bias") for name in model.shapes)},
        ),
        HeadDim(always=True),
        *more,
    )


DEFAULTS = {
    "layer_norm_epsilon": 1e-5,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 21504,
    "conv_kernel": 4,
    "ssm_state_size": 128,
    "n_groups": 8,
    "mamba_num_heads": 128,
    "mamba_head_dim": 64,
    "time_step_min": _LEAST_STEP,
    "mlp_hidden_act": "relu2",
    "mamba_hidden_act": "silu",
}
REQUIRES = {
    "mlp_hidden_act": ("relu2",),
    "mamba_hidden_act": ("silu",),
    "time_step_min": (_LEAST_STEP,),
}
BIASES = {
    "use_bias": frozenset(["ssm_in", "ssm_out"]),
    "mlp_bias": frozenset(["ffn_up", "ffn_down"]),
}
IGNORES = frozenset(
    """
    attention_bias chunk_size expand hidden_dropout mamba_proj_bias mamba_ssm_cache_dtype mtp_hybrid_override_pattern
    mtp_layers_block_type num_logits_to_keep num_nextn_predict_layers rescale_prenorm_residual residual_in_fp32
    sliding_window time_step_floor time_step_limit time_step_max use_mamba_kernels
    """.split()  # noqa: SIM905
)
NEMOTRON_H = ConfigClass(
    "nemotron_h",
    "NemotronHForCausalLM",
    keys=keys(),
    defaults=DEFAULTS,
    requires=REQUIRES,
    biases=BIASES,
    ignores=IGNORES | {"routed_scaling_factor"},
    left_out=is_predictor,
    experts=False,
    when=lambda values: not has_experts(values),
)


def _tensors(root: str) -> tuple[Tensor, ...]:
    def layer(hf: str, gguf: str, rows: Rows | None = None) -> Tensor:
        return Tensor(f"{root}.layers.{{i}}.{hf}", f"blk.{{i}}.{gguf}", rows)

    return (
        Tensor(f"{root}.embeddings", "token_embd"),
        Tensor(f"{root}.norm_f", "output_norm"),
        layer("norm", "attn_norm"),
        # in the order of RoPE, which they do not have
        layer("mixer.q_proj", "attn_q", RopePairs("heads")),
        layer("mixer.k_proj", "attn_k", RopePairs("kv_heads")),
        layer("mixer.v_proj", "attn_v"),
        layer("mixer.o_proj", "attn_output"),
        layer("mixer.up_proj", "ffn_up"),
        layer("mixer.down_proj", "ffn_down"),
        *mamba_tensors("mixer", root),
    )


# checkpoints' names, and those that transformers has in memory, which adapters have
ROOTS = ("backbone", "model")
PLAIN = Plain(squared_relu)
PARTS: dict[str, Part] = {"attention": Attention(pairs="adjacent"), "mamba": Mamba2(least_step=_LEAST_STEP)}
TENSORS = (Tensor("lm_head", "output"), *(tensor for root in ROOTS for tensor in _tensors(root)))
ARCH = Arch(
    name="nemotron_h",
    classes=(NEMOTRON_H,),
    tensors=TENSORS,
    hparams=hyperparameters,
    build=Decoder(attention=by_mixer(**PARTS, mlp=PLAIN), feed_forward=None),
)
