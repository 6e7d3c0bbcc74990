"""The weights of an exported checkpoint: one safetensors file, or several with an index as transformers writes them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loragraft.errors import OutputError
from loragraft.formats.safetensors import SafetensorsWriter
from loragraft.progress import Progress
from loragraft.streaming.checkpoint.layouts import Task
from loragraft.system.threads import thread_pool

INDEX = "model.safetensors.index.json"
_METADATA = {"format": "pt"}


@dataclass(frozen=True)
class Shard:
    """One file of weights."""

    name: str
    tasks: Sequence[Task]

    @property
    def size(self) -> int:
        """Of its tensors' data, in bytes."""
        return sum(task.nbytes for task in self.tasks)


def plan_shards(tasks: Sequence[Task], max_bytes: int) -> list[Shard]:
    """Files of at most `max_bytes` of tensor data each, in the order of `tasks`; a task that is larger has its own."""
    groups: list[list[Task]] = [[]]
    size = 0
    for task in tasks:
        if groups[-1] and size + task.nbytes > max_bytes:
            groups.append([])
            size = 0
        groups[-1].append(task)
        size += task.nbytes
    if len(groups) == 1:
        return [Shard("model.safetensors", groups[0])]
    count = len(groups)
    return [Shard(f"model-{n:05}-of-{count:05}.safetensors", group) for n, group in enumerate(groups, 1)]


def index_of(shards: Sequence[Shard]) -> dict[str, Any]:
    """The index of several shards: where each tensor is."""
    where = {spec.name: shard.name for shard in shards for task in shard.tasks for spec in task.specs}
    total = sum(shard.size for shard in shards)
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}


def write_shards(folder: Path, shards: Sequence[Shard], threads: int, progress: Progress) -> None:
    """Compute and write all tensors. Raises OutputError, before anything is computed, if the disk is too small."""
    total, free = sum(shard.size for shard in shards), shutil.disk_usage(folder).free
    if total > free:
        raise OutputError(
            folder, "not enough space on the disk", found=f"{free} bytes free", expected=f"{total}"
        )
    progress.start("Exporting", total)
    with ExitStack() as files, thread_pool(threads) as pool:

        def write(writer: SafetensorsWriter, task: Task, start: int, stop: int) -> None:
            for spec, data in zip(task.specs, task.compute(start, stop), strict=True):
                writer.write(spec.name, spec.nbytes // task.rows * start, np.ascontiguousarray(data))
                progress.advance(data.nbytes)

        done = []
        for shard in shards:
            specs = [spec for task in shard.tasks for spec in task.specs]
            writer = files.enter_context(SafetensorsWriter(folder / shard.name, specs, _METADATA))
            done += [
                pool.submit(write, writer, task, *chunk) for task in shard.tasks for chunk in task.chunks
            ]
        try:
            for future in done:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
