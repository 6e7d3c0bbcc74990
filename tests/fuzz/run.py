"""`make fuzz`: mutants of every format that is read, in processes with limits of memory and time.

    python tests/fuzz/run.py --seconds 300        as many as fit, all formats in turn
    python tests/fuzz/run.py --mutants 1000000    so many, divided by the formats' shares
    python tests/fuzz/run.py --format gguf --seed 123 --mutants 1    one of them again

A mutant is made of its format, its seed and the corpus: what led somewhere new, in this run and in those before it (in
build/fuzz/corpus). One process at a time works on a format: with --mutants, and no corpus from before, a seed makes the
same mutants on every machine. Seeds are printed, and the inputs that failed are kept in build/fuzz. Exit code 1 if
anything but reading or refusing happened: a crash, a hang, an exception of another kind, more memory than allowed, or a
message of more than one line.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

#: Mutants of one process at most; seconds of processor time, and of any time, that it may take for one of them.
BATCH, STILL, ANY = 10_000, 30.0, 900.0


class Tally:
    """What happened, by format."""

    def __init__(self, keep: Path) -> None:
        self.keep = keep
        self.counts: dict[str, Counter[str]] = {}
        self.seconds: dict[str, float] = defaultdict(float)
        self.failures: list[dict[str, Any]] = []
        self.lock = threading.Lock()

    def fail(self, event: dict[str, Any], folder: Path) -> None:
        with self.lock:
            self.failures.append(event)
            self.counts.setdefault(event["format"], Counter())[event["event"]] += 1
            print(f"{event['event']}: {event['format']} seed {event['seed']}\n{event['detail']}", flush=True)
            self.keep.mkdir(parents=True, exist_ok=True)
            if Path(event["input"]).is_file():
                shutil.copy(event["input"], self.keep)

    def table(self) -> str:
        """`rate`: mutants per second of processor time, the start of the processes included."""
        lines = [_row("format", "mutants", "read", "refused", "ways", *_FAILURES, "rate")]
        total: Counter[str] = Counter()
        for name, counts in [*sorted(self.counts.items()), ("all", total)]:
            total.update({kind: n for kind, n in counts.items() if name != "all"})
            self.seconds["all"] += self.seconds[name] if name != "all" else 0
            failed = {kind: n for kind, n in counts.items() if kind not in ("read", "refused", "ways")}
            mutants = counts["read"] + counts["refused"] + sum(failed.values())
            cells = [sum(n for kind, n in failed.items() if _column(kind) == column) for column in _FAILURES]
            rate = f"{mutants / max(self.seconds[name], 1e-3):.0f}"
            lines.append(_row(name, mutants, counts["read"], counts["refused"], counts["ways"], *cells, rate))
        return "\n".join(lines)


_FAILURES = ("crash", "hang", "memory", "other")


def _column(kind: str) -> str:
    first = {"slow": "hang"}.get(kind, kind.split()[0])
    return first if first in _FAILURES else "other"


def _row(name: str, *cells: object) -> str:
    return f"{name:16}" + "".join(f"{cell:>9}" for cell in cells)


def run_batch(name: str, first: int, count: int, tally: Tally, corpus: Path) -> None:
    """Seeds [first, first + count) of one format; a process that dies or stands still goes on behind that seed."""
    end = first + count
    while first < end:
        with tempfile.TemporaryDirectory(prefix="loragraft-fuzz-", dir=_fast_folder()) as place:
            folder = Path(place)
            command = [
                sys.executable,
                Path(__file__).with_name("worker.py"),
                name,
                str(first),
                str(end - first),
                folder,
                corpus,
            ]
            with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
                surroundings = {**os.environ, "PYTHONHASHSEED": "0"}
                process = subprocess.Popen(command, stdout=out, stderr=err, env=surroundings)
                hung = _wait(process, folder / "progress")
            at = _seed(folder / "progress", first)
            done = False
            for line in (folder / "out").read_text().splitlines():
                event = json.loads(line)
                if event["event"] == "done":
                    done = True
                    with tally.lock:
                        counts = tally.counts.setdefault(name, Counter())
                        counts.update(read=event["read"], refused=event["refused"])
                        counts["ways"] = max(counts["ways"], event["ways"])
                        tally.seconds[name] += event["used"]
                else:
                    tally.fail(event, folder)
            if done:
                return
            mutants = sorted((folder / "work").glob("mutant*"))
            saved = folder / f"{name}-{at}"
            if mutants:
                shutil.copy(mutants[0], saved)
            detail = (folder / "err").read_text()[-3000:]
            kind = "hang" if hung else f"crash {process.returncode}"
            tally.fail(
                {"event": kind, "format": name, "seed": at, "input": str(saved), "detail": detail}, folder
            )
            with tally.lock:
                tally.counts[name].update(refused=max(0, at - first))
            first = at + 1


def _fast_folder() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _wait(process: subprocess.Popen[bytes], progress: Path) -> bool:
    """Whether it stood still, and was ended."""
    last, since, used = -1, time.monotonic(), 0.0
    while process.poll() is None:
        time.sleep(0.05)
        at = _seed(progress, -1)
        if at != last:
            last, since, used = at, time.monotonic(), _processor_time(process.pid)
        elif _processor_time(process.pid) - used > STILL or time.monotonic() - since > ANY:
            process.kill()
            process.wait()
            return True
    return False


def _processor_time(pid: int) -> float:
    """Seconds, of a process of ours: one that waits for its turn does not hang."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _seed(progress: Path, default: int) -> int:
    try:
        return int.from_bytes(progress.read_bytes(), "little") or default
    except OSError:
        return default


