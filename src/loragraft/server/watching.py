"""The folder of adapters: what lies in it can be asked for by name, as soon as it is there."""

from __future__ import annotations

import threading
from pathlib import Path

from loragraft.inference.scheduler.shelf import Shelf
from loragraft.server.names import is_name

_SECONDS = 1.0


class Watcher:
    """Keeps the shelf's names those of the adapters in `folder`, each PEFT folder or .gguf file by its name. An
    adapter that changes on disk is loaded anew for the next request."""

    def __init__(self, folder: Path, shelf: Shelf) -> None:
        self._folder = folder
        self._shelf = shelf
        self._seen: dict[str, tuple[Path, tuple[int, int]]] = {}
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
        found = dict(self._adapters())
        for name in self._seen.keys() - found.keys():
            if self._shelf.knows(name):
                self._shelf.unregister(name)
        for name, (path, stamp) in found.items():
            if self._seen.get(name) != (path, stamp):
                self._shelf.register(name, path)
        self._seen = found

    def _watch(self) -> None:
        while not self._stop.wait(_SECONDS):
            self.look()

    def _adapters(self) -> list[tuple[str, tuple[Path, tuple[int, int]]]]:
        adapters = []
        try:
            entries = sorted(self._folder.iterdir())
        except OSError:  # taken away for a moment: what is loaded goes on
            return list(self._seen.items())
        for path in entries:
            weights = path / "adapter_model.safetensors" if path.is_dir() else path
            if path.name.startswith(".") or (not path.is_dir() and path.suffix != ".gguf"):
                continue
            try:
                facts = weights.stat()
            except OSError:
                continue
            name = path.stem if path.suffix == ".gguf" else path.name
            if not is_name(name):
                continue
            adapters.append((name, (path, (facts.st_mtime_ns, facts.st_size))))
        return adapters
