"""The `general.*` metadata of a converted model: name, size, licence, sampling defaults.

gguf-py holds the rules that turn a folder's name and its model card into these keys; applied here to an in-memory
writer, so that the keys agree with llama.cpp's converter in value, type and order.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter, size_label
from gguf import Metadata as CardMetadata

from loragraft.errors import CheckpointError, printable
from loragraft.formats.gguf.values import NUMPY_TYPES, Metadata, Value, ValueType
from loragraft.formats.jsonfile import load_json
from loragraft.huggingface.card_file import read_card
from loragraft.huggingface.contents import repository_name

_MAX_NAME = 4096
#: Keys of generation_config.json that GGUF has a place for, by GGUF's names.
_SAMPLING = (
    *("sequence", "top_k", "top_p", "min_p", "xtc_probability", "xtc_threshold", "temp"),
    *("penalty_last_n", "penalty_repeat", "mirostat", "mirostat_tau", "mirostat_eta"),
)
_SETTINGS = {"temp": "temperature"}


def general_metadata(
    folder: Path,
    arch: str,
    kind: str,
    shapes: Mapping[str, tuple[int, ...]],
    notes: list[str],
    **extra: Value,
) -> Metadata:
    """`general.architecture`, `general.type` (`kind`: "model" or "adapter"), the keys of `extra` (dots for double
    underscores), and what the model card in `folder` and its name say.

    `shapes` by tensor name, NumPy order, give the size label. A model card that cannot be understood is a note.
    """
    writer = GGUFWriter(None, arch)
    writer.add_type(kind)
    total, shared, expert, experts = _parameter_counts(shapes)
    label = size_label(total, shared, expert, experts) if total > 0 else None
    try:
        card = _card(folder, total, notes)
        card.name = card.name or repository_name(folder)
        card.size_label = card.size_label or label
        card.set_gguf_meta_model(writer)
        written = _values(writer)
    except Exception as problem:  # gguf-py raises anything on values of other types than it expects
        reason = " ".join(str(problem.problem if isinstance(problem, CheckpointError) else problem).split())
        notes.append(f"{folder / 'README.md'}: the model card is left out ({printable(reason[:100])})")
        writer = GGUFWriter(None, arch)
        writer.add_type(kind)
        writer.add_name(repository_name(folder))
        written = _values(writer)
    metadata: Metadata = {}
    for key, value in written.items():
        metadata[key] = value
        if key == "general.type":
            metadata.update({name.replace("__", "."): item for name, item in extra.items()})
    return metadata


def _card(folder: Path, total: int, notes: list[str]) -> CardMetadata:
    """What gguf-py makes of the folder's model card, config.json and generation_config.json; the files are read here,
    within bounds."""
    config = _settings(folder / "config.json", notes)
    name = config.get("_name_or_path")
    known = {"_name_or_path": name} if isinstance(name, str) and len(name) <= _MAX_NAME else {}
    card: CardMetadata = CardMetadata.apply_metadata_heuristic(
        CardMetadata(), read_card(folder), known, Path(repository_name(folder)), total
    )
    settings = _settings(folder / "generation_config.json", notes)
    for key in _SAMPLING:
        if (value := settings.get(_SETTINGS.get(key, key))) is not None:
            setattr(card, f"sampling_{key}", value)
    return card


def _settings(path: Path, notes: list[str]) -> dict[str, Any]:
    """The JSON object at `path`; nothing if there is none, or nothing to be made of it."""
    try:
        return load_json(path, CheckpointError) if path.is_file() else {}
    except CheckpointError as problem:
        notes.append(f"{problem}; left out")
        return {}


def _values(writer: GGUFWriter) -> Metadata:
    return {key: _value(ValueType(value.type), value.value) for key, value in writer.kv_data[0].items()}


def _value(kind: ValueType, data: Any) -> Value:
    """Raises ValueError for what the type cannot hold."""
    if kind is ValueType.ARRAY:
        return Value.strings([_text(str(item)) for item in data])
    if kind is ValueType.STRING:
        return Value.string(_text(data))
    if kind is ValueType.FLOAT32:
        return Value.f32(data)
    np.array([data], NUMPY_TYPES[kind])
    return Value(kind, data)


def _text(data: Any) -> str:
    if not isinstance(data, str):
        raise ValueError(f"{data!r} is not text")
    data.encode()
    return data


def _parameter_counts(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int, int, int]:
    """Parameters in all, outside of experts, of one expert, and the number of experts (gguf-py's
    `get_total_parameter_count`); the first is negative for an adapter, where it counts the adapted weights."""
    total = shared = expert = stacks = experts = 0
    adapter = any(name.endswith(".lora_a") for name in shapes)
    for name, shape in shapes.items():
        if name.endswith(".lora_a"):
            continue
        if name.endswith(".lora_b"):
            shape = (*shape[:-1], shapes[name[:-1] + "a"][-1])
        size = prod(shape)
        total += size
        if "_exps." in name and len(shape) >= 3:
            count = shape[-3]
            expert += size // count
            experts += count
            stacks += 1
        else:
            shared += size
    return -total if adapter else total, shared, expert, experts // stacks if stacks else 0
