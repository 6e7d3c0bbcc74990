"""Adapters by name: loaded when a request first asks for one, dropped when others need the memory.

Reading an adapter's files happens on a thread of its own, so that replies under way do not wait for it. An adapter
that cannot be loaded is the error of the requests that ask for it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from loragraft.adapters.effect import idle_targets
from loragraft.adapters.lora import Adapter
from loragraft.adapters.receipt import digest_of
from loragraft.backends.batch import AdapterSet
from loragraft.backends.program import Program
from loragraft.errors import AdapterError, LoragraftError, UnknownAdapterError
from loragraft.inference.scheduler.identity import contents_of, stamp_of
from loragraft.inference.scheduler.prefixes import AdapterKey
from loragraft.inference.scheduler.request import Ran

log = logging.getLogger("loragraft.scheduler")
Reader = Callable[[Path], Adapter]
_TRIES = 3  # to read files that are being replaced


@dataclass(slots=True)
class Loaded:
    """An adapter in a slot of the program."""

    slot: int
    size: int
    """Bytes that it takes in memory."""
    sha256: str
    """Of the file that holds its tensors."""
    contents: str
    """What it is told apart by (`identity.contents_of`)."""
    scale: float | None
    tensors: int
    changing: int
    invocation: tuple[int, ...] = ()

    def ran(self, name: str, strength: float) -> Ran:
        return Ran(name, strength, self.sha256, self.scale, self.tensors, self.changing)


@dataclass(slots=True, eq=False)
class _Known:
    path: Path
    strength: float
    number: int
    loaded: Loaded | None = None
    loading: Future[Loaded] | None = None
    users: int = 0
    used: int = 0
    stale: bool = False
    """Its name was given to another file, or taken away, while requests still ran with it."""


@dataclass(frozen=True, slots=True)
class Listed:
    """What can be told of a known adapter."""

    name: str
    number: int
    """Its own as long as it is known."""
    path: Path
    strength: float
    loaded: bool
    size: int
    users: int


@dataclass
class Lease:
    """What a request holds from when its adapters are asked for until it ends: they cannot be dropped. Until it is
    `ready`, some of them are still being loaded, and nothing but `known` is of use."""

    known: list[tuple[str, _Known, float]] = field(default_factory=list)
    ready: bool = False

    def complete(self) -> None:
        """All are loaded."""
        # They are asked for in every pass, and do not change while the lease is held.
        loaded = [(name, entry.loaded, strength) for name, entry, strength in self.known if entry.loaded]
        always = [each for each in loaded if not each[1].invocation]
        self.slots: AdapterSet = tuple((one.slot, strength) for _, one, strength in loaded)
        self.key: AdapterKey = tuple((one.contents, strength) for _, one, strength in loaded)
        self.ran = tuple(one.ran(name, strength) for name, one, strength in loaded)
        self.invocations = {name: one.invocation for name, one, _ in loaded if one.invocation}
        self.early_slots: AdapterSet = tuple((one.slot, strength) for _, one, strength in always)
        """Those that work before invocation tokens, too."""
        self.early_key: AdapterKey = tuple((one.contents, strength) for _, one, strength in always)
        self.ready = True


class Shelf:
    """The adapters that a program can run with. `most_bytes`: how much those loaded may take together (None: any).

    Methods may be called from any thread.
    """

    def __init__(self, program: Program, reader: Reader, *, most_bytes: int | None = None) -> None:
        self._program = program
        self._reader = reader
        self._most_bytes = most_bytes
        self._known: dict[str, _Known] = {}
        self._leaving: list[_Known] = []
        self._lock = threading.RLock()
        self._threads = ThreadPoolExecutor(1, "adapters")
        self._clock = 0
        self._numbers = count()
        self.changed: Callable[[], None] = lambda: None
        """Called, from any thread, when a load has ended."""

    # ---- names ----

    def register(self, name: str, path: Path, strength: float = 1.0) -> None:
        """Let `name` mean the adapter at `path`; its files are read when a request asks for it, or by `preload`."""
        with self._lock:
            known = self._leave(name)
            self._known[name] = _Known(path, strength, next(self._numbers) if known is None else known.number)

    def unregister(self, name: str) -> None:
        """Forget `name`. Requests that run with it go on. Raises UnknownAdapterError for a name that is not known."""
        with self._lock:
            self._find(name)
            self._leave(name)

    @staticmethod
    def trial_name(name: str) -> str:
        """A name that no client can ask for, to load an adapter under before it takes its own."""
        return f"/{name}"

    def rename(self, old: str, new: str) -> None:
        """Let `new` mean what `old` meant. What `new` meant before is unregistered."""
        with self._lock:
            entry = self._find(old)
            if (known := self._leave(new)) is not None:
                entry.number = known.number
            self._known[new] = self._known.pop(old)
            assert self._known[new] is entry

    def set_strength(self, name: str, strength: float) -> None:
        """The strength for requests that give none."""
        with self._lock:
            self._find(name).strength = strength

    def default_strength(self, name: str) -> float:
        with self._lock:
            return self._find(name).strength

    def knows(self, name: str) -> bool:
        with self._lock:
            return name in self._known

    def listed(self) -> list[Listed]:
        with self._lock:
            return [
                Listed(
                    name,
                    entry.number,
                    entry.path,
                    entry.strength,
                    entry.loaded is not None,
                    entry.loaded.size if entry.loaded else 0,
                    entry.users,
                )
                for name, entry in self._known.items()
                if not name.startswith("/")
            ]

    @property
    def bytes(self) -> int:
        """Of the adapters that are loaded."""
        with self._lock:
            return sum(entry.loaded.size for entry in self._entries() if entry.loaded)

    def preload(self, name: str) -> Loaded:
        """Load `name` now. Raises what its files are wrong about."""
        with self._lock:
            entry = self._find(name)
            if entry.loaded is not None:
                return entry.loaded
            if entry.loading is not None and entry.loading.done():
                entry.loading = None  # it failed before
            future = self._start(entry)
        return future.result()  # and not what is loaded by now: others may have needed the memory already

    # ---- requests ----

    def lease(self, adapters: Iterable[tuple[str, float]], *, load: bool = True) -> Lease | None:
        """Hold these adapters for a request, and have those loaded that are not: the lease is `ready` then, at once or
        when `ready` says so. None if some would have to be loaded and must not (`load`).

        They are held from now on. One that was not would be dropped for the next that is loaded, before anybody could
        use it: two requests could undo each other's loads for ever, and so could two adapters of one request.

        Raises UnknownAdapterError for a name that is not known.
        """
        with self._lock:
            lease = Lease([(name, self._find(name), strength) for name, strength in adapters])
            if not load and any(entry.loaded is None for _, entry, _ in lease.known):
                return None
            self._clock += 1
            for _, entry, _ in lease.known:
                entry.users += 1
                entry.used = self._clock
            for _, entry, _ in lease.known:
                if entry.loaded is None:
                    self._start(entry)
            self._look(lease)
            return lease

    def ready(self, lease: Lease) -> bool:
        """Whether the adapters of the lease are loaded by now. Raises the error of one that cannot be."""
        with self._lock:
            if not lease.ready:
                for _, entry, _ in lease.known:
                    if entry.loaded is None:
                        if entry.loading is not None and entry.loading.done():
                            failed, entry.loading = entry.loading, None
                            failed.result()
                        self._start(entry)
                self._look(lease)
            return lease.ready

    @staticmethod
    def _look(lease: Lease) -> None:
        if all(entry.loaded is not None for _, entry, _ in lease.known):
            lease.complete()

    def release(self, lease: Lease) -> None:
        with self._lock:
            for _, entry, _ in lease.known:
                entry.users -= 1
            for entry in [e for e in self._leaving if not e.users]:
                self._leaving.remove(entry)
                self._drop(entry)
            while self._most_bytes is not None and self.bytes > self._most_bytes and self._drop_idle():
                pass  # more were in use at once than fit

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)

    # ---- loading ----

    def _find(self, name: str) -> _Known:
        if name not in self._known:
            known = [one for one in self._known if not one.startswith("/")]
            raise UnknownAdapterError(
                name,
                "no adapter of this name",
                expected="one of " + (", ".join(known[:20]) or "none: no adapter is known"),
            )
        return self._known[name]

    def _entries(self) -> Iterable[_Known]:
        return [*self._known.values(), *self._leaving]

    def _start(self, entry: _Known) -> Future[Loaded]:
        if entry.loading is None:
            entry.loading = self._threads.submit(self._load, entry)
            entry.loading.add_done_callback(lambda _: self.changed())
        return entry.loading

    def _load(self, entry: _Known) -> Loaded:
        """Raises LoragraftError alone, and without its frames: they would keep the adapter's files open until Python
        looks for cycles."""
        try:
            return self._loaded(entry)
        except LoragraftError as error:
            problem = error
        except Exception as bug:
            log.exception("an adapter cannot be loaded")
            problem = AdapterError(entry.path, f"cannot be loaded ({type(bug).__name__}); this is a bug")
        problem.__traceback__ = problem.__context__ = problem.__cause__ = None
        raise problem

    def _loaded(self, entry: _Known) -> Loaded:
        for _ in range(_TRIES):
            before = stamp_of(entry.path)
            adapter = self._reader(entry.path)
            size = self._program.adapter_bytes(adapter)
            digest, contents = digest_of(adapter.files), contents_of(adapter)
            with self._lock:
                self._make_room(size, entry.path)
            slot = self._program.add_adapter(adapter)
            if stamp_of(entry.path) == before:
                break
            self._program.drop_adapter(slot)  # the parts may be of two files, and the digests of a third
        else:
            raise AdapterError(
                entry.path, "changed while it was read", found=f"{_TRIES} times", hint="ask again in a moment"
            )
        loaded = Loaded(
            slot,
            size,
            digest,
            contents,
            _common_scale(adapter),
            adapter.n_tensors,
            len(adapter.targets) - len(idle_targets(adapter)),
            adapter.invocation,
        )
        with self._lock:
            entry.loading = None
            if entry.stale and not entry.users:  # unregistered meanwhile
                self._program.drop_adapter(slot)
            else:
                entry.loaded = loaded
        return loaded

    def _make_room(self, size: int, path: Path) -> None:
        if self._most_bytes is None:
            return
        if size > self._most_bytes:
            raise AdapterError(
                path,
                "larger than the memory for adapters",
                found=f"{size} bytes",
                expected=f"at most {self._most_bytes}",
                hint="start with a larger --adapter-memory",
            )
        while self.bytes + size > self._most_bytes and self._drop_idle():
            pass  # all in use: over the bound until one of them ends

    def _drop_idle(self) -> bool:
        """Drop the least recently used adapter that nobody uses; whether there was one."""
        idle = [entry for entry in self._known.values() if entry.loaded and not entry.users]
        if idle:
            self._drop(min(idle, key=lambda entry: entry.used))
        return bool(idle)

    def _leave(self, name: str) -> _Known | None:
        entry = self._known.pop(name, None)
        if entry is None:
            return None
        entry.stale = True
        if entry.users:
            self._leaving.append(entry)
        else:
            self._drop(entry)
        return entry

    def _drop(self, entry: _Known) -> None:
        if entry.loaded is not None:
            slot, entry.loaded = entry.loaded.slot, None
            self._program.drop_adapter(slot)


def _common_scale(adapter: Adapter) -> float | None:
    scales = {pair.scale for pair in adapter.pairs.values()}
    return scales.pop() if len(scales) == 1 else None


def plain_only(adapter: Adapter) -> Adapter:
    """`adapter`, if it works beside the base's tensors alone. Raises AdapterError for one that replaces whole tensors
    of the base, which all requests share."""
    if not adapter.is_plain:
        raise AdapterError(
            adapter.path,
            "replaces whole tensors of the base, which other adapters share",
            found=", ".join(sorted(adapter.whole)[:4]),
            expected="what works beside them alone",
            hint="merge it into a model of its own: loragraft merge BASE --lora ADAPTER -o OUT.gguf",
        )
    return adapter
