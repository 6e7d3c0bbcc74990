"""Work spread over a cluster of Ray's with several nodes (`make test-ray`): the same bytes, whoever dies."""

from __future__ import annotations

import itertools
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import loragraft as lg
from loragraft.streaming import spreading
from paths import data
from streaming.test_calibrated import source
from streaming.test_calibrated_workers import rounded

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]
BASE, ADAPTER = data("llama-kjv"), data("llama-kjv.shakespeare")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Three nodes of one CPU each; this process is the driver."""
    ray = pytest.importorskip("ray", reason="ray is not installed: make test-ray")
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 100 << 20})
    for _ in range(2):
        nodes.add_node(num_cpus=1, object_store_memory=100 << 20)
    nodes.wait_for_nodes()
    ray.init(nodes.address, logging_level="ERROR", log_to_driver=False)
    yield nodes
    ray.shutdown()
    nodes.shutdown()


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("one") / "m.gguf"
    lg.merge(BASE, [ADAPTER], path, type="Q4_K_M")
    return path.read_bytes()


def test_three_nodes_and_four(cluster: Any, tmp_path: Path, merged: bytes) -> None:
    lg.merge(BASE, [ADAPTER], tmp_path / "3.gguf", type="Q4_K_M", workers="ray")
    assert (tmp_path / "3.gguf").read_bytes() == merged
    fourth = cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
    cluster.wait_for_nodes()
    lg.merge(BASE, [ADAPTER], tmp_path / "4.gguf", type="Q4_K_M", workers="ray")
    assert (tmp_path / "4.gguf").read_bytes() == merged
    cluster.remove_node(fourth)


def test_twenty_kills_of_workers_at_random(
    cluster: Any, tmp_path: Path, merged: bytes, monkeypatch: pytest.MonkeyPatch, summary: dict[str, str]
) -> None:
    from loragraft.system.workers.rays import RayCrew

    monkeypatch.setattr(spreading, "PART_WEIGHTS", 1 << 15)
    monkeypatch.setattr(spreading, "BATCH_WEIGHTS", 1)
    chance, given, killed = random.Random(7), 0, 0
    doomed = set(
        itertools.accumulate(chance.randint(5, 8) for _ in range(20))
    )  # else one part might take five

    class Deadly(RayCrew):
        def give(self, worker: Any, part: Any) -> None:
            nonlocal given, killed
            super().give(worker, part)
            given += 1
            if given in doomed:
                self._ray.kill(self._actors[str(worker)])
                killed += 1

    crew = Deadly("ray")
    lg.merge(BASE, [ADAPTER], tmp_path / "m.gguf", type="Q4_K_M", workers=crew)
    assert killed == 20
    assert (tmp_path / "m.gguf").read_bytes() == merged
    summary["ray"] = "20 kills of random workers: same bytes"


def test_calibrated_rounding_and_actors_that_die(cluster: Any, tmp_path: Path) -> None:
    from loragraft.system.workers.rays import RayCrew

    given, killed = 0, 0

    class Deadly(RayCrew):
        def give(self, worker: Any, part: Any) -> None:
            nonlocal given, killed
            super().give(worker, part)
            given += 1
            if given in (4, 25):  # in the gradients, and within a layer
                self._ray.kill(self._actors[str(worker)])
                killed += 1

    model = source(tmp_path, "llama")
    report = rounded(model, tmp_path / "one.gguf")
    with Deadly("ray") as crew:
        assert crew.size == 3
        found = rounded(model, tmp_path / "three.gguf", crew)
    assert killed == 2
    assert (tmp_path / "three.gguf").read_bytes() == (tmp_path / "one.gguf").read_bytes()
    assert found == report


def test_a_process_that_is_killed_from_outside(
    cluster: Any, tmp_path: Path, merged: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spreading, "PART_WEIGHTS", 1 << 16)
    monkeypatch.setattr(spreading, "BATCH_WEIGHTS", 1)
    stop, killed = threading.Event(), []

    def kill() -> None:
        while not stop.is_set() and len(killed) < 2:
            for entry in os.listdir("/proc"):
                if entry.isdecimal():
                    try:
                        name = Path(f"/proc/{entry}/cmdline").read_bytes()
                    except OSError:
                        continue
                    if name.startswith(b"ray::_Actor") and int(entry) not in killed:
                        os.kill(int(entry), signal.SIGKILL)
                        killed.append(int(entry))
                        break
            time.sleep(0.3)

    thread = threading.Thread(target=kill)
    thread.start()
    lg.merge(BASE, [ADAPTER], tmp_path / "m.gguf", type="Q4_K_M", workers="ray")
    stop.set()
    thread.join()
    assert (tmp_path / "m.gguf").read_bytes() == merged
