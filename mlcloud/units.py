"""Sizes, durations, GPUs and dollars: from the text a user writes, and back to text a user reads.

    "32GB"   ── parse_size ────► 32_000_000_000 (bytes)      ── format_bytes ───► "32 GB"
    "1h30m"  ── parse_duration ► timedelta(minutes=90)       ── format_seconds ─► "1 h 30 min"
    "A10G:1" ── parse_gpu ─────► ("A10G", 1)
                                 Decimal("0.00114")          ── format_usd ─────► "$0.0011"

`GB` is 10**9 bytes and `GiB` is 2**30, as the SI and the IEC have it. Whatever is not understood
is a `UsageError` that says what is accepted and, where something close exists, what was probably
meant.
Arithmetic is exact (`Decimal`): `"0.1GB"` is 100,000,000 bytes.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from datetime import datetime, timedelta
from decimal import ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal

from mlcloud.errors import UsageError

_SIZES = {
    "B": 1,
    **{f"{prefix}B": 10 ** (3 * power) for power, prefix in enumerate("KMGTP", start=1)},
    **{f"{prefix}iB": 2 ** (10 * power) for power, prefix in enumerate("KMGTP", start=1)},
}
# Kubernetes writes 32G and 32Gi; both are taken with the meaning they have there.
_SIZE_UNITS = {
    **{unit.casefold(): factor for unit, factor in _SIZES.items()},
    **{unit[:-1].casefold(): factor for unit, factor in _SIZES.items() if unit != "B"},
}

_DURATIONS = {
    "ms": timedelta(milliseconds=1),
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
}
_DURATION_WORDS = {
    **{unit: unit for unit in _DURATIONS},
    **dict.fromkeys(("sec", "secs", "second", "seconds"), "s"),
    **dict.fromkeys(("min", "mins", "minute", "minutes"), "m"),
    **dict.fromkeys(("hr", "hrs", "hour", "hours"), "h"),
    **dict.fromkeys(("day", "days"), "d"),
}

#: Spellings of accelerators, as Ray and the clouds have them. Other names are taken as written.
GPUS = (
    "T4", "L4", "A10", "A10G", "L40", "L40S", "V100", "P100", "P4", "K80",
    "A100", "A100-40GB", "A100-80GB", "H100", "H200", "GH200", "B200", "GB200", "B300",
    "RTX3090", "RTX4090", "RTX5090", "RTXA4000", "RTXA5000", "RTXA6000", "RTX6000-Ada", "MI300X",
    "RTX-PRO-6000", "Trainium", "Trainium2", "Inferentia", "Inferentia2",
    "TPU-v5e", "TPU-v5p", "TPU-v6e",
)  # fmt: skip

_NUMBER = r"\d+(?:\.\d+)?|\.\d+"
_SIZE = re.compile(rf"({_NUMBER})\s*([A-Za-z]*)")
_DURATION_PART = re.compile(rf"({_NUMBER})\s*([A-Za-z]*)\s*")
_GPU = re.compile(r"([A-Za-z][A-Za-z0-9_.-]*)(?::(.*))?")


def suggest(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'A10G'?"` when something in `known` is close to `word`, else `""`."""
    spelling = {name.casefold(): name for name in known}
    close = difflib.get_close_matches(word.casefold(), spelling, n=1, cutoff=0.6)
    return f"; did you mean {spelling[close[0]]!r}?" if close else ""


def parse_size(text: str) -> int:
    """Bytes of a size such as `"32GB"` or `"1.5GiB"`; parts of a byte are cut off.

    Raises `UsageError` for anything else, a bare number included: 32 of what?
    """
    match = _SIZE.fullmatch(str(text).strip())
    accepted = "a size is a number with a unit, such as '512MB', '32GB' or '1.5GiB'"
    if match is None:
        raise UsageError(f"cannot read {text!r} as a size: {accepted}")
    number, unit = match.groups()
    if not unit:
        raise UsageError(f"{text!r} has no unit: {accepted}; did you mean '{number}GB'?")
    factor = _SIZE_UNITS.get(unit.casefold())
    if factor is None:
        raise UsageError(f"unknown unit {unit!r} in {text!r}: {accepted}{suggest(unit, _SIZES)}")
    return int(Decimal(number) * factor)


