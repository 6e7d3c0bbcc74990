"""What Gemma 4's config.json says, as GGUF's keys and back: heads and widths by layer, kinds of layers, two ropes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from loragraft.archs.arch import ConfigClass
from loragraft.archs.config import CONTEXT, Config
from loragraft.archs.keys import FILE_TYPE, Computed, Count, GgufModel, Layers, usual
from loragraft.archs.keys.values import shortest
from loragraft.errors import CheckpointError, UnsupportedError
from loragraft.formats.gguf.values import Metadata, Value, ValueType

_SLIDING, _FULL = "sliding_attention", "full_attention"
_NEVER = np.float32(1e30)
"""What the frequencies of pairs that do not turn are divided by, as in llama.cpp's files."""


def _types(config: Config) -> list[str]:
    """Of the layers; the last one sees everything, as transformers has it."""
    found = config.get("layer_types")
    if found is None:
        found = [_SLIDING if (i + 1) % 6 else _FULL for i in range(config.n_layers)]
    if (
        not isinstance(found, list)
        or len(found) != config.n_layers
        or not {*map(str, found)} <= {_SLIDING, _FULL}
    ):
        raise CheckpointError(
            config.path,
            "bad layer_types",
            found=repr(found)[:80],
            expected=f"{config.n_layers} of {_FULL}, {_SLIDING}",
        )
    return [*found[:-1], _FULL]


def _of_full_layers(config: Config, key: str, old: str) -> int | None:
    """What layers with full attention have of `key`: in `per_layer_config`, or under its name in older files."""
    by_layer = config.get("per_layer_config")
    if by_layer is None:
        return config.optional_integer(old)
    if not isinstance(by_layer, dict) or not all(isinstance(own, dict) for own in by_layer.values()):
        raise CheckpointError(
            config.path, "bad per_layer_config", found=repr(by_layer)[:80], expected="objects"
        )
    full = [i for i, kind in enumerate(_types(config)) if kind == _FULL]
    if sorted(by_layer) != sorted(map(str, full)):
        raise UnsupportedError(
            config.path,
            "per_layer_config of other layers than those with full attention",
            found=sorted(by_layer)[:8],
            expected=full[:8],
        )
    values = {repr(own.get(key)) for own in by_layer.values()}
    if len(values) != 1:
        raise UnsupportedError(
            config.path, f"layers with full attention that differ in {key}", found=sorted(values)
        )
    return Config(config.path, by_layer[str(full[0])]).optional_integer(key)


def _head_dim(config: Config) -> int:
    return _of_full_layers(config, "head_dim", "global_head_dim") or config.head_dim


def _shared(config: Config) -> int:
    count = config.optional_integer("num_kv_shared_layers") or 0
    if count >= config.n_layers:
        raise CheckpointError(
            config.path, "bad num_kv_shared_layers", found=count, expected=f"less than {config.n_layers}"
        )
    return count


def _feed_forward(config: Config) -> Metadata:
    """Twice as wide in layers without keys of their own, if `use_double_wide_mlp`."""
    width = config.integer("intermediate_size")
    if not config.get("use_double_wide_mlp"):
        return {"feed_forward_length": Value.u32(width)}
    first = config.n_layers - _shared(config)
    widths = [width * (1 if i < first else 2) for i in range(config.n_layers)]
    return {"feed_forward_length": Value.numbers(ValueType.INT32, widths)}


def _feed_forward_back(model: GgufModel) -> dict[str, Any]:
    widths = [layer.ff for layer in model.h.layers]
    if len(set(widths)) > 2 or max(widths) not in (widths[0], 2 * widths[0]):
        raise UnsupportedError("gemma4.feed_forward_length", "cannot be exported", found=sorted(set(widths)))
    return {"intermediate_size": widths[0], "use_double_wide_mlp": max(widths) > widths[0]}


def _experts(config: Config) -> Metadata:
    if not config.get("enable_moe_block"):
        return {}
    return {
        "expert_count": Value.u32(config.integer("num_experts")),
        "expert_used_count": Value.u32(config.integer("top_k_experts")),
    }


