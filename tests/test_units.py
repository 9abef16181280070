"""What a user writes for sizes, durations and GPUs, what it means, and what is said of mistakes."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlcloud.errors import UsageError
from mlcloud.units import (
    format_bytes,
    format_seconds,
    format_usd,
    format_usd_per_hour,
    format_whole_seconds,
    parse_duration,
    parse_gpu,
    parse_moment,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("32GB", 32 * 10**9),
        ("1.5GiB", 3 * 2**29),
        ("0.1GB", 100_000_000),
        (" 512 mb ", 512 * 10**6),
        ("64kB", 64_000),
        ("16Gi", 16 * 2**30),
        ("2T", 2 * 10**12),
        ("7B", 7),
        ("0GB", 0),
        (".5KiB", 512),
    ],
)
def test_size(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("32", "did you mean '32GB'"),
        (32, "did you mean '32GB'"),
        ("32GX", "unknown unit 'GX'"),
        ("32GBB", "did you mean 'GB'"),
        ("lots", "cannot read 'lots' as a size"),
        ("-1GB", "cannot read '-1GB'"),
        ("", "cannot read ''"),
        (None, "cannot read None"),
        ("1e3GB", "unknown unit 'e'|cannot read '1e3GB'"),
    ],
)
def test_a_wrong_size_is_explained(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        parse_size(text)
    assert "'1.5GiB'" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("15m", timedelta(minutes=15)),
        ("2h", timedelta(hours=2)),
        ("1h30m", timedelta(minutes=90)),
        ("1 h 30 min", timedelta(minutes=90)),
        ("1.5h", timedelta(minutes=90)),
        ("90 seconds", timedelta(seconds=90)),
        ("500ms", timedelta(milliseconds=500)),
        ("3d", timedelta(days=3)),
        ("0s", timedelta(0)),
        (timedelta(seconds=5), timedelta(seconds=5)),
    ],
)
def test_duration(text: str, expected: timedelta) -> None:
    assert parse_duration(text) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("15", "did you mean '15s'"),
        (15, "did you mean '15s'"),
        ("15 minuts", "did you mean 'minutes'"),
        ("1h30", "did you mean '30s'"),
        ("soon", "cannot read 'soon'"),
        ("", "cannot read ''"),
        ("-5m", "cannot read '-5m'"),
        ("9999999999d", "too long"),
    ],
)
def test_a_wrong_duration_is_explained(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A10G:1", ("A10G", 1)),
        ("A10G", ("A10G", 1)),
        ("a100-80gb:8", ("A100-80GB", 8)),
        ("TPU-v9:4", ("TPU-v9", 4)),
    ],
)
def test_gpu(text: str, expected: tuple[str, int]) -> None:
    assert parse_gpu(text) == expected


@pytest.mark.parametrize("text", ["1", "", "A10G:", "A10G:0", "A10G:one", "A10G:1.5", "A10G:-1", 1])
def test_a_wrong_gpu_is_explained(text: str) -> None:
    with pytest.raises(UsageError, match="NAME:COUNT, such as 'A10G:1'"):
        parse_gpu(text)


@given(st.integers(min_value=0, max_value=10**15))
def test_formatted_bytes_read_back_to_what_is_shown(count: int) -> None:
    for binary in (False, True):
        shown = parse_size(format_bytes(count, binary=binary))
        assert abs(shown - count) <= count * 0.06 + 1


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (3_100_000_000, "3.1 GB"), (999_999, "1 MB")],
)
def test_bytes(count: int, text: str) -> None:
    assert format_bytes(count) == text


def test_memory_is_shown_as_it_is_sold() -> None:
    assert format_bytes(16 * 2**30, binary=True) == "16 GiB"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.00001, "<1 ms"),
        (0.34, "340 ms"),
        (0.9999, "1.0 s"),
        (12.44, "12.4 s"),
        (59.97, "1 min 00 s"),
        (192, "3 min 12 s"),
        (7500, "2 h 05 min"),
        (3599.7, "1 h 00 min"),
        (86399, "1 d 00 h"),
        (timedelta(days=3, hours=4), "3 d 04 h"),
        (-2, "-2.0 s"),
    ],
)
def test_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_moments_as_clouds_write_them() -> None:
    told = datetime(2026, 1, 31, 12, 0, 5, tzinfo=timezone.utc)
    assert parse_moment("2026-01-31T12:00:05Z") == told
    assert parse_moment("2026-01-31T04:00:05-08:00") == told
    with pytest.raises(ValueError, match="soon"):
        parse_moment("soon")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (12.4, "12 s"), (59.9, "1 min 00 s"), (7205, "2 h 00 min")]
)
def test_whole_seconds(seconds: float, text: str) -> None:
    assert format_whole_seconds(seconds) == text


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        ("0", "$0.00"),
        ("0.00001", "<$0.0001"),
        ("0.00114", "$0.0011"),
        ("0.0237", "$0.024"),
        ("0.00996", "$0.010"),
        ("0.0996", "$0.10"),
        ("0.314", "$0.31"),
        ("12.345", "$12.34"),
        ("1234.5", "$1,234.50"),
        ("-0.31", "-$0.31"),
    ],
)
def test_usd(amount: str, text: str) -> None:
    assert format_usd(Decimal(amount)) == text


@pytest.mark.parametrize(
    ("rate", "text"), [("0.526", "$0.526/h"), ("1", "$1.00/h"), ("98.32", "$98.32/h")]
)
def test_usd_per_hour(rate: str, text: str) -> None:
    assert format_usd_per_hour(Decimal(rate)) == text
