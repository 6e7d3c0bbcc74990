"""What the whole suite shares: lines that tests want printed at the end, passed or not."""

from __future__ import annotations

import signal

import pytest

SUMMARY = pytest.StashKey[dict[str, str]]()


def pytest_configure() -> None:
    # A suite that a shell started in the background is deaf to Ctrl-C, and so would be the processes that it starts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def summary(pytestconfig: pytest.Config) -> dict[str, str]:
    """Lines to print at the end, by what they are about."""
    return pytestconfig.stash.setdefault(SUMMARY, {})


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    lines = config.stash.get(SUMMARY, {})
    if lines:
        terminalreporter.section("in numbers")
    for name, line in lines.items():
        terminalreporter.write_line(f"{name}: {line}")
