"""The folder of adapters: what lies in it can be asked for by name, as soon as it is there."""

from __future__ import annotations

import logging
import os
import threading
import unicodedata
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from stat import S_ISREG

from loragraft.errors import AdapterError, printable
from loragraft.formats.peft import CONFIG
from loragraft.inference.scheduler.shelf import Shelf
from loragraft.server.names import is_name

log = logging.getLogger("loragraft.server")
_SECONDS = 1.0
#: What makes a folder an adapter: PEFT's file, PEFT's list of shards, or mlx-lm's file.
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.safetensors.index.json", "adapters.safetensors")

Stamp = tuple[tuple[int, int, int], ...]


class Watcher:
    """Keeps the shelf's names those of the adapters in `folder`, each PEFT or mlx-lm folder or .gguf file by its name.
    An adapter that changes on disk is loaded anew for the next request. `taken`: names that the folder cannot give."""

    def __init__(self, folder: Path, shelf: Shelf, taken: Collection[str] = ()) -> None:
        self._folder = folder
        self._shelf = shelf
        self._taken = frozenset(taken)
        self._seen: dict[str, tuple[Path, Stamp]] = {}
        self._passed_over: set[Path] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="adapters-dir", daemon=True)

    def start(self) -> None:
        self.look()
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def look(self) -> None:
        """Compare the folder with what was seen last."""
        found: dict[str, tuple[Path, Stamp]] = {}
        try:
            for name, path, stamp in self._adapters():
                if name in self._taken or name in found:
                    self._pass_over(name, path)
                else:
                    found[name] = (path, stamp)
        except OSError:  # taken away for a moment: what is loaded goes on
            return
        for name in self._seen.keys() - found.keys():
            with suppress(AdapterError):  # a client has unloaded it
                self._shelf.unregister(name)
        for name, (path, stamp) in found.items():
            if self._seen.get(name) != (path, stamp):
                self._shelf.register(name, path)
        self._seen = found

    def _watch(self) -> None:
        while not self._stop.wait(_SECONDS):
            self.look()

    def _pass_over(self, name: str, path: Path) -> None:
        if path not in self._passed_over:
            self._passed_over.add(path)
            log.warning(
                "%s: passed over: something else is called %s; rename it",
                printable(path.name),
                printable(name),
            )

    def _adapters(self) -> Iterator[tuple[str, Path, Stamp]]:
        for path in sorted(self._folder.iterdir()):
            if path.name.startswith("."):
                continue
            stem = path.name.removesuffix(".gguf")
            name = unicodedata.normalize("NFC", stem)  # some systems take letters apart
            if is_name(name) and (stamp := _stamp(path, is_gguf=stem != path.name)):
                yield name, path, stamp


def _stamp(path: Path, *, is_gguf: bool) -> Stamp:
    """When the adapter at `path` was written last; empty for what is none."""
    if is_gguf and (facts := _facts(path)):
        return (facts,)
    for weights in _WEIGHTS:
        if facts := _facts(path / weights):
            return facts, _facts(path / CONFIG) or (0, 0, 0)
    return ()


def _facts(path: Path) -> tuple[int, int, int] | None:
    try:
        facts = os.stat(path)
    except OSError:
        return None
    return (facts.st_ino, facts.st_mtime_ns, facts.st_size) if S_ISREG(facts.st_mode) else None
