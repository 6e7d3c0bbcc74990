"""The `general.*` metadata of a converted model: name, size, licence, sampling defaults.

gguf-py holds the rules that turn a folder's name and its model card into these keys; applied here to an in-memory
writer, so that the keys agree with llama.cpp's converter in value, type and order.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, size_label
from gguf import Metadata as CardMetadata

from loragraft.formats.gguf.values import Metadata, Value, ValueType


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
    try:
        card = CardMetadata.load(None, folder, None, total)
        card.name = card.name or folder.name
        card.size_label = card.size_label or (
            size_label(total, shared, expert, experts) if total > 0 else None
        )
        card.set_gguf_meta_model(writer)
    except Exception as problem:  # YAML and gguf-py raise anything on a malformed card
        notes.append(
            f"{folder / 'README.md'}: the model card is left out ({' '.join(str(problem).split())[:100]})"
        )
        writer.add_name(folder.name)
    written: dict[str, Any] = writer.kv_data[0]
    metadata: Metadata = {}
    for key, value in written.items():
        metadata[key] = _value(value.type, value.value)
        if key == "general.type":
            metadata.update({name.replace("__", "."): item for name, item in extra.items()})
    return metadata


def _value(kind: int, data: Any) -> Value:
    if kind == ValueType.ARRAY:
        return Value.strings([str(item) for item in data])
    return Value.f32(data) if kind == ValueType.FLOAT32 else Value(ValueType(kind), data)


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