def parse_duration(text: str | timedelta) -> timedelta:
    """A duration such as `"15m"`, `"2h"`, `"1h30m"`, `"500ms"`; a timedelta is taken as it is.

    Exact to the microsecond. Raises `UsageError` for anything else, a bare number included.
    """
    if isinstance(text, timedelta):
        return text
    accepted = "a duration is a number with one of ms, s, m, h, d, such as '90s', '15m' or '1h30m'"
    rest, total = str(text).strip(), None
    while rest or total is None:
        match = _DURATION_PART.match(rest)
        if match is None:
            raise UsageError(f"cannot read {text!r} as a duration: {accepted}")
        number, unit = match.groups()
        if not unit:
            raise UsageError(f"{text!r} has no unit: {accepted}; did you mean '{number}s'?")
        known = _DURATION_WORDS.get(unit.casefold())
        if known is None:
            hint = suggest(unit, _DURATION_WORDS)
            raise UsageError(f"unknown unit {unit!r} in {text!r}: {accepted}{hint}")
        microseconds = Decimal(number) * (_DURATIONS[known] // timedelta(microseconds=1))
        try:
            total = (total or timedelta(0)) + timedelta(microseconds=int(microseconds))
        except OverflowError:
            raise UsageError(f"{text!r} is too long for a duration") from None
        rest = rest[match.end() :]
    return total


def parse_gpu(text: str) -> tuple[str, int]:
    """Name and count of `"A10G:1"`; `"A10G"` alone means one.

    Known names are matched without regard to case (`"a10g"` is `"A10G"`), others are kept as
    written: which accelerators exist is for the cluster's offers to say. Raises `UsageError`.
    """
    match = _GPU.fullmatch(str(text).strip())
    accepted = "a GPU is NAME:COUNT, such as 'A10G:1' or 'T4'"
    if match is None:
        raise UsageError(f"cannot read {text!r} as a GPU: {accepted}")
    name, count = match.groups()
    if count is not None and not re.fullmatch("[1-9][0-9]{0,3}", count):
        raise UsageError(
            f"{text!r} asks for {count!r} GPUs: {accepted}, and the count a whole number from 1"
        )
    spelling = {gpu.casefold(): gpu for gpu in GPUS}
    return spelling.get(name.casefold(), name), int(count or 1)


def format_bytes(count: int, *, binary: bool = False) -> str:
    """`"3.1 GB"`; with `binary`, `"16 GiB"`, as memory is sold."""
    step, suffix = (1024, "iB") if binary else (1000, "B")
    value, unit = Decimal(count), "B"
    for prefix in "kMGTP" if not binary else "KMGTP":
        # 999,950 bytes would round to "1000.0 kB"
        if abs(value.quantize(Decimal("0.1"))) < step:
            break
        value, unit = value / step, prefix + suffix
    text = f"{value.quantize(Decimal('0.1'), ROUND_HALF_EVEN)}"
    return f"{text.removesuffix('.0')} {unit}"


def parse_moment(text: str) -> datetime:
    """A moment in ISO 8601, as clouds write it: with `Z`, which Python 3.10 does not take. Raises
    `ValueError`."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def format_seconds(seconds: float | timedelta) -> str:
    """`"340 ms"`, `"12.4 s"`, `"3 min 12 s"`, `"2 h 05 min"`, `"3 d 04 h"`."""
    value = seconds.total_seconds() if isinstance(seconds, timedelta) else float(seconds)
    if value < 0:
        return "-" + format_seconds(-value)
    if value == 0:
        return "0 s"
    if round(value * 1000) < 1000:
        return f"{round(value * 1000)} ms" if value >= 0.0005 else "<1 ms"
    if round(value, 1) < 60:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(value / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(value / 3600)
    return f"{hours // 24} d {hours % 24:02d} h"


def format_whole_seconds(seconds: float) -> str:
    """As `format_seconds`, without fractions: `"12 s"`."""
    return format_seconds(round(seconds)).replace(".0 s", " s")


def format_usd(amount: Decimal) -> str:
    """`"$12.34"`, `"$0.31"`; below ten cents two significant digits (`"$0.0011"`), at least
    a hundredth of a cent (`"<$0.0001"`)."""
    if amount < 0:
        return "-" + format_usd(-amount).replace("<", "")
    if amount == 0:
        return "$0.00"
    if amount >= Decimal("0.0995"):
        return f"${amount.quantize(Decimal('0.01')):,}"
    if amount < Decimal("0.00005"):
        return "<$0.0001"
    decimals = 2 if amount >= Decimal("0.1") else 3 if amount >= Decimal("0.00995") else 4
    return f"${amount.quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_UP)}"


def format_usd_per_hour(rate: Decimal) -> str:
    """`"$0.526/h"`, `"$1.00/h"`: a price keeps up to four decimals, and has at least two."""
    text = f"{rate.quantize(Decimal('0.0001')):,f}"
    whole, _, decimals = text.partition(".")
    return f"${whole}.{decimals.rstrip('0').ljust(2, '0')}/h"
