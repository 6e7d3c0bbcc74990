"""Gemma 3, its text model: two ropes, windows in five layers of six, norms around both parts, norms stored less 1
(Gemma Team 2025, arXiv 2503.19786)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf, isclose, sqrt
from typing import Any

from loragraft.archs.arch import ATTENTION, Arch, ConfigClass
from loragraft.archs.blocks import Attention, Decoder, Gated, geglu, rms_norm
from loragraft.archs.config import Config
from loragraft.archs.hparams import Hparams, Layer, read_decoder, read_windows
from loragraft.archs.keys import GgufModel, HeadDim, LayerRopes, Number, Rule, Windows, usual
from loragraft.archs.metadata import MetadataKeys
from loragraft.archs.rope import read_rope
from loragraft.archs.tensors import ATTENTION as ATTENTION_TENSORS
from loragraft.archs.tensors import FEED_FORWARD, PLUS_ONE, Tensor, in_layer
from loragraft.errors import CheckpointError
from loragraft.formats.gguf.values import Metadata, Value
from loragraft.graph.llama_cpp import PublishedArch, drops_ffn_scales


def _slides(layer: int) -> bool:
    """Whether a layer has the window where a GGUF has no pattern."""
    return layer % 6 < 5


def _slides_by_pattern(config: Config, layer: int) -> bool:
    return (layer + 1) % config.integer("sliding_window_pattern") > 0


@dataclass(frozen=True)
class AttentionScale(Rule):
    """query_pre_attn_scalar ** -0.5, where it is another than the usual scale. `largest`: the layers of the 27B model,
    by which llama.cpp tells that it has a scale of its own."""

    largest: int

    def usual(self, layers: int, width: int, heads: int, head_dim: int) -> float:
        """Of q k, as llama.cpp computes it."""
        return 1.0 / sqrt(max(1, width // max(1, heads) if layers == self.largest else head_dim))

    @property
    def config_keys(self) -> frozenset[str]:
        return frozenset(["query_pre_attn_scalar"])

    def to_gguf(self, config: Config) -> Metadata:
        scalar = config.number("query_pre_attn_scalar")
        if not 0 < scalar < inf:
            raise CheckpointError(
                config.path, "bad query_pre_attn_scalar", found=scalar, expected="a number > 0"
            )
        scale = scalar**-0.5
        usual_scale = self.usual(config.n_layers, config.hidden_size, config.n_heads, config.head_dim)
        return {} if isclose(scale, usual_scale, rel_tol=1e-6) else {"attention.scale": Value.f32(scale)}

    def to_config(self, model: GgufModel) -> dict[str, Any]:
        scale = model.h.attention_scale
        return {} if scale is None else {"query_pre_attn_scalar": round(scale**-2)}

    def notes(self, config: Config, arch: str) -> list[str]:
        if not self.to_gguf(config):
            return []
        said = f"query_pre_attn_scalar = {config.get('query_pre_attn_scalar')}"
        return [f"{config.path.name}: {said} is kept, but llama.cpp computes with the usual scale"]


_SCALE = AttentionScale(62)


def hyperparameters(keys: MetadataKeys) -> Hparams:
    h = read_decoder(keys)
    first = h.layers[0]
    rotary = first.key_dim if first.rope is None else first.rope.rotary
    local = read_rope(keys, rotary, first.key_dim, base_key="rope.freq_base_swa", scaled=False)
    windows = read_windows(keys, len(h.layers), _slides)

    def layer(index: int, own: Layer) -> Layer:
        window = windows[index]
        return replace(own, window=window, rope=own.rope if window is None else local)

    usual_scale = _SCALE.usual(len(h.layers), h.width, first.heads, first.key_dim)
    return replace(
        h.with_layers(layer),
        embedding_scale=h.width**0.5,
        attention_scale=keys.number("attention.scale", usual_scale, least=1e-9),
        logit_softcap=keys.optional_number("final_logit_softcapping"),
    )


TEXT = ConfigClass(
    "gemma3_text",
    "Gemma3ForCausalLM",
    keys=usual.usual_keys(
        activation=None,
        rope=LayerRopes(),
        norm=usual.rms_norm(),
        head_dim=HeadDim(always=True),
        more=(
            Number("final_logit_softcapping", "final_logit_softcapping"),
            Windows(layers=_slides_by_pattern, names=("sliding_window_pattern",), usual=_slides),
            _SCALE,
        ),
    ),
    defaults={
        "vocab_size": 262208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
        "tie_word_embeddings": True,
    },
    requires={
        "hidden_activation": ("gelu_pytorch_tanh",),
        "attn_logit_softcapping": (None,),
        "use_bidirectional_attention": (False,),
    },
    ignores=frozenset(["_sliding_window_pattern"]),
    biases={"attention_bias": ATTENTION},
)


def _norm(hf: str, gguf: str) -> Tensor:
    return in_layer(hf, gguf, values=PLUS_ONE)


ARCH = Arch(
    name="gemma3",
    classes=(TEXT,),
    tensors=(
        Tensor("model.embed_tokens", "token_embd"),
        Tensor("model.norm", "output_norm", values=PLUS_ONE),
        Tensor("lm_head", "output"),
        _norm("input_layernorm", "attn_norm"),
        *ATTENTION_TENSORS,
        _norm("self_attn.q_norm", "attn_q_norm"),
        _norm("self_attn.k_norm", "attn_k_norm"),
        _norm("post_attention_layernorm", "post_attention_norm"),
        _norm("pre_feedforward_layernorm", "ffn_norm"),
        *FEED_FORWARD,
        _norm("post_feedforward_layernorm", "post_ffw_norm"),
    ),
    hparams=hyperparameters,
    llama_cpp=PublishedArch(unscaled=drops_ffn_scales("models/gemma3.cpp:177-182")),
    build=Decoder(
        attention=Attention(pairs="halves", head_norm=rms_norm),
        feed_forward=Gated(geglu),
        post_norms=("post_attention_norm", "post_ffw_norm"),
    ),
)
