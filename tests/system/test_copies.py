"""Workers that are copies of their process: nothing of the process's own runs in them, and they end when it does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell of threads")

BEGIN = """
import atexit, os, signal, subprocess, threading
from functools import partial
from operator import itemgetter
from loragraft.system import interrupts
from loragraft.system.workers.copies import Copy, is_alone
from loragraft.system.workers.crew import Lost, Spread
from loragraft.system.workers.processes import ProcessCrew
def spread(crew):
    found = {}
    Spread(crew, partial(itemgetter, 0), [[3], [5], [7]], lambda part, made: found.update({made: part})).run()
    assert found == {3: [3], 5: [5], 7: [7]}
"""


def run(code: str, status: int = 0) -> str:
    """What a process of its own prints: all that has its standard error has ended, then."""
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + code],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def test_they_do_parts_and_nothing_else() -> None:
    code = """
interrupts.install()
atexit.register(print, "once")
print("buffered")
with ProcessCrew(2) as crew:
    copies = list(crew._idle)
    assert [type(copy) for copy in copies] == [Copy, Copy]
    spread(crew)
assert [copy.wait() for copy in copies] == [-signal.SIGKILL] * 2
"""
    assert run(code) == "buffered\nonce\n"


def test_they_end_when_the_process_is_killed() -> None:
    code = """
crew = ProcessCrew(3)
assert all(isinstance(copy, Copy) for copy in crew._idle)
spread(crew)
os.kill(os.getpid(), signal.SIGKILL)
"""
    run(code, -signal.SIGKILL)


def test_signals_are_not_handled_as_in_the_process() -> None:
    code = """
interrupts.install()
with ProcessCrew(1) as crew:
    (copy,) = crew._idle
    worker = crew.hire(partial(itemgetter, 0))
    os.kill(worker, signal.SIGINT)
    crew.give(worker, [1])
    assert [done.result for done in crew.wait()] == [1]
    os.kill(worker, signal.SIGTERM)
    (news,) = crew.wait()
    assert isinstance(news, Lost)
    assert copy.wait() == -signal.SIGTERM
    again = crew.hire(partial(itemgetter, 0))
    assert isinstance(crew._workers[again], subprocess.Popen)  # the output may be locked by now
    crew.give(again, [2])
    assert [done.result for done in crew.wait()] == [2]
"""
    run(code)


def test_a_process_with_threads_is_not_copied() -> None:
    code = """
over = threading.Event()
thread = threading.Thread(target=over.wait)
thread.start()
assert not is_alone()
with ProcessCrew(2) as crew:
    assert all(isinstance(worker, subprocess.Popen) for worker in crew._idle)
    spread(crew)
over.set()
"""
    run(code)


def test_a_process_that_does_not_wait_for_children() -> None:
    code = """
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
with ProcessCrew(2) as crew:
    assert all(isinstance(copy, Copy) for copy in crew._idle)
    spread(crew)
"""
    run(code)
