"""Memory of arrays that the C library keeps, and what it gives back."""

from __future__ import annotations

import subprocess
import sys

import pytest

#: Arrays of 40 MB: left to itself glibc maps each of them anew, in 20 large pages at least.
_CODE = """
import os, resource
from pathlib import Path
import numpy as np
from loragraft.system import memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        np.ones(5 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

if not memory.keep_arrays():
    print("cannot")
    raise SystemExit
np.ones(5 << 20)
print(faults())
first, behind = np.ones(5 << 20), np.ones(5 << 20)
del first
full = resident()
memory.give_back()
kept = resident()
memory.KEPT = 0
memory.give_back()
print(full - kept >> 20, kept - resident() >> 20)
"""


@pytest.mark.unsanitized
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_memory_of_arrays_is_kept_and_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", _CODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if done.stdout.strip() == "cannot":
        pytest.skip("this C library cannot")
    again, left, given = map(int, done.stdout.split())
    assert again < 2 * 20, "each takes the memory of the last one"
    assert left < 20, "little that is free is kept"
    assert given > 20, "what is more goes back"
