"""Falcon-H1 (TII, arXiv 2507.22448): attention and Mamba-2 side by side in each layer, and numbers that multiply what
linears give. GGUF has these in the weights; the keys with them are for adapters, and no other program reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from loragraft.archs.arch import ATTENTION, FEED_FORWARD, Arch, ConfigClass
from loragraft.archs.blocks import Attention, Decoder, Gated, Mamba2, swiglu, together
from loragraft.archs.config import Config
from loragraft.archs.hparams import Hparams, read_decoder
from loragraft.archs.keys import (
    FILE_TYPE,
    Computed,
    Count,
    GgufModel,
    HeadDim,
    KvHeads,
    Layers,
    RopeParameters,
    Rule,
    usual,
)
from loragraft.archs.keys.values import shortest
from loragraft.archs.mamba_layers import UNBOUNDED, mamba_tensors
from loragraft.archs.metadata import MetadataKeys
from loragraft.archs.recurrence import read_recurrence
from loragraft.archs.tensors import ATTENTION as ATTENTION_TENSORS
from loragraft.archs.tensors import FEED_FORWARD as FEED_FORWARD_TENSORS
from loragraft.archs.tensors import Factors, Tensor, in_layer
from loragraft.arrays import Floats
from loragraft.errors import CheckpointError, UnsupportedError
from loragraft.formats.gguf.values import Metadata, Value, ValueType

_ONE = (
    "embedding_multiplier",
    "lm_head_multiplier",
    "attention_in_multiplier",
    "attention_out_multiplier",
    "key_multiplier",
    "ssm_in_multiplier",
    "ssm_out_multiplier",
)
_SEVERAL = {"mlp_multipliers": 2, "ssm_multipliers": 5}
"""Of gate and down; of gate, x, B, C and the time step."""
_TIED = "tie_word_embeddings"


def _written(config: Config) -> Metadata:
    keys: Metadata = {name: Value.f32(config.number(name)) for name in _ONE}
    for name, count in _SEVERAL.items():
        found = config.get(name)
        if (
            not isinstance(found, list)
            or len(found) != count
            or not all(type(n) in (int, float) for n in found)
        ):
            raise CheckpointError(
                config.path, f"bad {name}", found=repr(found)[:80], expected=f"{count} numbers"
            )
        keys[name] = Value.numbers(ValueType.FLOAT32, found)
    if not all((np.asarray(value.data) > 0).all() for value in keys.values()):
        raise UnsupportedError(config.path, "multipliers that are not above 0")
    return {**keys, **({_TIED: Value.boolean(True)} if config.get(_TIED) else {})}


def _back(model: GgufModel) -> dict[str, Any]:
    """The multipliers that the file says. Raises UnsupportedError for one that does not: its weights cannot be told
    from their multipliers."""
    if lacking := [name for name in (*_ONE, *_SEVERAL) if name not in model.h.extra]:
        raise UnsupportedError(
            f"{model.h.arch}.{lacking[0]}",
            "is missing: this GGUF has its weights times multipliers that it does not say",
            hint="export from the Hugging Face folder, or from a GGUF that loragraft converted",
        )
    one = {name: shortest(model.h.extra[name]) for name in _ONE}
    return {**one, **{name: [shortest(each) for each in model.h.extra[name]] for name in _SEVERAL}}


def _gate_first(config: Config) -> Metadata:
    if config.get("mamba_rms_norm") and config.get("mamba_norm_before_gate"):
        raise UnsupportedError(
            config.path,
            "GGUF has Mamba's norm behind its gate",
            found="mamba_norm_before_gate = True",
            expected="False",
        )
    return {}


def _inner(config: Config) -> Metadata:
    inner = config.optional_integer("mamba_d_ssm") or config.integer("mamba_expand") * config.hidden_size
    return {"ssm.inner_size": Value.u32(inner)}


def _inner_back(model: GgufModel) -> dict[str, Any]:
    heads, inner = model.keys.count("ssm.time_step_rank"), model.keys.count("ssm.inner_size")
    return {
        "mamba_d_ssm": inner,
        "mamba_d_head": inner // heads,
        "mamba_conv_bias": any(name.endswith(".ssm_conv1d.bias") for name in model.shapes),
    }


def _norm_back(model: GgufModel) -> dict[str, Any]:
    normed = any(name.endswith(".ssm_norm.weight") for name in model.shapes)
    return {"mamba_rms_norm": normed, "mamba_norm_before_gate": False}


def hyperparameters(keys: MetadataKeys) -> Hparams:
    """`extra` has the multipliers that the file says."""
    said: dict[str, Any] = {name: keys.number(name) for name in _ONE if keys.has(name)}
    for name, count in _SEVERAL.items():
        found = keys.get(name)
        if isinstance(found, np.ndarray) and found.shape == (count,) and np.isfinite(found).all():
            said[name] = tuple(float(number) for number in found)
    said[_TIED] = keys.flag(_TIED, False)
    return replace(read_decoder(keys), recurrence=read_recurrence(keys), extra=said)


def _said(h: Hparams, name: str) -> Any:
    if name not in h.extra:
        raise ValueError(f"this GGUF does not say its {name}, by which its rows are multiplied")
    return h.extra[name]


def _times(*names: str) -> Callable[[Hparams], tuple[float | Floats, ...]]:
    return lambda h: tuple(_said(h, name) for name in names)


def _of_mlp(index: int) -> Factors:
    return Factors(
        *[lambda h: (_said(h, "mlp_multipliers")[index],)] * 2,
    )


def _of_mamba(h: Hparams) -> tuple[Floats]:
    sizes, each = h.recurrence, _said(h, "ssm_multipliers")
    assert sizes is not None
    inner, keys = sizes.heads * sizes.value_dim, sizes.key_heads * sizes.key_dim
    return (np.repeat(np.asarray(each, np.float32), [inner, inner, keys, keys, sizes.heads]),)


#: By GGUF's name. Each product is rounded, in the order of llama.cpp's converter.
_FACTORS = {
    "token_embd": Factors(_times("embedding_multiplier")),
    "output": Factors(_times("lm_head_multiplier")),
    "attn_q": Factors(_times("attention_in_multiplier")),
    "attn_k": Factors(_times("key_multiplier", "attention_in_multiplier"), _times("key_multiplier")),
    "attn_v": Factors(_times("attention_in_multiplier")),
    "attn_output": Factors(*[_times("attention_out_multiplier")] * 2),
    "ffn_gate": _of_mlp(0),
    "ffn_down": _of_mlp(1),
    "ssm_in": Factors(lambda h: (_said(h, "ssm_in_multiplier"), *_of_mamba(h)), _of_mamba),
    "ssm_out": Factors(*[_times("ssm_out_multiplier")] * 2),
}


def _has_own_output(h: Hparams) -> bool:
    """Whether the output is the embedding, times another number: GGUF has it as a tensor then."""
    embedding, output = (h.extra.get(name) for name in ("embedding_multiplier", "lm_head_multiplier"))
    return bool(h.extra.get(_TIED)) and embedding != output


_KEYS: tuple[Rule, ...] = (
    Count("context_length", ("max_position_embeddings",)),
    Count("embedding_length", usual.WIDTH),
    Count("feed_forward_length", usual.FEED_FORWARD),
    Count("attention.head_count", usual.HEADS),
    Layers(),
    Count("ssm.conv_kernel", ("mamba_d_conv",)),
    Computed(frozenset(["mamba_d_ssm", "mamba_expand"]), _inner, _inner_back),
    Count("ssm.state_size", ("mamba_d_state",)),
    Count("ssm.time_step_rank", ("mamba_n_heads",)),
    Count("ssm.group_count", ("mamba_n_groups",)),
    usual.rms_norm(),
    FILE_TYPE,
    Count("vocab_size", ("vocab_size",)),
    KvHeads(),
    HeadDim(always=True),
    RopeParameters(),
    Computed(frozenset([*_ONE, *_SEVERAL]), _written, _back),
    Computed(frozenset(["mamba_rms_norm", "mamba_norm_before_gate"]), _gate_first, _norm_back),
)
FALCON_H1 = ConfigClass(
    "falcon_h1",
    "FalconH1ForCausalLM",
    keys=_KEYS,
    defaults={
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 8192,
        "num_key_value_heads": 8,
        "mamba_d_ssm": 1024,
        "mamba_n_heads": 128,
        "mamba_n_groups": 1,
        "mamba_d_state": 256,
        "mamba_d_conv": 4,
        "mamba_expand": 2,
        "mamba_norm_before_gate": True,
        "mamba_rms_norm": False,
        "time_step_limit": UNBOUNDED[0],
        **dict.fromkeys(_ONE, 1.0),
        **{name: [1.0] * count for name, count in _SEVERAL.items()},
    },
    requires={"hidden_act": ("silu",), "time_step_limit": UNBOUNDED},
    biases={
        "attention_bias": ATTENTION,
        "mlp_bias": FEED_FORWARD,
        "mamba_proj_bias": frozenset(["ssm_in"]),
        "projectors_bias": frozenset(["ssm_out"]),
    },
    ignores=frozenset(
        """
        attn_layer_indices layer_types layers_block_type mamba_chunk_size mamba_conv_bias mamba_d_head mamba_use_mlp
        num_logits_to_keep
        """.split()  # noqa: SIM905
    ),
    experts=False,
)


def _multiplied(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(replace(one, factors=_FACTORS.get(one.gguf.rpartition(".")[2])) for one in tensors)


ARCH = Arch(
    name="falcon-h1",
    classes=(FALCON_H1,),
    tensors=_multiplied(
        (
            Tensor("model.embed_tokens", "token_embd"),
            Tensor("model.final_layernorm", "output_norm"),
            Tensor("lm_head", "output"),
            Tensor("model.embed_tokens", "output", when=_has_own_output),
            in_layer("input_layernorm", "attn_norm"),
            # llama.cpp has it without `.weight`
            Tensor("model.layers.{i}.pre_ff_layernorm.weight", "blk.{i}.ffn_norm", exact=True),
            *ATTENTION_TENSORS,
            *mamba_tensors("mamba"),
            *(replace(one, hf=one.hf.replace(".mlp.", ".feed_forward.")) for one in FEED_FORWARD_TENSORS),
        )
    ),
    hparams=hyperparameters,
    build=Decoder(attention=together(Attention(pairs="halves"), Mamba2()), feed_forward=Gated(swiglu)),
)
