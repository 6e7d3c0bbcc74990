"""A crew of processes of this machine: copies of this one, or each `python -m loragraft.system.workers.processes`.

Parent and worker speak by pickles over two pipes; neither reads what a stranger wrote.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import selectors
import signal
import struct
import subprocess
import sys
import weakref
from collections.abc import Hashable
from typing import IO, Any

from loragraft.errors import LoragraftError
from loragraft.system.workers.copies import Copy, is_alone
from loragraft.system.workers.crew import Crew, Done, Failed, Lost, Make

_Process = subprocess.Popen[bytes] | Copy

_LENGTH = struct.Struct("<Q")


class ProcessCrew(Crew):
    """`size` processes, which start at once: they are ready by the time that there is something to do.

    These are copies of this process, where it may be copied. One that takes the place of another never is: by now this
    process may have locked its output, and a lock is held as long as a copy lives.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._workers: dict[int, _Process] = {}
        self._selector = selectors.DefaultSelector()
        self._idle: list[_Process] = []
        try:
            for _ in range(size):
                self._idle.append(_started(copied=is_alone()))
        except BaseException:
            self.close()
            raise

    @property
    def pids(self) -> list[int]:
        return list(self._workers)

    def hire(self, make: Make) -> Hashable:
        worker = self._idle.pop() if self._idle else _started()
        assert worker.stdout is not None
        self._workers[worker.pid] = worker
        self._selector.register(worker.stdout, selectors.EVENT_READ, worker)
        self._send(worker, make)
        return worker.pid

    def give(self, worker: Hashable, part: Any) -> None:
        process = self._workers.get(worker)  # type: ignore[call-overload]
        if process is not None:
            self._send(process, part)

    def wait(self) -> list[Done | Failed | Lost]:
        return [self._news(key.data) for key, _ in self._selector.select()]

    def dismiss(self, worker: Hashable) -> None:
        process = self._workers.get(worker)  # type: ignore[call-overload]
        if process is not None:
            process.kill()
            self._forget(process)

    def close(self) -> None:
        for worker in [*self._idle, *self._workers.values()]:
            worker.kill()  # all at once: each takes a while to give its memory back
        for worker in list(self._workers.values()):
            self._forget(worker)
        for worker in self._idle:
            _ended(worker)
        self._idle.clear()
        self._selector.close()

    def _send(self, worker: _Process, message: Any) -> None:
        assert worker.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # its end is seen where its answer would be
            _write(worker.stdin, message)

    def _news(self, worker: _Process) -> Done | Failed | Lost:
        assert worker.stdout is not None
        try:
            answer = _read(worker.stdout)
        except (EOFError, OSError, pickle.UnpicklingError):
            status = self._forget(worker)
            return Lost(worker.pid, f"a worker ended with status {status}")
        return (
            Failed(worker.pid, answer) if isinstance(answer, BaseException) else Done(worker.pid, answer[0])
        )

    def _forget(self, worker: _Process) -> int:
        self._workers.pop(worker.pid, None)
        assert worker.stdout is not None
        self._selector.unregister(worker.stdout)
        return _ended(worker)


#: This process's ends of all pipes to workers.
_ENDS: weakref.WeakSet[IO[bytes]] = weakref.WeakSet()


def _started(*, copied: bool = False) -> _Process:
    try:
        worker = Copy(_serve, list(_ENDS)) if copied else _python()
    except OSError as problem:
        raise LoragraftError(
            "workers", f"the system will not start so many: {problem.strerror}", hint="ask for fewer"
        ) from None
    _ENDS.update(stream for stream in (worker.stdin, worker.stdout) if stream is not None)
    return worker


def _python() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "loragraft.system.workers.processes"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,  # an answer in a buffer of ours would not wake the selector
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


def _ended(worker: _Process) -> int:
    """Its status, when it is no more."""
    for stream in (worker.stdin, worker.stdout):
        with contextlib.suppress(OSError):
            stream.close()  # type: ignore[union-attr]
    return worker.wait()


def _write(stream: IO[bytes], message: Any) -> None:
    """Arrays go as they lie in memory, behind the rest."""
    arrays: list[pickle.PickleBuffer] = []
    data = pickle.dumps(message, protocol=5, buffer_callback=arrays.append)
    buffers = [array.raw() for array in arrays]
    sizes = b"".join(_LENGTH.pack(buffer.nbytes) for buffer in buffers)
    head = _LENGTH.pack(len(buffers)) + _LENGTH.pack(len(data)) + sizes
    for part in (memoryview(head), memoryview(data), *buffers):
        done = 0
        while done < len(part):
            done += stream.write(part[done:])
    stream.flush()


def _read(stream: IO[bytes]) -> Any:
    """Raises EOFError if the other side is no more."""
    count, length = (_LENGTH.unpack(_exactly(stream, _LENGTH.size))[0] for _ in range(2))
    sizes = [_LENGTH.unpack(_exactly(stream, _LENGTH.size))[0] for _ in range(count)]
    data = _exactly(stream, length)
    return pickle.loads(data, buffers=[_exactly(stream, size) for size in sizes])


def _exactly(stream: IO[bytes], count: int) -> bytearray:
    """What an array may be made of, and written to."""
    data = bytearray(count)
    rest = memoryview(data)
    while rest:
        got = stream.readinto(rest)  # type: ignore[attr-defined]
        if not got:
            raise EOFError
        rest = rest[got:]
    return data


def answered(work: Any, part: Any) -> Any:
    """What a worker answers: what it made of `part`, in a tuple, or the error."""
    try:
        return (work(part),)
    except LoragraftError as problem:
        return problem
    except Exception as problem:
        return LoragraftError("workers", f"one failed: {problem!r}")


def _serve(asked: IO[bytes], answers: IO[bytes]) -> None:
    """Do what is asked, until the other side is no more."""
    os.dup2(2, 1)  # whatever a library prints is no answer
    try:
        make, work = _read(asked), None
        while True:
            part = _read(asked)
            if work is None:
                made = answered(lambda _: make(), None)
                if isinstance(made, BaseException):
                    _write(answers, made)
                    continue
                (work,) = made
            _write(answers, answered(work, part))
    except (EOFError, BrokenPipeError):
        return


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, who ends us
    asked, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    importlib.import_module("numpy")  # most of the time that what is asked for takes to import
    _serve(asked, answers)


if __name__ == "__main__":
    main()