def _experts_width(config: Config) -> Metadata:
    if not config.get("enable_moe_block"):
        return {}
    width = config.integer("moe_intermediate_size", "expert_intermediate_size")
    return {"expert_feed_forward_length": Value.u32(width)}


def _experts_back(model: GgufModel) -> dict[str, Any]:
    if not model.h.experts:
        return {"enable_moe_block": False}
    return {
        "enable_moe_block": True,
        "num_experts": model.h.experts,
        "top_k_experts": model.h.experts_used,
        "moe_intermediate_size": model.keys.count("expert_feed_forward_length"),
    }


def _cap(config: Config) -> Metadata:
    """0: none. The converter then leaves it out, and llama.cpp caps at 30."""
    return {"final_logit_softcapping": Value.f32(config.optional_number("final_logit_softcapping") or 0.0)}


def _cap_back(model: GgufModel) -> dict[str, Any]:
    cap = model.h.logit_softcap
    return {"final_logit_softcapping": None if cap is None else shortest(cap)}


def _kv_heads(config: Config) -> Metadata:
    own = config.n_kv_heads
    full = _of_full_layers(config, "num_key_value_heads", "num_global_key_value_heads")
    if full is None:
        return {"attention.head_count_kv": Value.u32(own)}
    heads = [full if kind == _FULL else own for kind in _types(config)]
    return {"attention.head_count_kv": Value.numbers(ValueType.INT32, heads)}


def _ropes(config: Config) -> tuple[dict[str, Any], dict[str, Any]]:
    full = config.rope_of(_FULL, "rope_theta", scaling=False)
    sliding = config.rope_of(_SLIDING, "rope_local_base_freq", scaling=False)
    for rope, kind in ((full, "proportional"), (sliding, "default")):
        if rope["rope_type"] != kind or rope.get("factor") not in (None, 1.0):
            raise UnsupportedError(config.path, "RoPE of this kind", found=repr(rope)[:120], expected=kind)
    if sliding.get("partial_rotary_factor") not in (None, 1.0):
        raise UnsupportedError(config.path, "partial rotary embedding in layers with a window", found=sliding)
    return full, sliding


def _bases(config: Config) -> Metadata:
    full, sliding = _ropes(config)
    return {
        "rope.freq_base": Value.f32(full["rope_theta"]),
        "rope.freq_base_swa": Value.f32(sliding["rope_theta"]),
    }


def rope_factors(config: Config) -> Mapping[str, npt.NDArray[np.float32]]:
    """The first pairs turn, by frequencies of the whole head; the others do not."""
    part = _ropes(config)[0].get("partial_rotary_factor")
    part = 1.0 if part is None else part
    if isinstance(part, bool) or not isinstance(part, int | float) or not 0 <= part <= 1:
        raise CheckpointError(config.path, "bad partial_rotary_factor", found=repr(part), expected="0 to 1")
    pairs = _head_dim(config) // 2
    factors = np.full(pairs, _NEVER, np.float32)
    factors[: int(_head_dim(config) * part / 2)] = 1
    return {"rope_freqs.weight": factors}


def _ropes_back(model: GgufModel) -> dict[str, Any]:
    keys, factors = model.keys, model.rope_freqs
    if factors is None:
        raise UnsupportedError("rope_freqs.weight", "is missing, so that the model cannot be exported")
    turning = int(np.count_nonzero(factors == 1))
    if not np.array_equal(factors, np.where(np.arange(len(factors)) < turning, np.float32(1), _NEVER)):
        raise UnsupportedError(
            "rope_freqs.weight", "are not Gemma 4's", hint="export from the Hugging Face folder"
        )
    return {
        "rope_parameters": {
            _FULL: {
                "rope_type": "proportional",
                "partial_rotary_factor": turning / len(factors),
                "rope_theta": shortest(keys.number("rope.freq_base")),
            },
            _SLIDING: {"rope_type": "default", "rope_theta": shortest(keys.number("rope.freq_base_swa"))},
        }
    }


