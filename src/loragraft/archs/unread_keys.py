"""Every `<arch>.*` key of a GGUF is read by the architecture, harmless, off, or refused as it changes what is computed.

llama.cpp ignores most of the refused keys for an architecture whose converter does not write them; a file that has one
was meant for a graph that neither program has. Keys that are not GGUF's at all are named in a note.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isclose

import numpy as np

from loragraft.archs.arch import Arch
from loragraft.archs.hparams import Hparams
from loragraft.archs.metadata import MetadataKeys
from loragraft.archs.rope import standard_magnitude
from loragraft.errors import UnsupportedError
from loragraft.formats.gguf.keys import FEATURE_GROUPS, FEATURES, HARMLESS, NEVER_OFF, USUAL
from loragraft.formats.gguf.values import Value


def check_unread(metadata: Mapping[str, Value], keys: MetadataKeys, arch: Arch, h: Hparams) -> list[str]:
    """Notes on keys that nothing reads; raises UnsupportedError for one that would change what the model computes.

    `keys` is what `h` was read through: it knows what was asked for.
    """
    notes = []
    prefix = f"{h.arch}."
    for name, value in metadata.items():
        key = name.removeprefix(prefix)
        if key == name or key in keys.asked or key in HARMLESS or _is_usual(key, value, arch, h):
            continue
        if key not in FEATURES and key not in USUAL and not key.startswith(FEATURE_GROUPS):
            notes.append(f"{name}: not a key that GGUF defines, and not read")
            continue
        raise UnsupportedError(
            name,
            f"no graph of {h.arch} computes this",
            found=repr(value.data)[:80],
            hint="llama.cpp may ignore it silently",
        )
    return [*notes, *_magnitude_note(metadata, h)]


def _is_usual(key: str, value: Value, arch: Arch, h: Hparams) -> bool:
    data = value.data
    if isinstance(data, str | list | np.ndarray):
        return not len(data) or (isinstance(data, np.ndarray) and not data.any())
    if key in arch.fixed:
        return bool(data == arch.fixed[key]) or (key.startswith("expert_") and not h.experts)
    if key == "attention.scale" and all(
        isclose(data, layer.key_dim**-0.5, rel_tol=1e-5) for layer in h.layers
    ):
        return True
    if key == "embedding_length_out" and data == h.width:
        return True
    return (not data and key not in NEVER_OFF) or data in USUAL.get(key, ())


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
