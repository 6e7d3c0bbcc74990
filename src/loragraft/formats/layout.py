"""Tensor files whose whole layout is known before the first weight is computed."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from loragraft.errors import OutputError
from loragraft.system.output import flat_bytes, open_output
from loragraft.system.remote.paths import RemotePath, as_path


@dataclass(frozen=True)
class FileLayout:
    """Where everything lies in a file that is to be written."""

    header: bytes
    """All that precedes the tensors' data, padding included."""
    offsets: dict[str, int]
    """Of each tensor's data, in bytes from the file's beginning."""
    sizes: dict[str, int]
    """Of each tensor's data, in bytes, without padding."""
    size: int
    """Of the whole file, in bytes."""

    def gaps(self) -> Iterator[tuple[int, int]]:
        """Where there is only padding: bytes [start, stop)."""
        end = len(self.header)
        for name in sorted(self.offsets, key=self.offsets.__getitem__):
            if end < self.offsets[name]:
                yield end, self.offsets[name]
            end = self.offsets[name] + self.sizes[name]
        if end < self.size:
            yield end, self.size


class TensorWriter:
    """A file under way; a context manager that commits on a clean exit and otherwise leaves nothing.

    Any worker may write any part of any tensor; every byte of every tensor must have been written once at the exit.
    `inputs` and `resume` are those of `OutputFile`, as are the errors.
    """

    def __init__(
        self, path: Path | str, layout: FileLayout, *, inputs: Iterable[Path | str] = (), resume: bool = False
    ) -> None:
        self.path = as_path(path)
        self.layout = layout
        self._missing = dict(layout.sizes)
        self._lock = threading.Lock()
        self.output = open_output(self.path, layout.size, inputs=inputs, resume=resume)
        try:
            self.output.write_at(0, layout.header)
            if isinstance(self.path, RemotePath):  # what a file system would fill with zeros
                for start, stop in layout.gaps():
                    self.output.write_at(start, bytes(stop - start))
        except BaseException:
            self.output.discard()
            raise

    def write(self, name: str, offset: int, data: Any) -> None:
        """Write `data` (any C-contiguous buffer) at byte `offset` of tensor `name`. Safe from any thread."""
        view = flat_bytes(data)
        size = self.layout.sizes[name]
        if offset < 0 or offset + len(view) > size:
            raise ValueError(f"bytes [{offset}, {offset + len(view)}) of {name}, which has {size}")
        self.output.write_at(self.layout.offsets[name] + offset, view)
        self.wrote(name, len(view))

    def read(self, name: str) -> bytes:
        """All of tensor `name`, which must have been written."""
        return self.output.read_at(self.layout.offsets[name], self.layout.sizes[name])

    def wrote(self, name: str, count: int) -> None:
        """Take note that `count` bytes of tensor `name` lie in the file, written by other means than `write`."""
        with self._lock:
            self._missing[name] -= count

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            try:
                self._check_complete()
            except OutputError:
                self.output.discard()
                raise
        self.output.__exit__(kind, error, trace)

    def seal(self) -> None:
        """Flush to the disk and close, without committing. Raises `OutputError` if a tensor is incomplete."""
        self._check_complete()
        self.output.seal()

    def _check_complete(self) -> None:
        for name, missing in self._missing.items():
            if missing:
                raise OutputError(
                    self.path,
                    f"tensor {name!r} was not written exactly once",
                    found=f"{missing} bytes missing",
                    hint="this is a defect of loragraft",
                )
