"""Does an adapter belong to this base? Shapes alone cannot tell: two models of one size take each other's adapters."""

from __future__ import annotations

import re
from pathlib import PurePath

from loragraft.formats.source import ModelSource

#: How the names of quantized copies end, squeezed: Unsloth's, bitsandbytes', GPTQ's and AWQ's.
_QUANTIZED = re.compile(r"(?:unsloth|bnb|gptq|awq|int[48]|nf4|fp[48]|[48]bit)+$")
_NAME_KEYS = ("general.name", "general.basename", "general.base_model.0.name")


def doubt(trained_on: object, base: ModelSource) -> str | None:
    """A note, if `trained_on` (base_model_name_or_path of adapter_config.json) and every name of `base` differ.

    Names agree if one contains the other, letters and digits only, and what says that the weights were quantized for
    training left out: `unsloth/tinyllama-bnb-4bit` and `TinyLlama-1.1B`.
    """
    if not isinstance(trained_on, str):
        return None
    wanted = _QUANTIZED.sub("", _squeezed(PurePath(trained_on).name))
    texts = [
        base.path.stem,
        base.path.name,
        *(base.metadata[key].data for key in _NAME_KEYS if key in base.metadata),
    ]
    known = [name for text in texts if (name := _squeezed(str(text)))]
    if not wanted or any(wanted in name or name in wanted for name in known):
        return None
    return f"the adapter was trained on {trained_on!r}, the base is {base.path.name!r}: are these the same weights?"


def _squeezed(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
