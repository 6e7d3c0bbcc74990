"""GPTQ's 4-bit weights in the layout of the Marlin kernel (Frantar et al. 2024, arXiv 2408.11743).

`X.B` I32 [in / 16, out * 2] has tiles of 16 inputs x 16 outputs, four beside each other to a block of 1024 codes,
which a warp of 32 threads reads: word 4 t + k of a block is thread t's of tile k. Its codes are, from the lowest on,
of inputs 2 (t mod 4) + (0, 8), then the same of the eighth output further on, then all four of the input behind each.
`X.s` [groups, out]: within each 64 outputs, transposed as 8 x 8; with one group, in pairs (below). A weight is (code
- 8) * scale.

Sources: IST-DASLab/marlin (marlin/__init__.py), AutoGPTQ 0.7.1 (nn_modules/qlinear/qlinear_marlin.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loragraft.errors import CheckpointError
from loragraft.huggingface.integer_weights import Find, Integers, Numbers, computed, finite, words_of

_TILE, _BLOCK = 16, 64
"""Inputs (and outputs) of a tile, and outputs of a block."""


def _places() -> tuple[npt.NDArray[np.intp], ...]:
    """Of the 1024 codes of a block, as they lie: the input and the output."""
    thread, tile, code = np.indices((32, 4, 8)).reshape(3, -1)
    of_input = 2 * (thread % 4) + np.array([0, 8, 0, 8, 1, 9, 1, 9])[code]
    of_output = thread // 4 + 8 * np.array([0, 0, 1, 1, 0, 0, 1, 1])[code] + _TILE * tile
    return of_input, of_output


_INPUT, _OUTPUT = _places()
_OF_GROUPS = np.arange(64).reshape(8, 8).T.reshape(-1)
"""Which output a scale is of, in each 64."""
_OF_ALL = (2 * np.arange(4)[:, None] + np.array([0, 1, 8, 9, 16, 17, 24, 25])).reshape(-1)
"""In each 32, where one scale is for all inputs."""


def marlin_weight(path: Path, name: str, find: Find) -> Integers:
    """The weight `name` [out, in] of the tensors B and s. Raises CheckpointError for shapes that do not fit."""
    words, scales = words_of(path, name, find("B"), "B"), find("s")
    columns, out = _TILE * words.shape[0], words.shape[1] // 2
    groups = scales.shape[0] if scales is not None and len(scales.shape) == 2 else 0
    fits = scales is not None and scales.dtype == "F16" and scales.shape == (groups, out)
    if scales is None or not fits or not groups or columns % groups or out % _BLOCK or words.shape[1] % 2:
        raise CheckpointError(
            path,
            f"B and s of {name} do not fit each other",
            found=f"{words.shape} and {'none' if scales is None else f'{scales.dtype} {scales.shape}'}",
            expected="I32 [in / 16, out * 2] and F16 [groups, out], out a multiple of 64",
        )
    order = _OF_ALL if groups == 1 else _OF_GROUPS
    factors = np.empty((groups, out), np.float32)
    stored_factors = finite(path, name, scales).reshape(groups, -1, len(order))
    factors.reshape(stored_factors.shape)[..., order] = stored_factors
    of_input = np.arange(columns) // (columns // groups)
    stored = words.data().view("<u4").reshape(words.shape)
    shifts = np.arange(0, 32, 4, dtype=np.uint32)

    def codes(start: int, stop: int) -> Numbers:
        first, last = start // _BLOCK, -(-stop // _BLOCK)
        taken = stored[:, 2 * _BLOCK * first : 2 * _BLOCK * last].reshape(len(stored), last - first, -1)
        found = np.empty((last - first, _BLOCK, len(stored), _TILE), np.int32)
        eights = taken[..., None] >> shifts & np.uint32(15)
        found[:, _OUTPUT, :, _INPUT] = eights.reshape(len(stored), last - first, -1).T
        return found.reshape(-1, columns)[start - first * _BLOCK : stop - first * _BLOCK]

    def value(start: int, stop: int) -> tuple[Any, Any]:
        return 8, factors.T[start:stop, of_input]

    return Integers(computed(name, (out, columns), scales, codes, value), 4)
