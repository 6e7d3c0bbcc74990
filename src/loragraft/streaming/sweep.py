"""The one loop over the weights of a model: chunks of rows, which threads take one after another.

There is no barrier between tensors. Of the mapped inputs only the chunks under way, and those that are read ahead, are
resident.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from loragraft.streaming.steps import Chunk
from loragraft.system.mapped import reads_remotely
from loragraft.system.threads import in_threads

_Result = TypeVar("_Result")

#: How many chunks per thread the inputs are read ahead; and how many in all where they come over a network, whose
#: answers take long.
READ_AHEAD, READ_FAR_AHEAD = 2, 48


def sweep(chunks: Iterable[Chunk], work: Callable[[Chunk], _Result], *, threads: int) -> list[_Result]:
    """What `work` makes of each chunk, in the order of `chunks`, so that a sum of it does not depend on the threads.

    The first exception ends it and is raised.
    """

    def done(item: tuple[Chunk, Sequence[Chunk]]) -> _Result:
        chunk, coming = item
        for later in coming:
            later.step.source.prefetch(later.start, later.stop)
        result = work(chunk)
        chunk.step.source.release(chunk.start, chunk.stop)
        return result

    ahead = threads * READ_AHEAD
    if reads_remotely():
        ahead = max(ahead, READ_FAR_AHEAD)
    return in_threads(done, _with_coming(chunks, ahead), threads)


def _with_coming(chunks: Iterable[Chunk], ahead: int) -> Iterator[tuple[Chunk, Sequence[Chunk]]]:
    """`chunks`, each with those that are to be read ahead when it is taken."""
    source, waiting = iter(chunks), deque[Chunk]()
    while coming := list(itertools.islice(source, ahead + 1 - len(waiting))):
        waiting += coming
        yield waiting.popleft(), coming
    while waiting:
        yield waiting.popleft(), ()
