"""Windows of a text, spread over workers: what is made of them comes back in the text's order.

So sums over windows have the same bits for any number of workers.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from loragraft.inference.measurement import Measurement, Window
from loragraft.progress import Progress
from loragraft.system.workers import Workers, crew_of
from loragraft.system.workers.crew import Spread

_Made = TypeVar("_Made")


@dataclass(frozen=True)
class _Maker:
    """`make` in the folder of the driver, whose paths may be relative."""

    make: Callable[[Measurement], Callable[[Window], Any]]
    how: Measurement
    folder: str

    def __call__(self) -> Callable[[Window], Any]:
        with contextlib.suppress(OSError):
            os.chdir(self.folder)
        return self.make(self.how)


def each_window(
    windows: Iterable[Window],
    here: Callable[[], Callable[[Window], _Made]],
    there: Callable[[Measurement], Callable[[Window], _Made]],
    take: Callable[[_Made], None],
    how: Measurement,
    *,
    workers: Workers | None = None,
    progress: Progress,
) -> None:
    """`take` what is made of each window, in order: by the function of `here()`; or in each of `workers` by that of
    `there(how)`, with a worker's threads in `how`. `there` is picklable, and so is what its function makes.

    Raises what they raise; LoragraftError for what means no workers.
    """
    if workers is None:
        read = here()
        for window in windows:
            take(read(window))
        return
    parts = list(windows)
    place = {id(window): index for index, window in enumerate(parts)}
    early: dict[int, _Made] = {}
    awaited = 0

    def done(window: Window, made: _Made) -> None:
        nonlocal awaited
        early[place[id(window)]] = made
        while awaited in early:
            take(early.pop(awaited))
            awaited += 1

    crew, threads = crew_of(workers, how.threads)
    with crew:
        spread = Spread(crew, _Maker(there, replace(how, text="", threads=threads), os.getcwd()), parts, done)
        spread.run()
    if spread.lost:
        progress.note(f"{spread.lost} of the workers died; what they were doing was done again")
