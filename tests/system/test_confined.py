"""A process for what strangers wrote: what it keeps is no burden for the next."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from loragraft.system.confined import Confined

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")

PROGRAM = """
MAX_SECONDS, MAX_MEMORY = 5, 1 << 27
kept = []
def answer(request):
    kept.append(bytearray(request))
    return len(kept)
"""


@pytest.mark.unsanitized  # AddressSanitizer's allocator ends the process where there is no memory
def test_memory_that_is_never_given_back_does_not_refuse_all_that_follows(tmp_path: Path) -> None:
    """It met the limit of memory from then on, for ever."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    confined = Confined(program, (), "test")
    try:
        answers = [confined.ask(1 << 25) for _ in range(8)]
        refused = next(at for at, answer in enumerate(answers) if "problem" in answer)
        assert answers[refused]["problem"] == "it takes too much memory"
        assert answers[refused + 1] == {"answer": 1}
    finally:
        confined.close()


def test_a_process_that_was_ended_is_started_anew(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    confined = Confined(program, (), "test")
    try:
        assert [confined.ask(1), confined.ask(1)] == [{"answer": 1}, {"answer": 2}]
        assert confined._process is not None
        confined._process.kill()
        confined._process.wait()
        assert confined.ask(1) == {"answer": 1}
    finally:
        confined.close()
