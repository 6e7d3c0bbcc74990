"""The engine's threads beside processes that want the same processors."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import numpy as np
import pytest

from loragraft.quants.types import BY_NAME
from products import Product, random_weight

PROCESSORS = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


@pytest.mark.skipif(len(PROCESSORS) < 2 or not hasattr(os, "SCHED_IDLE"), reason="two processors and Linux")
def test_a_worker_that_gets_no_processor_is_not_waited_for() -> None:
    """The worker shares a processor with a process that leaves it next to nothing."""
    kind, rng, columns = BY_NAME["Q8_0"], np.random.default_rng(0), 256
    before = set(os.listdir("/proc/self/task"))
    product = Product(kind, random_weight(kind, rng, columns, 96), columns, q8=True, threads=2)
    (worker,) = (int(task) for task in set(os.listdir("/proc/self/task")) - before)
    x = rng.standard_normal((1, columns), np.float32)
    expected = product(x)
    os.sched_setaffinity(worker, PROCESSORS[:1])
    os.sched_setscheduler(worker, os.SCHED_IDLE, os.sched_param(0))
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        os.sched_setaffinity(busy.pid, PROCESSORS[:1])
        times = []
        for _ in range(100):
            time.sleep(0.001)  # the worker sleeps as well
            start = time.perf_counter()
            found = product(x)
            times.append(time.perf_counter() - start)
            np.testing.assert_array_equal(found, expected)
    finally:
        busy.kill()
        busy.wait()
    # 96 rows take microseconds; the worker, many milliseconds, every time. Others may disturb some of the calls.
    assert sorted(times)[len(times) // 10] < 0.001
