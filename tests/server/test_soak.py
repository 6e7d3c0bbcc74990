"""A short soak; `make soak` runs a long one."""

from __future__ import annotations

from pathlib import Path

from soak import STOPPED, soak

ANSWERS = (
    "chat 200",
    "stream 200",
    "responses 200",
    "messages 200",
    "aLoRA 200",
    "embed 200",
    "broken adapter 400",
    "too much 413",
    "left a stream",
)


def test_nothing_is_lost_and_nothing_grows(tmp_path: Path) -> None:
    report = soak(tmp_path, 0, clients=6, a_round=6, rounds=6, answers=ANSWERS)
    assert report.wrong == []
    assert report.exit_code in STOPPED
    for answer in ANSWERS:
        assert report.answers[answer], answer
    growth = report.growth(warm=0.4)
    assert growth["threads"] <= 2  # those of the pools that had nothing to do yet
    assert growth["descriptors"] <= 6  # files of the adapters that are loaded
    assert growth["resident"] < 40e6  # it is not warm yet
