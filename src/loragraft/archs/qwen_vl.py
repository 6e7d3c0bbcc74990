"""Qwen2-VL, Qwen2.5-VL (arXiv 2502.13923) and Qwen3-VL (arXiv 2511.21631), their language models: Qwen2 and Qwen3 whose
RoPE takes a time, a row and a column of a picture; on text the three are the same, and it is plain RoPE."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from loragraft.archs import qwen2, qwen3, qwen3moe
from loragraft.archs.arch import Arch
from loragraft.archs.config import Config
from loragraft.archs.hparams import Hparams, Routing, read_decoder
from loragraft.archs.keys import Computed, Count, GgufModel, RopeParameters, SparseLayers, usual
from loragraft.archs.keys.windows import UPPER_LAYERS
from loragraft.archs.metadata import MetadataKeys
from loragraft.archs.tensors import Tensor, fused_experts
from loragraft.errors import CheckpointError, UnsupportedError
from loragraft.formats.gguf.values import Metadata, Value, ValueType

SECTIONS = "rope.dimension_sections"


@dataclass(frozen=True)
class SectionedRope(RopeParameters):
    """As `RopeParameters`, with how many pairs turn by which of a picture's positions."""

    def to_gguf(self, config: Config) -> Metadata:
        given = config.rope.get("mrope_section")
        if (
            not isinstance(given, list)
            or not 0 < len(given) <= 4
            or not all(type(count) is int and 0 <= count < 2**16 for count in given)
        ):
            raise CheckpointError(
                config.path, "bad mrope_section", found=repr(given)[:80], expected="up to 4 numbers of pairs"
            )
        sections = Value.numbers(ValueType.INT32, [*given, 0, 0, 0][:4])
        keys = super().to_gguf(config)
        base = {key: value for key, value in keys.items() if key == "rope.freq_base"}
        return {**{key: keys[key] for key in keys.keys() - base.keys()}, SECTIONS: sections, **base}

    def to_config(self, model: GgufModel) -> dict[str, Any]:
        raise UnsupportedError(
            SECTIONS,
            "the language model of a multimodal one cannot be exported alone",
            hint="merge into a GGUF, or export from the Hugging Face folder",
        )


def _deepstack(config: Config) -> Metadata:
    """Layers that pictures enter: the vision part's configuration names them, and `text_model` hands them on."""
    given = config.get("deepstack_visual_indexes") or []
    return {"n_deepstack_layers": Value.u32(len(given) if isinstance(given, list) else 0)}


def hyperparameters(keys: MetadataKeys) -> Hparams:
    keys.cover(SECTIONS, "n_deepstack_layers")
    return read_decoder(keys)


_QWEN2_VL = replace(
    qwen2.QWEN2,
    model_type="qwen2_vl_text",
    hf_class="Qwen2VLForConditionalGeneration",
    keys=usual.usual_keys(norm=usual.rms_norm(), rope=SectionedRope(), windows=UPPER_LAYERS),
    defaults={**qwen2.QWEN2.defaults, "max_window_layers": 80, "num_key_value_heads": 8},
)
_QWEN3_VL = replace(
    qwen3.QWEN3,
    model_type="qwen3_vl_text",
    hf_class="Qwen3VLForConditionalGeneration",
    keys=usual.usual_keys(
        norm=usual.rms_norm(),
        rope=SectionedRope(),
        more=(Computed(frozenset(["deepstack_visual_indexes"]), _deepstack),),
    ),
    defaults={
        "rms_norm_eps": 1e-6,
        "rope_theta": 500000.0,
        "max_position_embeddings": 128000,
        "num_key_value_heads": 32,
        "head_dim": 128,
    },
)
_QWEN3_VL_MOE = replace(
    qwen3moe.QWEN3_MOE,
    model_type="qwen3_vl_moe_text",
    hf_class="Qwen3VLMoeForConditionalGeneration",
    keys=usual.usual_keys(
        norm=usual.rms_norm(),
        rope=SectionedRope(),
        experts=True,
        more=(
            Count("expert_feed_forward_length", ("moe_intermediate_size",)),
            SparseLayers(),
            Computed(frozenset(["deepstack_visual_indexes"]), _deepstack),
        ),
    ),
    defaults={
        "rms_norm_eps": 1e-6,
        "rope_theta": 500000.0,
        "max_position_embeddings": 128000,
        "num_key_value_heads": 16,
        "num_experts": 60,
        "num_experts_per_tok": 4,
    },
)


def _gate_turned(h: Hparams, shape: tuple[int, ...]) -> bool:
    return shape[-1] != h.width


def _down_turned(h: Hparams, shape: tuple[int, ...]) -> bool:
    return shape[-2] != h.width


def _experts() -> tuple[Tensor, ...]:
    """Stacks [experts, in, out] in published files; transformers 5 writes [experts, out, in]."""
    return tuple(
        replace(tensor, transposed_if=_down_turned if "down" in tensor.gguf else _gate_turned)
        for tensor in fused_experts("mlp")
    )


ARCH = Arch(
    name="qwen2vl",
    classes=(
        _QWEN2_VL,
        replace(_QWEN2_VL, model_type="qwen2_5_vl_text", hf_class="Qwen2_5_VLForConditionalGeneration"),
    ),
    tensors=qwen2.ARCH.tensors,
    hparams=hyperparameters,
    build=qwen2.ARCH.build,
)
QWEN3 = Arch(
    name="qwen3vl",
    classes=(_QWEN3_VL,),
    tensors=qwen3.ARCH.tensors,
    hparams=hyperparameters,
    build=qwen3.ARCH.build,
)


def moe_hyperparameters(keys: MetadataKeys) -> Hparams:
    return replace(hyperparameters(keys), routing=Routing("softmax", normalize=True))


QWEN3_MOE = Arch(
    name="qwen3vlmoe",
    classes=(_QWEN3_VL_MOE,),
    tensors=(
        *_experts(),
        *(one for one in qwen3moe.ARCH.tensors if ".experts." not in one.hf or not one.exact),
    ),
    hparams=moe_hyperparameters,
    build=qwen3moe.ARCH.build,
)