def _attention(config: Config) -> Metadata:
    """What stands behind the usual keys."""
    types, full, sliding = _types(config), _head_dim(config), config.head_dim
    window = config.integer("sliding_window")
    return {
        "attention.sliding_window": Value.u32(window),
        "attention.shared_kv_layers": Value.u32(_shared(config)),
        "embedding_length_per_layer_input": Value.u32(
            config.optional_integer("hidden_size_per_layer_input") or 0
        ),
        "attention.sliding_window_pattern": Value.numbers(
            ValueType.BOOL, [int(kind == _SLIDING) for kind in types]
        ),
        "attention.key_length_swa": Value.u32(sliding),
        "attention.value_length_swa": Value.u32(sliding),
        **_experts_width(config),
        "rope.dimension_count": Value.u32(full),
        "rope.dimension_count_swa": Value.u32(sliding),
    }


def _attention_back(model: GgufModel) -> dict[str, Any]:
    layers, keys = model.h.layers, model.keys
    types = [_FULL if layer.window is None else _SLIDING for layer in layers]
    full = types.index(_FULL)
    of_full: dict[str, int] = {"head_dim": layers[full].key_dim}
    own = layers[types.index(_SLIDING) if _SLIDING in types else full].kv_heads
    if isinstance(keys.get("attention.head_count_kv"), np.ndarray):
        of_full["num_key_value_heads"] = layers[full].kv_heads
    own_keys = [i for i in range(len(layers) - model.h.extra["shared"]) if types[i] == _FULL]
    return {
        "head_dim": keys.count("attention.key_length_swa"),
        "num_key_value_heads": own,
        "per_layer_config": {str(i): of_full for i, kind in enumerate(types) if kind == _FULL},
        "layer_types": types,
        "sliding_window": keys.count("attention.sliding_window"),
        "num_kv_shared_layers": model.h.extra["shared"],
        "hidden_size_per_layer_input": keys.count("embedding_length_per_layer_input", least=0),
        "vocab_size_per_layer_input": model.shapes["token_embd.weight"][0],
        "attention_k_eq_v": any(f"blk.{i}.attn_v.weight" not in model.shapes for i in own_keys),
    }


TEXT = ConfigClass(
    "gemma4_text",
    "Gemma4ForCausalLM",
    keys=(
        Layers(),
        Count("context_length", CONTEXT),
        Count("embedding_length", usual.WIDTH),
        Computed(frozenset(["intermediate_size", "use_double_wide_mlp"]), _feed_forward, _feed_forward_back),
        Count("attention.head_count", usual.HEADS),
        Computed(
            frozenset(["num_key_value_heads", "num_global_key_value_heads", "per_layer_config"]), _kv_heads
        ),
        Computed(frozenset(["rope_parameters"]), _bases, _ropes_back),
        usual.rms_norm(),
        Computed(frozenset(["enable_moe_block", "num_experts", "top_k_experts"]), _experts, _experts_back),
        Computed(
            frozenset(["head_dim", "global_head_dim"]),
            lambda config: dict.fromkeys(
                ("attention.key_length", "attention.value_length"), Value.u32(_head_dim(config))
            ),
        ),
        FILE_TYPE,
        Computed(frozenset(["final_logit_softcapping"]), _cap, _cap_back),
        Computed(
            frozenset(
                """
                layer_types sliding_window num_kv_shared_layers hidden_size_per_layer_input attention_k_eq_v
                vocab_size_per_layer_input moe_intermediate_size expert_intermediate_size
                """.split()  # noqa: SIM905
            ),
            _attention,
            _attention_back,
        ),
    ),
    defaults={
        "vocab_size": 262144,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 30,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "global_head_dim": 512,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {
            _FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0},
            _SLIDING: {"rope_type": "default", "rope_theta": 10000.0},
        },
        "sliding_window": 512,
        "hidden_size_per_layer_input": 256,
        "tie_word_embeddings": True,
    },
    requires={
        "hidden_activation": ("gelu_pytorch_tanh",),
        "use_bidirectional_attention": (None, "vision"),
        "attention_bias": (False,),
    },
)
