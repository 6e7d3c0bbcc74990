"""Numbers as people write and read them."""

from __future__ import annotations

import pytest

from loragraft.units import byte_count, bytes_text, share


@pytest.mark.parametrize(
    ("text", "size"),
    [("3.2MB", 3_200_000), ("4 GiB", 4 << 30), ("1200000", 1_200_000), ("12kb", 12_000), ("7B", 7)],
)
def test_a_size_has_decimal_or_binary_units(text: str, size: int) -> None:
    assert byte_count(text) == size


@pytest.mark.parametrize("text", ["", "much", "3.2XB", "-4GB", "0MB", "1e400", "GB", "9" * 400])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        byte_count(text)


@pytest.mark.parametrize(
    ("text", "value"), [("99%", 0.99), ("99", 0.99), ("0.99", 0.99), ("99.5 %", 0.995), ("1%", 0.01)]
)
def test_a_share_is_a_percentage_or_a_fraction(text: str, value: float) -> None:
    assert share(text) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("text", ["100%", "0", "-3%", "much", "nan", "inf", "101"])
def test_what_is_no_share(text: str) -> None:
    with pytest.raises(ValueError, match="is not a share"):
        share(text)


def test_bytes_are_printed_in_three_digits() -> None:
    assert [bytes_text(size) for size in (999, 1500, 12_345_678)] == ["999 B", "1.5 kB", "12.3 MB"]
