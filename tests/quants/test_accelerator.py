"""What rounds in place of the processor is at hand for whoever asked for it, and for nobody else in the process."""

from __future__ import annotations

from threading import Thread
from typing import cast

from loragraft.quants.accelerator import Accelerator, at_hand, using
from loragraft.system.threads import in_threads

ONE, OTHER = cast(Accelerator, object()), cast(Accelerator, object())


def test_it_is_at_hand_in_the_threads_that_share_the_work() -> None:
    with using(ONE):
        assert in_threads(lambda _: at_hand(), range(6), 3) == [ONE] * 6
        with using(None):
            assert in_threads(lambda _: at_hand(), range(2), 2) == [None, None]
        assert at_hand() is ONE
    assert at_hand() is None


def test_two_callers_do_not_share_it() -> None:
    """One rounded on the GPU of the other, or on none once the other was done."""
    seen: list[Accelerator | None] = []

    def round_elsewhere() -> None:
        seen.append(at_hand())
        with using(OTHER):
            seen.extend(in_threads(lambda _: at_hand(), range(2), 2))
        seen.append(at_hand())

    with using(ONE):
        caller = Thread(target=round_elsewhere)
        caller.start()
        caller.join()
        assert at_hand() is ONE
    assert seen == [None, OTHER, OTHER, None]
