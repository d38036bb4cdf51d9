"""Amounts as people write them."""

from __future__ import annotations

import pytest

from edgeverify.core.errors import UsageError
from edgeverify.core.units import bytes_of, seconds_of, shown


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("8GiB", 8 * 2**30),
        ("512 MiB", 512 * 2**20),
        ("1.5kib", 1536),
        ("2GB", 2 * 10**9),
        ("1TiB", 2**40),
        ("100", 100),
        ("100B", 100),
    ],
)
def test_bytes(text: str, amount: int) -> None:
    assert bytes_of("--max-size", text) == amount


@pytest.mark.parametrize("text", ["", "GiB", "8 G", "-1GiB", "0", "8GiBs", "1e3", "30d"])
def test_what_is_no_amount_of_bytes(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        bytes_of("--max-size", text)
    expected = f"--max-size: got {text!r}; expected a size such as 8GiB or 512MiB"
    assert str(caught.value) == " ".join(expected.split())


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30d", 2592000), ("2w", 1209600), ("12h", 43200), ("90m", 5400), ("0s", 0)],
)
def test_seconds(text: str, seconds: float) -> None:
    assert seconds_of("--older-than", text) == seconds


@pytest.mark.parametrize("text", ["", "30", "30 years", "-1d", "8GiB"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(UsageError, match="expected a time such as 30d or 12h"):
        seconds_of("--older-than", text)


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (10 * 2**20, "10 MiB"),
        (3 * 2**30, "3 GiB"),
        (2000 * 2**30, "2000 GiB"),
    ],
)
def test_shown(amount: int, text: str) -> None:
    assert shown(amount) == text
