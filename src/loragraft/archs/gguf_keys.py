"""config.json to the GGUF hyperparameters of an architecture, key for key as llama.cpp's conversion/base.py does."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from loragraft.archs.base import Arch, ModelType
from loragraft.archs.config import Config
from loragraft.archs.config_keys import unread_notes
from loragraft.archs.rope_keys import rope_keys, rope_notes
from loragraft.archs.windows import Windows, window_keys
from loragraft.errors import UnsupportedError
from loragraft.formats.gguf.values import Metadata, Value

_CONTEXT = ("max_position_embeddings", "n_ctx", "n_positions", "max_sequence_length")
_EXPERT_COUNT = ("num_local_experts", "num_experts", "n_routed_experts")

#: Keys before RoPE's and after, in the order in which they are written: (GGUF key, config.json keys, reader).
SIZE_KEYS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("block_count", ("num_hidden_layers", "n_layers", "n_layer", "num_layers")),
    ("context_length", _CONTEXT),
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


def hyperparameters(arch: Arch, model_type: ModelType, config: Config, file_type: int) -> Metadata:
    """The `<arch>.*` keys and `general.file_type`, in the order in which llama.cpp's converter writes them; windows,
    which it leaves out, after the common ones.

    Raises CheckpointError for a value that is missing or makes no sense, UnsupportedError for a RoPE scaling that the
    architecture's GGUF form cannot express.
    """
    keys: Metadata = {}
    for key, names in SIZE_KEYS:
        keys[key] = Value.u32(config.integer(*names))
    keys["attention.head_count_kv"] = Value.u32(config.n_kv_heads)
    keys.update(rope_keys(arch, config))
    own = [(key, tuple(n for n in names if n in model_type.defaults)) for key, names in NORM_KEYS]
    _copy(keys, [row for row in own if row[1]], config.optional_number, Value.f32)
    _copy(keys, _EXPERTS, config.optional_integer, Value.u32)
    if arch.writes_head_dim or config.get("head_dim") is not None:
        keys["attention.key_length"] = Value.u32(config.head_dim)
        keys["attention.value_length"] = Value.u32(config.head_dim)
    keys.update(window_keys(_windows(model_type, config), config.integer(*_CONTEXT)))
    metadata = {f"{arch.name}.{key}": value for key, value in keys.items()}
    metadata["general.file_type"] = Value.u32(file_type)
    metadata.update(
        {f"{arch.name}.{key}": value for key, value in arch.extra_hyperparameters(config).items()}
    )
    return metadata


def check_expressible(arch: Arch, model_type: ModelType, config: Config) -> list[str]:
    """Notes on what GGUF or llama.cpp leaves out; raises UnsupportedError for what would change the results."""
    for key, allowed in model_type.requires.items():
        value = config.get(key)
        if value is not None and value not in allowed:
            raise UnsupportedError(
                config.path,
                f"{arch.name} in GGUF has no {key} other than {' or '.join(map(repr, allowed))}",
                found=repr(value),
            )
    notes = rope_notes(config)
    if window_keys(_windows(model_type, config), config.integer(*_CONTEXT)):
        notes.append(
            f"{config.path.name}: sliding_window = {config.get('sliding_window')} is kept, but llama.cpp attends to "
            f"everything in {arch.name}: longer texts differ there"
        )
    return notes + unread_notes(model_type, config)


def _windows(model_type: ModelType, config: Config) -> Windows:
    return (None,) * config.n_layers if model_type.windows is None else model_type.windows.read(config)


def _copy(
    keys: Metadata,
    rows: Iterable[tuple[str, tuple[str, ...]]],
    read: Callable[..., Any],
    value: Callable[[Any], Value],
) -> None:
    for key, names in rows:
        if (found := read(*names)) is not None:
            keys[key] = value(found)
