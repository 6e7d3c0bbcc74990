"""Threads that the system will not start, and numbers of threads that nobody means."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

import hostile_models as hostile
from loragraft.errors import LoragraftError
from loragraft.system.threads import MAX_THREADS, thread_count

_STACK = 8 << 20
#: Each thread's stack takes 8 MB of addresses: here there is room for some, and not for 200.
_FEW = """
import resource, sys
import loragraft as lg
from pathlib import Path
lg.load(sys.argv[1], threads=1)  # what is imported on the way
mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (mapped + (400 << 20), resource.RLIM_INFINITY))
try:
    {work}
except lg.LoragraftError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(len(list(lg.load(sys.argv[1], threads=2).generate("the", max_tokens=2, temperature=0))))
"""


@pytest.mark.unsanitized
@pytest.mark.parametrize(
    "work",
    ["lg.load(sys.argv[1], threads=200)", "lg.quantize(sys.argv[1], sys.argv[2], 'Q8_0', threads=200)"],
)
def test_threads_that_cannot_start_are_an_error(tmp_path: Path, work: str) -> None:
    path = hostile.gguf(tmp_path / "model.gguf", hostile.model())
    command = [sys.executable, "-c", _FEW.format(work=work), path, tmp_path / "out.gguf"]
    stack, hard = resource.getrlimit(resource.RLIMIT_STACK)
    resource.setrlimit(
        resource.RLIMIT_STACK, (_STACK, hard)
    )  # what a thread gets, where nothing else is said
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    finally:
        resource.setrlimit(resource.RLIMIT_STACK, (stack, hard))
    assert done.returncode == 0, done.stderr
    message, made = done.stdout.splitlines()
    assert "threads: the system refused to start so many: found 200" in message
    assert int(made) > 0
    assert [file.name for file in tmp_path.iterdir()] == ["model.gguf"]


@pytest.mark.parametrize("threads", [0, -1, MAX_THREADS + 1, 10**6])
def test_a_number_of_threads_that_nobody_means(threads: int) -> None:
    with pytest.raises(LoragraftError, match="expected 1 to 1024"):
        thread_count(threads)
