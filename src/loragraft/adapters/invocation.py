"""aLoRA: adapters that work only from certain tokens of the prompt on (Greenewald et al. 2025, arXiv 2504.12397).

What stands before these tokens is read by the base alone, so its states are the base's own, and conversations with
different such adapters share them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loragraft.errors import AdapterError

_MOST = 4096  # tokens


def invocation_tokens(path: Path, key: str, value: Any) -> tuple[int, ...]:
    """What a file says under `key`, checked. Raises AdapterError."""
    items = value if isinstance(value, list | tuple | np.ndarray) else None
    tokens = [] if items is None else list(items[: _MOST + 1])
    if not 0 < len(tokens) <= _MOST or not all(_is_token(token) for token in tokens):
        raise AdapterError(
            path,
            f"bad {key}",
            found=repr(value)[:80],
            expected=f"1 to {_MOST} tokens, as numbers of 0 or more",
        )
    return tuple(int(token) for token in tokens)


def _is_token(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and 0 <= int(value) < 1 << 31


def invoked_at(prompt: npt.NDArray[np.int32], invocation: tuple[int, ...]) -> int | None:
    """Where in `prompt` the adapter begins to work: the first of the invocation tokens, where they stand last. None if
    they are not there. As PEFT has it (tuners/lora/variants.py, calculate_alora_offsets)."""
    if len(invocation) > len(prompt):
        return None
    windows = np.lib.stride_tricks.sliding_window_view(prompt, len(invocation))
    found = np.flatnonzero((windows == np.array(invocation, np.int32)).all(axis=1))
    return int(found[-1]) if len(found) else None
