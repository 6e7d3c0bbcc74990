"""What the whole suite shares: surroundings that are the same everywhere, and lines that tests want printed at the
end, passed or not."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# The same examples everywhere, however fast the machine is.
settings.register_profile(
    "suite", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")
#: What changes how things are shown, where they are kept or how they are computed.
_SURROUNDINGS = (
    *("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE"),
    *("TTY_INTERACTIVE", "LORAGRAFT_API_KEY", "LORAGRAFT_REMOTE_CACHE", "HF_ENDPOINT", "HF_TOKEN"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"),
    *("OPENAI_BASE_URL", "OPENAI_API_KEY", "ANTHROPIC_BASE_URL", "ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"),
)

SUMMARY = pytest.StashKey[dict[str, str]]()


def pytest_configure() -> None:
    for name in _SURROUNDINGS:
        os.environ.pop(name, None)
    os.environ["HF_TOKEN_PATH"] = os.devnull  # nobody's own
    # A suite that a shell started in the background is deaf to Ctrl-C, and so would be the processes that it starts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def summary(pytestconfig: pytest.Config) -> dict[str, str]:
    """Lines to print at the end, by what they are about."""
    return pytestconfig.stash.setdefault(SUMMARY, {})


def pytest_sessionfinish(session: pytest.Session) -> None:
    """One of several processes tells the first what is to be printed."""
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        output["summary"] = session.config.stash.get(SUMMARY, {})


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    lines = getattr(node, "workeroutput", {}).get("summary", {})
    node.config.stash.setdefault(SUMMARY, {}).update(lines)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    lines = config.stash.get(SUMMARY, {})
    if lines:
        terminalreporter.section("in numbers")
    for name, line in lines.items():
        terminalreporter.write_line(f"{name}: {line}")
