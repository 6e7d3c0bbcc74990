"""NumPy's BLAS on one thread: in the whole process, and only for a while."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from loragraft.system import blas


def test_as_many_as_before_afterwards() -> None:
    code = (
        "import numpy as np\n"
        "from loragraft.system import blas\n"
        "before = blas.threads()\n"
        "with blas.one_thread():\n"
        "    inside = blas.threads()\n"
        "    with blas.one_thread():\n"
        "        pass\n"
        "    assert blas.threads() == inside\n"
        "assert blas.threads() == before\n"
        "print(before, inside)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "OPENBLAS_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    if "openblas" in str(np.show_config(mode="dicts")).lower() and sys.platform == "linux":
        assert done.stdout.split()[1] == "1"
    else:
        assert done.stdout.split()[1] in ("1", "None")


def test_another_blas_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas, "_openblas", lambda: None)
    assert blas.threads() is None
    with blas.one_thread():
        assert blas.threads() is None
