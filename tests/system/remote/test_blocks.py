"""The cache of blocks: each byte is fetched once, within bounds, by whatever threads."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from loragraft.system.remote import blocks, stores
from loragraft.system.remote.blocks import BLOCK, Blocks, RemoteFile
from loragraft.system.remote.paths import RemotePath
from loragraft.system.remote.store import Facts

SIZE = 37 * BLOCK + 1234
CONTENT = np.random.default_rng(0).integers(0, 256, SIZE, dtype=np.uint8).tobytes()


class Memory(stores.Store):
    """A store of one file, which notes what is read."""

    def __init__(self) -> None:
        super().__init__()
        self.read_: list[tuple[int, int]] = []
        self.failing = 0

    def facts(self, path: RemotePath) -> Facts | None:
        return Facts(SIZE, "1") if path.name == "file" else None

    def children(self, path: RemotePath) -> list[str]:
        return [] if path.name == "file" else ["file"]

    def read(self, path: RemotePath, facts: Facts, start: int, stop: int) -> bytes:
        if self.failing:
            self.failing -= 1
            raise OSError("the cable is out")
        self.read_.append((start, stop))
        return CONTENT[start:stop]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Memory:
    memory = Memory()
    monkeypatch.setattr(stores, "_store", lambda scheme: memory)
    return memory


def opened(capacity: int = 1 << 28) -> RemoteFile:
    return RemoteFile(RemotePath("s3://bucket/file"), Facts(SIZE, "1"), Blocks(capacity))


def test_any_range_is_the_files_own(store: Memory) -> None:
    file = opened()
    for start, count in [(0, 1), (BLOCK - 1, 2), (5, 3 * BLOCK), (SIZE - 1, 1), (0, SIZE), (SIZE, 0)]:
        assert file.view(start, count).tobytes() == CONTENT[start : start + count]
        assert not file.view(start, max(count, 0)).flags.writeable or count == 0
    assert file[-4:] == CONTENT[-4:]
    with pytest.raises(IndexError):
        file.view(SIZE - 1, 2)


def test_each_byte_is_fetched_once_from_many_threads(store: Memory) -> None:
    file = opened()
    rng = np.random.default_rng(1)
    ranges = [sorted(rng.integers(0, SIZE + 1, 2).tolist()) for _ in range(200)]

    def read(span: list[int]) -> bool:
        file.prefetch(*span)
        return file.view(span[0], span[1] - span[0]).tobytes() == CONTENT[span[0] : span[1]]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, ranges))
    covered = np.zeros(SIZE, int)
    for start, stop in store.read_:
        covered[start:stop] += 1
    assert covered.max() == 1


def test_neighbours_that_are_wanted_come_in_one_request(store: Memory) -> None:
    file = opened()
    file.view(0, SIZE)
    assert len(store.read_) < 6


def test_the_cache_is_bounded(store: Memory) -> None:
    file = opened(capacity=6 * BLOCK)
    for start in range(0, SIZE - BLOCK, BLOCK // 2):
        file.prefetch(start, start + 2 * BLOCK)
        assert file.view(start, BLOCK).tobytes() == CONTENT[start : start + BLOCK]
        assert sum(map(len, file._blocks._there.values())) <= 6 * BLOCK
    assert file.view(0, SIZE).tobytes() == CONTENT  # more than fits at once


def test_what_was_released_goes_first(store: Memory) -> None:
    file = opened(capacity=4 * BLOCK)
    for block in range(4):
        file.view(block * BLOCK, 1)
    file.release(2 * BLOCK, 3 * BLOCK)
    file.view(5 * BLOCK, 1)
    assert sorted(key[2] for key in file._blocks._there) == [0, 1, 3, 5]


def test_an_error_reaches_who_waits_and_is_forgotten(store: Memory) -> None:
    file = opened()
    store.failing = 1
    with pytest.raises(OSError, match="cable"):
        file.view(0, 10)
    assert file.view(0, 10).tobytes() == CONTENT[:10]


def test_threads_end_when_there_is_nothing_to_do(store: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_IDLE", 0.01)
    file = opened()
    file.view(0, SIZE)
    for thread in threading.enumerate():
        if thread.name == "loragraft-fetch":
            thread.join(10)
            assert not thread.is_alive()
    assert file.view(3, 4).tobytes() == CONTENT[3:7]


def test_a_header_grows_as_it_is_needed(store: Memory) -> None:
    file = opened()
    head = file.head(30 * BLOCK)
    filled = file.fill(head, 0, 16)
    assert filled == 2 * BLOCK
    assert head[:filled] == CONTENT[:filled]
    filled = file.fill(head, filled, 7 * BLOCK + 1)
    assert 7 * BLOCK + 1 <= filled <= 8 * BLOCK
    assert head[:filled] == CONTENT[:filled]
    assert sum(stop - start for start, stop in store.read_) == filled
