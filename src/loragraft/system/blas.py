"""The threads of NumPy's BLAS. Its sums depend on how many there are, and they stand in the way of ours."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

#: How OpenBLAS calls it, alone and in NumPy's wheels.
_NAMES = ("scipy_openblas_{}_num_threads64_", "openblas_{}_num_threads64_", "openblas_{}_num_threads")


@cache
def _openblas() -> tuple[Any, Any] | None:
    """Its functions to get and to set the number; None where NumPy has another BLAS, or none that is found."""
    try:
        maps = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    for path in dict.fromkeys(line.split(maxsplit=5)[-1] for line in maps if "openblas" in line):
        try:
            library = ctypes.CDLL(path)
        except OSError:
            continue
        for name in _NAMES:
            try:
                return library[name.format("get")], library[name.format("set")]
            except AttributeError:
                continue
    return None


def threads() -> int | None:
    """How many there are, if that is known."""
    found = _openblas()
    return None if found is None else int(found[0]())


@contextmanager
def one_thread() -> Iterator[None]:
    """One of them, in the whole process, where that can be set."""
    found, before = _openblas(), threads()
    if found is None or before is None or before == 1:
        yield
        return
    found[1](1)
    try:
        yield
    finally:
        found[1](before)
