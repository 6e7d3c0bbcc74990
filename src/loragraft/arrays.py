"""Names for NumPy's arrays, by what they hold. Shapes are said where an array is passed."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int32]
Ids = npt.NDArray[np.int32]
"""Tokens, by their number in the vocabulary."""
Array = npt.NDArray[Any]
