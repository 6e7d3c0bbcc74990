"""What the whole suite shares: lines that tests want printed at the end, passed or not."""

from __future__ import annotations

import pytest

SUMMARY = pytest.StashKey[dict[str, str]]()


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
