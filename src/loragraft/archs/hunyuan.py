"""Hunyuan V1, dense (Tencent): Llama with norms of q and k behind their rotation, and a base of RoPE that is stretched
by a power of `alpha`."""

from __future__ import annotations

from dataclasses import dataclass

from loragraft.archs.arch import ATTENTION, Arch, ConfigClass
from loragraft.archs.blocks import Attention, Decoder, Gated, rms_norm, swiglu
from loragraft.archs.config import Config
from loragraft.archs.keys import Computed, HeadDim, RopeParameters, usual
from loragraft.archs.tensors import ATTENTION as ATTENTION_TENSORS
from loragraft.archs.tensors import FEED_FORWARD, NORMS, OUTER, in_layer
from loragraft.errors import CheckpointError, UnsupportedError
from loragraft.formats.gguf.values import Metadata, Value

#: What llama.cpp's converter writes for the context of models with an alpha: they say less than they were made for.
_CONTEXT = 256 * 1024


def _alpha(config: Config) -> float | None:
    if config.rope["rope_type"] != "dynamic":
        return None
    alpha = Config(config.path, config.rope).optional_number("alpha")
    if alpha is None:
        raise UnsupportedError(config.path, "dynamic RoPE scaling without an alpha")
    if not 0 < alpha < 1e9 or config.head_dim < 3:
        raise CheckpointError(config.path, "bad alpha", found=alpha, expected="a number > 0")
    return alpha


@dataclass(frozen=True)
class AlphaRope(RopeParameters):
    """As `RopeParameters`; dynamic scaling with an `alpha` is another base, whatever the length."""

    def notes(self, config: Config, arch: str) -> list[str]:
        return [] if _alpha(config) is not None else super().notes(config, arch)


def _stretched(config: Config) -> Metadata:
    """theta * alpha^(d / (d - 2)) (transformers, `compute_ntk_alpha_rope_parameters`)."""
    alpha = _alpha(config)
    if alpha is None:
        return {}
    theta, dim = float(config.rope.get("rope_theta") or 10000.0), config.head_dim
    return {
        "rope.freq_base": Value.f32(theta * alpha ** (dim / (dim - 2))),
        "rope.scaling.type": Value.string("none"),
        "rope.scaling.factor": Value.f32(1.0),
        "rope.scaling.original_context_length": Value.u32(_CONTEXT),
        "context_length": Value.u32(_CONTEXT),
    }


HUNYUAN = ConfigClass(
    "hunyuan_v1_dense",
    "HunYuanDenseV1ForCausalLM",
    keys=usual.usual_keys(
        norm=usual.rms_norm(),
        rope=AlphaRope(),
        head_dim=HeadDim(),
        more=(Computed(frozenset(), _stretched),),
    ),
    defaults={"rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 2048},
    ignores=frozenset(["eod_token_id"]),
    biases={"attention_bias": ATTENTION},
)
ARCH = Arch(
    name="hunyuan-dense",
    classes=(HUNYUAN,),
    tensors=(
        *OUTER,
        *NORMS,
        *ATTENTION_TENSORS,
        in_layer("self_attn.query_layernorm", "attn_q_norm"),
        in_layer("self_attn.key_layernorm", "attn_k_norm"),
        *FEED_FORWARD,
    ),
    build=Decoder(
        attention=Attention(pairs="halves", head_norm=rms_norm, norm_last=True), feed_forward=Gated(swiglu)
    ),
)
