"""The weights of an exported checkpoint: one safetensors file, or several with an index as transformers writes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loragraft.formats.safetensors import plan
from loragraft.streaming.checkpoint.layouts import Task
from loragraft.streaming.writing import FilePlan

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


def file_plans(folder: Path, shards: Sequence[Shard]) -> list[FilePlan]:
    """The files, to be written by `loragraft.streaming.writing`."""
    return [_file_plan(folder / shard.name, shard.tasks) for shard in shards]


def _file_plan(path: Path, tasks: Sequence[Task]) -> FilePlan:
    layout = plan([spec for task in tasks for spec in task.specs], _METADATA)
    pieces = {task.step.name: task.pieces for task in tasks if task.pieces is not None}
    return FilePlan(path, layout, [task.step for task in tasks], pieces)
