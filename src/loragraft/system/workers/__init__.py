"""Work that is spread over processes of this machine, or of many.

A crew runs workers. Each makes its own picture of the work from a picklable description, and then does parts of it, in
any order. What a part writes does not depend on who does it, nor when: so a part of a worker that died is done again by
another one, and the result has the same bytes for any number of workers.
"""

from __future__ import annotations

from loragraft.errors import LoragraftError, check_number
from loragraft.system.threads import MAX_THREADS, thread_count
from loragraft.system.workers.crew import Crew

Workers = int | str
"""So many processes of this machine, or a cluster: `ray`, `ray://HOST:PORT`."""


def crew_of(workers: Workers, threads: int | None) -> tuple[Crew, int]:
    """The crew that is meant, and the threads of each worker: `threads`, or its share of the CPUs. Raises
    LoragraftError for a text that means no workers, or workers that cannot be started."""
    if isinstance(workers, str) and not workers.isdecimal():
        if workers != "ray" and not workers.startswith("ray://"):
            raise LoragraftError(
                "workers", "not understood", found=workers, expected="a number, ray or ray://HOST:PORT"
            )
        from loragraft.system.workers.rays import RayCrew

        crew = RayCrew(workers, threads)
        return crew, crew.threads
    count = int(workers) if isinstance(workers, str) else workers
    check_number("workers", count, int, least=1)
    if count > MAX_THREADS:
        raise LoragraftError("workers", "too many", found=count, expected=f"1 to {MAX_THREADS}")
    from loragraft.system.workers.processes import ProcessCrew

    return ProcessCrew(count), threads or max(thread_count(None) // count, 1)
