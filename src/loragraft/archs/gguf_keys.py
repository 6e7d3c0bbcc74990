"""config.json to the GGUF hyperparameters of an architecture, key for key as llama.cpp's conversion/base.py does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from loragraft.archs.base import Arch
from loragraft.archs.config import Config
from loragraft.errors import UnsupportedError
from loragraft.formats.gguf.values import Metadata, Value

_EXPERT_COUNT = ("num_local_experts", "num_experts", "n_routed_experts")

#: Keys before RoPE's and after, in the order in which they are written: (GGUF key, config.json keys, reader).
SIZE_KEYS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("block_count", ("num_hidden_layers", "n_layers", "n_layer", "num_layers")),
    ("context_length", ("max_position_embeddings", "n_ctx", "n_positions", "max_sequence_length")),
    ("embedding_length", ("hidden_size", "n_embd", "dim")),
    ("feed_forward_length", ("intermediate_size", "n_inner", "hidden_dim")),
    ("attention.head_count", ("num_attention_heads", "n_heads", "n_head")),
)
NORM_KEYS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("attention.layer_norm_rms_epsilon", ("rms_norm_eps", "norm_eps")),
    ("attention.layer_norm_epsilon", ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon")),
)
_EXPERTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("expert_count", _EXPERT_COUNT),
    ("expert_used_count", ("num_experts_per_tok", "num_experts_per_token", "top_k_experts")),
)
YARN_KEYS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("rope.scaling.yarn_ext_factor", ("extrapolation_factor",)),
    ("rope.scaling.yarn_attn_factor", ("attention_factor", "attn_factor")),
    ("rope.scaling.yarn_beta_fast", ("beta_fast",)),
    ("rope.scaling.yarn_beta_slow", ("beta_slow",)),
)


def hyperparameters(arch: Arch, config: Config, file_type: int) -> Metadata:
    """The `<arch>.*` keys and `general.file_type`, in the order in which llama.cpp's converter writes them.

    Raises CheckpointError for a value that is missing or makes no sense, UnsupportedError for a RoPE scaling that the
    architecture's GGUF form cannot express.
    """
    keys: Metadata = {}
    for key, names in SIZE_KEYS:
        keys[key] = Value.u32(config.integer(*names))
    keys["attention.head_count_kv"] = Value.u32(config.n_kv_heads)
    keys.update(_rope(arch, config))
    _copy(keys, NORM_KEYS, config.optional_number, Value.f32)
    _copy(keys, _EXPERTS, config.optional_integer, Value.u32)
    if arch.writes_head_dim or config.get("head_dim") is not None:
        keys["attention.key_length"] = Value.u32(config.head_dim)
        keys["attention.value_length"] = Value.u32(config.head_dim)
    metadata = {f"{arch.name}.{key}": value for key, value in keys.items()}
    metadata["general.file_type"] = Value.u32(file_type)
    metadata.update(
        {f"{arch.name}.{key}": value for key, value in arch.extra_hyperparameters(config).items()}
    )
    return metadata


def check_expressible(arch: Arch, config: Config) -> list[str]:
    """Notes on what the GGUF architecture leaves out; raises UnsupportedError for what would change the results."""
    for key, allowed in arch.requires.items():
        value = config.get(key)
        if value is not None and value not in allowed:
            raise UnsupportedError(
                config.path,
                f"{arch.name} in GGUF has no {key} other than {' or '.join(map(repr, allowed))}",
                found=repr(value),
            )
    notes = [
        f"{config.path.name}: {key} = {config.get(key)!r} is left out: GGUF's {arch.name} attends to everything"
        for key, allowed in arch.ignores.items()
        if config.get(key) is not None and config.get(key) not in allowed
    ]
    if config.rope["rope_type"] == "dynamic":
        notes.append(
            f"{config.path.name}: dynamic RoPE scaling is left out: texts longer than the context will differ"
        )
    return notes


def _copy(
    keys: Metadata,
    rows: tuple[tuple[str, tuple[str, ...]], ...],
    read: Callable[..., Any],
    value: Callable[[Any], Value],
) -> None:
    for key, names in rows:
        if (found := read(*names)) is not None:
            keys[key] = value(found)


def _rope(arch: Arch, config: Config) -> Metadata:
    rope = config.rope
    kind = str(rope["rope_type"]).lower()
    keys: Metadata = {}
    if kind in ("linear", "yarn") and "factor" in rope:
        keys["rope.scaling.type"] = Value.string(kind)
        keys["rope.scaling.factor"] = Value.f32(rope["factor"])
        if kind == "yarn":
            original = rope.get("original_max_position_embeddings") or config.integer(
                "max_position_embeddings"
            )
            keys["rope.scaling.original_context_length"] = Value.u32(int(original))
            _copy(keys, YARN_KEYS, Config(config.path, rope).optional_number, Value.f32)
    elif kind == "llama3" and arch.rope_freqs(config) is None:
        raise UnsupportedError(config.path, f"RoPE scaling llama3 on architecture {arch.name}")
    elif kind not in ("default", "dynamic", "llama3", "linear", "yarn"):
        raise UnsupportedError(
            config.path,
            "unknown RoPE scaling",
            found=repr(kind),
            expected="default, linear, dynamic, yarn or llama3",
        )
    if "rope_theta" in rope:
        keys["rope.freq_base"] = Value.f32(rope["rope_theta"])
    return keys
