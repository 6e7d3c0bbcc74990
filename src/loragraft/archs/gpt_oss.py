"""gpt-oss (OpenAI, arXiv 2508.10925): sinks, windows in every other layer, experts in MXFP4 with biases and a clamped
SwiGLU, YaRN whose ramp is not cut to whole pairs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from loragraft.archs.arch import ATTENTION, Arch, ConfigClass
from loragraft.archs.blocks import Attention, ClampedSwiglu, Decoder, Routed
from loragraft.archs.config import Config
from loragraft.archs.hparams import Hparams, Layer, read_decoder, read_windows
from loragraft.archs.keys import Computed, RopeParameters, usual
from loragraft.archs.keys.windows import Windows
from loragraft.archs.metadata import MetadataKeys
from loragraft.archs.rope import read_rope
from loragraft.archs.tensors import ATTENTION as ATTENTION_TENSORS
from loragraft.archs.tensors import OUTER, EveryOther, Tensor, in_layer
from loragraft.formats.gguf.values import Metadata, Value


def _slides(layer: int) -> bool:
    return layer % 2 == 0


def _experts_width(config: Config) -> Metadata:
    return {"expert_feed_forward_length": Value.u32(config.integer("intermediate_size"))}


def _ramp_note(config: Config) -> list[str]:
    if config.rope["rope_type"] != "yarn":
        return []
    return [
        "YaRN's ramp is not cut to whole pairs, as in transformers; llama.cpp cuts it: logits differ a little there"
    ]


GPT_OSS = ConfigClass(
    "gpt_oss",
    "GptOssForCausalLM",
    keys=usual.usual_keys(
        activation=None,
        norm=usual.rms_norm(),
        rope=RopeParameters(truncate=False, explicit=True),
        experts=True,
        more=(
            Windows(layers=lambda config, layer: _slides(layer), names=(), usual=_slides),
            Computed(frozenset(), _experts_width, say=_ramp_note),
        ),
    ),
    defaults={
        "rms_norm_eps": 1e-5,
        "rope_theta": 150000.0,
        "rope_parameters": {
            "rope_type": "yarn",
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 4096,
        },
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "num_local_experts": 128,
        "num_experts_per_tok": 4,
        "sliding_window": 128,
        "attention_bias": True,
    },
    requires={
        "hidden_act": ("silu",),
        "swiglu_limit": (7.0,),
        "swiglu_alpha": (1.702,),
    },
    ignores=frozenset(["experts_per_token", "initial_context_length"]),
    biases={
        "attention_bias": ATTENTION,
        "": frozenset(["ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"]),
    },
)


def hyperparameters(keys: MetadataKeys) -> Hparams:
    h = read_decoder(keys)
    windows = read_windows(keys, len(h.layers), _slides)
    first = h.layers[0]
    rope = read_rope(keys, first.key_dim, first.key_dim, truncate=False)

    def layer(index: int, own: Layer) -> Layer:
        return replace(own, window=windows[index], rope=rope)

    return h.with_layers(layer)


def _experts() -> tuple[Tensor, ...]:
    """Floats [experts, in, out], or MXFP4 [experts, out, in]; the rows of gate and up stand in turn."""
    found: list[Tensor] = []
    for hf, gguf, index in (
        ("down_proj", "ffn_down_exps", None),
        ("gate_up_proj", "ffn_gate_exps", 0),
        ("gate_up_proj", "ffn_up_exps", 1),
    ):
        rows: Any = None if index is None else EveryOther(index)
        name, weight = f"model.layers.{{i}}.mlp.experts.{hf}", f"blk.{{i}}.{gguf}.weight"
        found += [
            Tensor(name, weight, rows, exact=True, transposed=True),
            Tensor(f"{name}_blocks", weight, rows, exact=True),
            Tensor(f"{name}_bias", f"blk.{{i}}.{gguf}.bias", exact=True, columns=rows),
        ]
    return tuple(found)


ARCH = Arch(
    name="gpt-oss",
    classes=(GPT_OSS,),
    tensors=(
        *OUTER,
        in_layer("input_layernorm", "attn_norm"),
        *ATTENTION_TENSORS,
        Tensor("model.layers.{i}.self_attn.sinks", "blk.{i}.attn_sinks.weight", exact=True),
        in_layer("post_attention_layernorm", "post_attention_norm"),
        in_layer("mlp.router", "ffn_gate_inp"),
        *_experts(),
    ),
    hparams=hyperparameters,
    build=Decoder(
        attention=Attention(pairs="halves"),
        feed_forward=Routed(normalize=True, gate=ClampedSwiglu()),
        pre_norms=("attn_norm", "post_attention_norm"),
    ),
)
