"""A crew of actors of Ray (extra `ray`): Ray places them on its nodes, our code is what runs in them."""

from __future__ import annotations

import importlib
import logging
import os
import socket
from collections.abc import Hashable
from typing import Any

from loragraft.errors import LoragraftError
from loragraft.system.workers.crew import Crew, Done, Failed, Lost, Make
from loragraft.system.workers.processes import answered


class _Actor:
    """A worker, on whichever node."""

    def __init__(self) -> None:
        importlib.import_module("numpy")  # most of the time that what is asked for takes to import
        self._make: Make | None = None
        self._work: Any = None

    def begin(self, make: Make) -> None:
        self._make = make

    def do(self, part: Any) -> Any:
        if self._work is None:
            assert self._make is not None
            make = self._make
            made = answered(lambda _: make(), None)
            if isinstance(made, BaseException):
                return made
            (self._work,) = made
        return answered(self._work, part)


#: What to do where there is no cluster.
_START = "start one: ray start --head; or name another: RAY_ADDRESS=HOST:6379, --workers ray://HOST:10001"
#: Seconds in which a cluster must answer: Ray itself tries for minutes.
_PATIENCE = 10.0


def _check_answers(address: str) -> None:
    """Raises LoragraftError if nothing listens at `address`, if that is a host and a port."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _PATIENCE).close()
    except (OSError, OverflowError) as problem:
        raise LoragraftError(address, f"no cluster answers: {problem}", hint=_START) from None


class RayCrew(Crew):
    """As many actors as the cluster has CPUs for, each with `threads`; at most `size`, if it is given. They start at
    once: they are ready, or nearly so, by the time that there is something to do.

    `address`: `ray` for the cluster that this machine belongs to (or RAY_ADDRESS names), or `ray://HOST:PORT`. Raises
    LoragraftError if there is none.
    """

    def __init__(self, address: str, threads: int | None = None, size: int | None = None) -> None:
        try:
            import ray
        except ImportError:
            raise LoragraftError(
                address, "needs the package ray", hint="pip install 'loragraft[ray]'"
            ) from None
        self._ray: Any = ray
        self._began = not ray.is_initialized()
        if self._began:
            where = address if address != "ray" else os.environ.get("RAY_ADDRESS") or "auto"
            _check_answers(where)
            try:
                ray.init(where, logging_level=logging.ERROR, log_to_driver=False)
            except Exception as problem:  # Ray's and gRPC's, of several kinds
                said = str(problem).splitlines()[0][:200] if str(problem) else type(problem).__name__
                if "ray[client]" in said:
                    raise LoragraftError(
                        address, "needs Ray's client", hint="pip install 'loragraft[ray]'"
                    ) from None
                if where == "auto":
                    said = "none runs on this machine"
                raise LoragraftError(address, f"no cluster answers: {said}", hint=_START) from None
        cpus = [int(node["Resources"].get("CPU", 0)) for node in self._ray.nodes() if node["Alive"]]
        self.threads = threads or max(min((each for each in cpus if each), default=1), 1)
        places = sum(each // self.threads for each in cpus)
        if not places:
            raise LoragraftError(
                address, "no node has so many CPUs", found=max(cpus, default=0), expected=self.threads
            )
        self.size = min(places, size or places)
        self._actors: dict[str, Any] = {}
        self._hired = 0
        self._asked: dict[Any, str] = {}
        self._idle = [self._started() for _ in range(self.size)]

    def _started(self) -> Any:
        return self._ray.remote(num_cpus=self.threads)(_Actor).remote()

    def hire(self, make: Make) -> Hashable:
        actor = self._idle.pop() if self._idle else self._started()
        actor.begin.remote(make)
        name = f"actor {self._hired}"
        self._hired += 1
        self._actors[name] = actor
        return name

    def give(self, worker: Hashable, part: Any) -> None:
        self._asked[self._actors[str(worker)].do.remote(part)] = str(worker)

    def wait(self) -> list[Done | Failed | Lost]:
        ready, _ = self._ray.wait(list(self._asked), num_returns=1)
        return [self._news(reference) for reference in ready]

    def _news(self, reference: Any) -> Done | Failed | Lost:
        worker = self._asked.pop(reference)
        try:
            answer = self._ray.get(reference)
        except self._ray.exceptions.RayError as problem:
            self._actors.pop(worker, None)
            return Lost(worker, str(problem).splitlines()[0][:200])
        return Failed(worker, answer) if isinstance(answer, BaseException) else Done(worker, answer[0])

    def dismiss(self, worker: Hashable) -> None:
        actor = self._actors.pop(str(worker), None)
        if actor is not None:
            self._ray.kill(actor)

    def close(self) -> None:
        for actor in [*self._actors.values(), *self._idle]:
            self._ray.kill(actor)
        self._actors.clear()
        self._idle.clear()
        if self._began:
            self._ray.shutdown()
