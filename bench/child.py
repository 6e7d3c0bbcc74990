"""Run one process and tell what it took: what every bench here measures with."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Run:
    """What one process took."""

    seconds: float
    peak: int
    """Resident bytes at its peak, pages of mapped files included."""
    peak_private: int
    """The same without mapped files, whose pages the system may take back at any time."""
    written: int
    """Bytes handed to write calls."""
    output: str


#: An installed package has its byte code compiled; one in a checkout compiles it at the first start, if it may.
_ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}


def run(command: Sequence[object], env: Mapping[str, str] | None = None) -> Run:
    """Run `command` to its end, keeping its output; raises SystemExit with the output's end if it fails.

    Memory is read from the process's own status every 2 ms: what wait4 says of a child includes the peak of the
    process that started it.
    """
    words = [str(word) for word in command]
    with tempfile.TemporaryFile() as log:
        began = time.perf_counter()
        process = subprocess.Popen(words, stdout=log, stderr=log, env={**_ENVIRONMENT, **(env or {})})
        peaks: dict[str, int] = {}
        watcher = threading.Thread(target=_watch, args=(process.pid, peaks))
        watcher.start()
        code = process.wait()
        seconds = time.perf_counter() - began
        watcher.join()
        log.seek(0)
        output = log.read().decode(errors="replace")
    if code:
        raise SystemExit(f"{' '.join(words)} failed:\n{output[-2000:]}")
    return Run(seconds, peaks.get("VmHWM", 0), peaks.get("RssAnon", 0), peaks.get("wchar", 0), output)


def _watch(pid: int, peaks: dict[str, int]) -> None:
    while True:
        try:
            facts = {
                **dict(_fields(Path(f"/proc/{pid}/status").read_text())),
                **dict(_fields(Path(f"/proc/{pid}/io").read_text())),
            }
        except OSError:
            return
        if "VmHWM" not in facts:
            return  # it has ended
        for key in ("VmHWM", "RssAnon", "wchar"):
            peaks[key] = max(peaks.get(key, 0), facts[key])
        time.sleep(0.002)


def _fields(text: str) -> Iterator[tuple[str, int]]:
    """The numbers of a /proc file, those in kB as bytes."""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        words = value.split()
        if words and words[0].isdigit():
            yield key, int(words[0]) * (1024 if words[-1] == "kB" else 1)
