"""One format's mutants in one process: `worker.py FORMAT FIRST COUNT FOLDER CORPUS`; what happened goes to stdout, a
line of JSON for each event and one at the end. The driver ends it where it stands still."""

from __future__ import annotations

import faulthandler
import json
import mmap
import random
import re
import resource
import shutil
import sys
import time
import traceback
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

#: Bytes that a mutant may take, however small it is; its size adds to that. Seconds of processor time for one.
MEMORY, SECONDS = 120_000_000, 6.0


def resident() -> int:
    """The most bytes that the process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Progress:
    """Tells the driver which seed it is at, without a system call for each."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(8))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 8)

    def at(self, seed: int) -> None:
        self._map[:] = seed.to_bytes(8, "little")


def main() -> None:
    name, first, count, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    corpus = Path(sys.argv[5], name)
    from fuzz.formats import FORMATS
    from loragraft.errors import LoragraftError

    faulthandler.enable()
    warnings.simplefilter("ignore")
    progress = Progress(folder / "progress")
    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    format_ = FORMATS[name](work)
    format_.learn(corpus, random.Random(first))
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = mapped + (2 << 30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    seen: set[str] = set()
    outcomes = {"read": 0, "refused": 0}
    baseline = resident()

    def report(kind: str, seed: int, path: Path | None, detail: str) -> None:
        saved = None
        if path is not None and path.is_file():
            saved = folder / f"{name}-{seed}"
            shutil.copy(path, saved)
        event = {"event": kind, "format": name, "seed": seed, "input": str(saved), "detail": detail[-2000:]}
        print(json.dumps(event), flush=True)

    for seed in range(first, first + count):
        rng = random.Random(f"{name}:{seed}")
        progress.at(seed)
        path = format_.mutant(rng)
        start = time.monotonic(), time.process_time()
        outcome = "read"
        try:
            format_.read(path)
            outcomes["read"] += 1
        except LoragraftError as error:
            outcomes["refused"] += 1
            outcome = re.sub(r"[0-9]+|'.*?'", "", error.problem.replace(str(folder), ""))[:60]
            message = str(error)
            if "\n" in message or len(message) > 6500 or not message.isprintable():
                report("message", seed, path, message)
        except MemoryError:
            report("memory", seed, path, traceback.format_exc())
        except BaseException:
            report("escape", seed, path, traceback.format_exc())
        took = time.monotonic() - start[0]  # and a process of its own may work for it
        if took > SECONDS and (used := time.process_time() - start[1]) > SECONDS:
            report("slow", seed, path, f"{used:.1f} s")
        if seed % 16 == 0 and (peak := resident()) > baseline + MEMORY:
            report("memory", seed, path, f"{peak - baseline} bytes, at this seed or one of the 16 before it")
            baseline = peak
        if outcome not in seen:
            seen.add(outcome)
            format_.keep(path, outcome)
    used = time.process_time()
    print(
        json.dumps({"event": "done", "format": name, "ways": len(seen), "used": used, **outcomes}), flush=True
    )


if __name__ == "__main__":
    main()
