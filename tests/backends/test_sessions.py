"""Sessions of every backend: the cache, rewinding, windows, what is refused."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import cast

import numpy as np
import pytest

from loragraft.backends.base import Backend, Session
from loragraft.backends.cpu.session import NativeBackend
from loragraft.backends.program import Options
from loragraft.backends.reference import ReferenceBackend
from loragraft.errors import GraphError
from small_models import small_model
from tolerances import REFERENCE, nmse

IDS = np.array([3, 17, 39, 0, 17, 5, 21, 8], dtype=np.int32)


@pytest.fixture(params=[ReferenceBackend(), NativeBackend()], ids=lambda backend: backend.name)
def backend(request: pytest.FixtureRequest) -> Backend:
    return cast(Backend, request.param)


def open_small(backend: Backend, options: Options | None = None) -> Session:
    small = small_model("llama", np.random.default_rng(2), layers=2)
    return backend.open(small.graph(), small.arrays, options)


def test_the_cache_remembers(backend: Backend) -> None:
    whole = open_small(backend).forward(IDS)
    session = open_small(backend)
    pieces = [session.forward(part) for part in np.split(IDS, [1, 2, 6])]
    assert session.n_past == len(IDS)
    assert nmse(np.concatenate(pieces), whole) < REFERENCE


def test_last_only_gives_the_last_row(backend: Backend) -> None:
    whole, last = open_small(backend).forward(IDS), open_small(backend).forward(IDS, last_only=True)
    assert last.shape == (1, 40)
    assert nmse(last[0], whole[-1]) < REFERENCE


def test_reset_forgets_all_or_the_end(backend: Backend) -> None:
    session = open_small(backend)
    whole = session.forward(IDS)
    session.reset(5)
    assert session.n_past == 5
    assert nmse(session.forward(IDS[5:]), whole[5:]) < REFERENCE
    session.reset()
    assert nmse(session.forward(IDS), whole) < REFERENCE
    with pytest.raises(GraphError, match="cannot rewind: found 9, expected 0 to 8"):
        session.reset(9)


def test_a_window_hides_what_is_further_back(backend: Backend) -> None:
    small = small_model("qwen2", np.random.default_rng(2))
    full = backend.open(small.graph(), small.arrays).forward(IDS)
    small.metadata["qwen2.attention.sliding_window"] = small.metadata[
        "qwen2.attention.head_count"
    ]  # 4 positions
    session = backend.open(small.graph(), small.arrays)
    windowed = session.forward(IDS)
    assert nmse(windowed[:4], full[:4]) < REFERENCE
    assert nmse(windowed[4:], full[4:]) > 1e-4
    # One layer: the last token sees exactly the window's four, at their own positions.
    session.reset(4)
    alone = session.forward(IDS[4:])
    assert nmse(alone, windowed[4:]) < REFERENCE


def test_misuse_is_refused(backend: Backend) -> None:
    with pytest.raises(GraphError, match="no such token: found 40, expected 0 to 39"):
        open_small(backend).forward(np.array([1, 40], dtype=np.int32))
    with pytest.raises(GraphError, match="the context is full: found 8, expected up to 7 tokens"):
        open_small(backend, Options(context=7)).forward(IDS)
    with pytest.raises(GraphError, match="at least one"):
        open_small(backend).forward(IDS[:0])


def test_one_thread_at_a_time(backend: Backend) -> None:
    """A second thread is told so; what the first computes stays right."""
    session = open_small(backend)
    expected = open_small(backend).forward(np.tile(IDS, 60))
    refused: list[str] = []

    def disturb() -> None:
        while not done.is_set():
            try:
                session.reset(0)
            except GraphError as error:
                refused.append(str(error))

    done = threading.Event()
    append = session._append

    def slow(ids: np.ndarray, last_only: bool) -> np.ndarray:
        other.start()
        while not refused:
            time.sleep(0.001)
        return append(ids, last_only)

    session._append = slow  # type: ignore[method-assign]
    other = threading.Thread(target=disturb)
    try:
        logits = session.forward(np.tile(IDS, 60))
    finally:
        done.set()
        other.join()
    assert np.array_equal(logits, expected)
    assert refused[0] == "session: is in use by another thread; load one model for each thread"


def test_a_forked_child_computes_the_same(backend: Backend) -> None:
    """A fork copies no thread but the caller's: a pool made before must not wait for the others."""
    session = open_small(backend, Options(threads=3))
    expected = session.forward(np.tile(IDS, 8))
    child = os.fork()
    if child == 0:
        session.reset()
        same = np.array_equal(session.forward(np.tile(IDS, 8)), expected)
        del session
        os._exit(0 if same else 1)
    deadline = time.monotonic() + 60
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.01)
    if ended == (0, 0):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert ended == (child, 0)
