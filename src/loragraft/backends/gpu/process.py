"""A GPU belongs to the process that opened it."""

from __future__ import annotations

import os

from loragraft.errors import LoragraftError


def check_process(device: str, opened_by: int) -> None:
    """Raises LoragraftError in any other process than `opened_by`, such as the child of a fork."""
    if os.getpid() != opened_by:
        raise LoragraftError(
            device,
            "was opened by another process",
            hint="load the model after the fork, not before it",
        )
