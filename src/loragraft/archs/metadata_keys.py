"""Every `<arch>.*` key of a GGUF is on a list: read, harmless, off, or refused as it changes what a model computes.

llama.cpp ignores most of the refused keys for the architectures here, as no converter writes them there; a file that
has one was meant for a graph that neither program has. Keys that are not GGUF's at all are named in a note.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isclose

import numpy as np

from loragraft.archs.hparams import Hparams, MetadataKeys, standard_magnitude
from loragraft.errors import UnsupportedError
from loragraft.formats.gguf.values import Value

_READ = frozenset(
    """
    attention.head_count attention.head_count_kv attention.key_length attention.layer_norm_epsilon
    attention.layer_norm_rms_epsilon attention.sliding_window attention.sliding_window_pattern attention.value_length
    block_count context_length embedding_length expert_count expert_feed_forward_length
    expert_shared_feed_forward_length expert_used_count feed_forward_length rope.dimension_count rope.freq_base
    rope.scale_linear rope.scaling.attn_factor rope.scaling.factor rope.scaling.original_context_length
    rope.scaling.type rope.scaling.yarn_attn_factor rope.scaling.yarn_beta_fast rope.scaling.yarn_beta_slow
    """.split()  # noqa: SIM905
)
#: About other uses of the model, or about its file.
_HARMLESS = frozenset(
    """
    classifier.output_labels decoder_start_token_id expert_shared_count pooling_type rope.scaling.finetuned
    tensor_data_layout vocab_size
    """.split()  # noqa: SIM905
)
#: Values, beside 0 and false, that say what the graphs do anyway.
_USUAL: dict[str, tuple[float, ...]] = {
    "attention.causal": (1,),
    "attention.output_scale": (1,),
    "embedding_scale": (1,),
    "expert_gating_func": (1,),  # softmax
    "expert_group_count": (1,),
    "expert_group_scale": (1,),
    "expert_group_used_count": (1,),
    "expert_weights_scale": (1,),
    "interleave_moe_layer_step": (1,),
    "logit_scale": (1,),
    "moe_every_n_layers": (1,),
    "residual_scale": (1,),
    "rope.scaling.alpha": (1,),
    "rope.scaling.yarn_ext_factor": (1, -1),
}
#: Where 0 or false is not "off".
_NEVER_OFF = frozenset(["attention.causal"])
#: The rest of what GGUF defines.
_FEATURES = frozenset(
    """
    activation_sparsity_scale attention.clamp_kqv attention.decay_lora_rank attention.gate_lora_rank
    attention.group_norm_epsilon attention.group_norm_groups attention.iclr_lora_rank attention.key_length_mla
    attention.key_length_swa attention.kv_lora_rank attention.max_alibi_bias attention.q_lora_rank
    attention.relative_buckets_count attention.scale attention.shared_kv_layers attention.temperature_length
    attention.temperature_scale attention.value_length_mla attention.value_length_swa
    attention.value_residual_mix_lora_rank attn_logit_softcapping decoder_block_count embedding_length_out
    embedding_length_per_layer_input expert_chunk_feed_forward_length expert_weights_norm experts_per_group
    features_length final_logit_softcapping full_attention_interval leading_dense_block_count moe_latent_size
    n_deepstack_layers nextn_predict_layers rescale_every_n_layers rope.dimension_count_swa rope.dimension_sections
    rope.freq_base_swa rope.scaling.yarn_log_multiplier router_logit_softcapping swiglu_clamp_exp swiglu_clamp_shexp
    swin_norm time_decay_extra_dim time_mix_extra_dim token_shift_count use_parallel_residual
    """.split()  # noqa: SIM905
)
_FEATURE_GROUPS = (
    "altup.",
    "attention.indexer.",
    "convnext.",
    "kda.",
    "posnet.",
    "shortconv.",
    "ssm.",
    "wkv.",
)


def check_keys(metadata: Mapping[str, Value], h: Hparams) -> list[str]:
    """Notes on keys that nothing reads; raises UnsupportedError for one that would change what the model computes."""
    notes = []
    prefix = f"{h.arch}."
    for name, value in metadata.items():
        key = name.removeprefix(prefix)
        if key == name or key in _READ or key in _HARMLESS or _is_usual(key, value, h):
            continue
        if key not in _FEATURES and key not in _USUAL and not key.startswith(_FEATURE_GROUPS):
            notes.append(f"{name}: not a key that GGUF defines, and not read")
            continue
        raise UnsupportedError(
            name,
            f"no graph of {h.arch} computes this",
            found=_shown(value),
            hint="llama.cpp may ignore it silently",
        )
    return [*notes, *_magnitude_note(metadata, h)]


def _is_usual(key: str, value: Value, h: Hparams) -> bool:
    data = value.data
    if isinstance(data, str | list | np.ndarray):
        return not len(data) or (isinstance(data, np.ndarray) and not data.any())
    if key == "expert_weights_norm":
        return not h.experts or bool(data) == (h.arch != "qwen2moe")
    if key == "attention.scale" and isclose(data, h.head_dim**-0.5, rel_tol=1e-5):
        return True
    if key == "embedding_length_out" and data == h.width:
        return True
    return (not data and key not in _NEVER_OFF) or data in _USUAL.get(key, ())


def _shown(value: Value) -> str:
    return repr(value.data)[:80]


def _magnitude_note(metadata: Mapping[str, Value], h: Hparams) -> list[str]:
    """The reference converter writes YaRN's attention_factor where neither llama.cpp nor we read it."""
    keys, key = MetadataKeys(metadata), "rope.scaling.yarn_attn_factor"
    if keys.text("rope.scaling.type", "linear") != "yarn" or not keys.has(key):
        return []
    if keys.has("rope.scaling.attn_factor"):
        return []
    given, factor = keys.number(key), keys.number("rope.scaling.factor", 1.0)
    if isclose(given, standard_magnitude(factor), rel_tol=1e-5):
        return []
    return [
        f"{h.arch}.{key} = {given:g} is not read, as llama.cpp does not: if that is the attention_factor of the "
        "model's config.json, convert it again with loragraft"
    ]