def main() -> None:
    from fuzz.formats import FORMATS

    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--mutants", type=int)
    parser.add_argument("--seed", type=int, default=int(time.time()) * 1000)
    parser.add_argument("--format", choices=FORMATS, action="append")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz"))
    chosen = parser.parse_args()
    names = chosen.format or list(FORMATS)
    shares = {name: FORMATS[name].share for name in names}
    tally = Tally(chosen.keep)
    print(f"seed {chosen.seed}", flush=True)
    deadline = None if chosen.seconds is None else time.monotonic() + chosen.seconds
    wanted = chosen.mutants or (None if chosen.seconds else 100_000)
    done: Counter[str] = Counter()
    busy: set[str] = set()
    changed = threading.Condition()
    goal = {
        name: wanted * share // sum(shares.values()) if wanted else None for name, share in shares.items()
    }
    if len(names) == 1 and wanted:
        goal[names[0]] = wanted

    def next_batch() -> tuple[str, int, int] | None:
        """Of the format that is furthest behind its share, of those that nobody works on."""
        with changed:
            while True:
                if deadline is not None and time.monotonic() > deadline:
                    return None
                open_ = [name for name in names if goal[name] is None or done[name] < (goal[name] or 0)]
                if not open_:
                    return None
                if free := [name for name in open_ if name not in busy]:
                    break
                changed.wait()
            name = min(free, key=lambda name: done[name] / shares[name])
            busy.add(name)
            left = BATCH if goal[name] is None else (goal[name] or 0) - done[name]
            few = shares[name] * (20 if done[name] else 2)  # so that every format has its turn soon
            count = min(BATCH if wanted else max(60, few), BATCH, left)
            first = chosen.seed + done[name]
            done[name] += count
            return name, first, count

    def work() -> None:
        while (batch := next_batch()) is not None:
            try:
                run_batch(*batch, tally, chosen.keep / "corpus")
            finally:
                with changed:
                    busy.discard(batch[0])
                    changed.notify_all()

    threads = [threading.Thread(target=work) for _ in range(chosen.processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(tally.table())
    if tally.failures:
        kinds = Counter(event["event"] for event in tally.failures)
        print(f"failures: {dict(kinds)}; inputs in {chosen.keep}")
        raise SystemExit(1)


if __name__ == "__main__":
    main()
