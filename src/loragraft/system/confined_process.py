"""The other end of `confined.py`: answers requests, a line of JSON each, under the system's limits of time and memory.

`confined_process.py PROGRAM PLACES...`: PROGRAM defines `answer(request)`, MAX_SECONDS of processor time for one answer
and MAX_MEMORY, bytes beside those of the process itself. Nothing of loragraft is imported here.
"""

from __future__ import annotations

import json
import resource
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def answered(answer: Callable[[Any], Any], request: Any, max_seconds: int) -> dict[str, Any]:
    """`{"answer": ...}`, or `{"problem": ...}` where it could not be had within the limits."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    seconds = int(used.ru_utime + used.ru_stime) + 1 + max_seconds
    resource.setrlimit(resource.RLIMIT_CPU, (seconds if hard < 0 else min(seconds, hard), hard))
    try:
        return {"answer": answer(request)}
    except MemoryError:
        return {"problem": "it takes too much memory", "spent": True}  # what follows may find none, too
    except RecursionError:
        return {"problem": "it is nested too deeply"}
    except Exception as problem:
        return {"problem": (str(problem) or type(problem).__name__)[:1000]}


def main() -> None:
    """Answer until stdin ends."""
    program, sys.path[:0] = sys.argv[1], sys.argv[2:]
    found = runpy.run_path(program)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = mapped + found["MAX_MEMORY"]
    if soft < 0 or soft > most:
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    for line in sys.stdin.buffer:
        result = answered(found["answer"], json.loads(line), found["MAX_SECONDS"])
        sys.stdout.buffer.write(json.dumps(result).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
