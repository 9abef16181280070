"""The types of a specification's fields: what a user writes, what the code gets, how it is written
again.

    Size       "100GB"            int, bytes           "100GB"
    Duration   "1h30m"            timedelta            "1h30m"
    Gpu        "a10g"             str                  "A10G:1"
    Limits     "50/day", [...]    tuple[Limit, ...]    "50/day"
    Source     "keyring:hf/me"    Source               "keyring:hf/me"

What is written again reads as the same value, so two spellings of one value compare equal.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    WithJsonSchema,
)

from mlcloud.cluster.specification.problems import Several
from mlcloud.units import parse_duration, parse_gpu, parse_size, suggest

# --- sizes, durations, GPUs, CPUs -----------------------------------------------------------------

_SIZES = [
    *((f"{p}B", 10 ** (3 * n)) for n, p in ((5, "P"), (4, "T"), (3, "G"), (2, "M"), (1, "K"))),
    *((f"{p}iB", 2 ** (10 * n)) for n, p in ((5, "P"), (4, "T"), (3, "G"), (2, "M"), (1, "K"))),
]
_SPANS = (("d", 86_400_000_000), ("h", 3_600_000_000), ("m", 60_000_000), ("s", 1_000_000))


def write_size(count: int) -> str:
    """The shortest text that `parse_size` reads as exactly `count` bytes."""
    exact = [f"{count // factor}{unit}" for unit, factor in _SIZES if count and count % factor == 0]
    return min([*exact, f"{count}B"], key=len)


def write_duration(value: timedelta) -> str:
    """Text that `parse_duration` reads as exactly `value`: `"1h30m"`, `"0s"`."""
    rest = value // timedelta(microseconds=1)
    parts = []
    for unit, factor in _SPANS:
        count, rest = divmod(rest, factor)
        if count:
            parts.append(f"{count}{unit}")
    if rest:
        parts.append(f"{(Decimal(rest) / 1000).normalize():f}ms")
    return "".join(parts) or "0s"


def _read_duration(value: object) -> timedelta:
    return value if isinstance(value, timedelta) else parse_duration(_text(value, "15m"))


def _text(value: object, example: str) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"text such as {example!r} is expected, not {_kind(value)}")
    return str(value)


def _kind(value: object) -> str:
    return {dict: "a mapping", list: "a list", bool: "yes or no", type(None): "nothing"}.get(
        type(value), f"a {type(value).__name__}"
    )


def _at_least(least: int) -> AfterValidator:
    def check(value: int) -> int:
        if value < least:
            raise ValueError(f"{write_size(value)} is too little: at least {write_size(least)}")
        return value

    return AfterValidator(check)


def _above_zero(value: timedelta) -> timedelta:
    if value <= timedelta(0):
        raise ValueError("a duration above 0 is expected, such as '15m'")
    return value


def _read_gpu(value: object) -> str:
    name, count = parse_gpu(_text(value, "A10G:1"))
    return f"{name}:{count}"


def _number(value: object) -> object:
    if isinstance(value, bool):  # YAML's `yes` would be 1
        raise ValueError("a number is expected, not yes or no")
    return value


def _write_cpus(value: float) -> float:
    return int(value) if float(value).is_integer() else value


Size = Annotated[
    int,
    PlainValidator(lambda value: parse_size(_text(value, "100GB"))),
    PlainSerializer(write_size, when_used="json"),
    WithJsonSchema({"type": "string", "examples": ["32GB", "1.5TiB"]}),
]
Disk = Annotated[Size, _at_least(8 * 10**9)]
Duration = Annotated[
    timedelta,
    PlainValidator(_read_duration),
    AfterValidator(_above_zero),
    PlainSerializer(write_duration, when_used="json"),
    WithJsonSchema({"type": "string", "examples": ["15m", "1h30m", "7d"]}),
]
Gpu = Annotated[
    str,
    PlainValidator(_read_gpu),
    WithJsonSchema({"type": "string", "examples": ["A10G:1", "T4"]}),
]
Cpus = Annotated[
    float,
    BeforeValidator(_number),
    Field(gt=0, allow_inf_nan=False),
    PlainSerializer(_write_cpus, when_used="json"),
]
Usd = Annotated[
    Decimal,
    BeforeValidator(_number),
    Field(ge=0, allow_inf_nan=False),
    PlainSerializer(lambda value: f"{value.normalize():f}", when_used="json"),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string"}]}),
]
Count = Annotated[int, BeforeValidator(_number), Field(ge=0)]

# --- money ----------------------------------------------------------------------------------------

Period = Literal["hour", "day", "week", "month", "total"]
PERIODS: tuple[Period, ...] = get_args(Period)
_PERIODS: dict[str, Period] = {
    **{period: period for period in PERIODS},
    **{"h": "hour", "d": "day", "w": "week", "mo": "month", "in all": "total"},
}
_LIMIT = re.compile(
    r"\$?\s*(\d[\d_,]*(?:\.\d+)?)\s*(?:\$|usd|dollars?)?\s*(?:(?:/|per\b|\s)\s*(.+))?"
)


@dataclass(frozen=True)
class Limit:
    """At most so many dollars in each period (UTC), or in all."""

    usd: Decimal
    per: Period

    @classmethod
    def parse(cls, text: object) -> Limit:
        """`"50/day"`, `"$5/h"`, `"1000 per month"`, `"200 total"`. Raises `ValueError`."""
        if isinstance(text, Limit):
            return text
        accepted = "a budget is dollars in a period, such as '50/day', '5/h' or '200 total'"
        written = _text(text, "50/day").strip()
        match = _LIMIT.fullmatch(written.casefold())
        if match is None:
            raise ValueError(f"cannot read {written!r}: {accepted}")
        number, period = match.group(1).replace(",", "").replace("_", ""), match.group(2)
        if period is None:
            raise ValueError(f"{written!r} has no period: {accepted}; did you mean '{number}/day'?")
        known = _PERIODS.get(period.strip())
        if known is None:
            raise ValueError(
                f"unknown period {period.strip()!r}: {accepted}{suggest(period, _PERIODS)}"
            )
        usd = Decimal(number)
        if usd <= 0:
            raise ValueError(f"{written!r} would let nothing run: a budget is above 0")
        return cls(usd, known)

    def __str__(self) -> str:
        return f"{self.usd.normalize():f}{' total' if self.per == 'total' else f'/{self.per}'}"


def _read_limits(value: object) -> tuple[Limit, ...]:
    given = list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]
    found: list[Limit] = []
    problems = []
    for index, each in enumerate(given):
        path = (index,) if len(given) > 1 else ()
        try:
            limit = Limit.parse(each)
        except ValueError as error:
            problems.append((path, str(error)))
            continue
        if any(limit.per == other.per for other in found):
            of = "in all" if limit.per == "total" else f"per {limit.per}"
            problems.append((path, f"a second limit {of}: keep one of them"))
        found.append(limit)
    if problems:
        raise Several(problems)
    return tuple(found)


def _write_limits(value: Iterable[Limit]) -> str | list[str]:
    texts = [str(limit) for limit in value]
    return texts[0] if len(texts) == 1 else texts


Limits = Annotated[
    tuple[Limit, ...],
    PlainValidator(_read_limits),
    PlainSerializer(_write_limits, when_used="json"),
    WithJsonSchema(
        {
            "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
            "examples": ["50/day", ["5/hour", "1000/month"]],
        }
    ),
]

# --- secrets --------------------------------------------------------------------------------------

Kept = Literal["keyring", "env", "aws", "gcp", "azure", "kubernetes"]
_KEPT: dict[str, tuple[re.Pattern[str], str]] = {
    "keyring": (re.compile(r"[^/\s]+/\S+"), "keyring:SERVICE/USER"),
    "env": (re.compile(r"[A-Za-z_][A-Za-z0-9_]*"), "env:VARIABLE"),
    "aws": (
        re.compile(r"arn:aws[a-z-]*:(secretsmanager|ssm):\S+|[\w/+=.@-]+"),
        "aws:NAME or an ARN of Secrets Manager or of a parameter",
    ),
    "gcp": (
        re.compile(r"projects/[^/\s]+/secrets/[^/\s]+(/versions/[^/\s]+)?"),
        "gcp:projects/PROJECT/secrets/NAME",
    ),
    "azure": (
        re.compile(r"https://[^/\s]+/secrets/[^/\s]+(/[^/\s]+)?"),
        "azure:https://VAULT.vault.azure.net/secrets/NAME",
    ),
    "kubernetes": (re.compile(r"[a-z0-9.-]+/[\w.-]+"), "kubernetes:SECRET/KEY"),
}


@dataclass(frozen=True)
class Source:
    """Where a secret's value is kept; never the value."""

    kept: Kept
    reference: str

    @classmethod
    def parse(cls, text: object) -> Source:
        """Raises `ValueError`, which never repeats the text: it may be the secret itself."""
        if isinstance(text, Source):
            return text
        forms = ", ".join(form for _, form in _KEPT.values())
        if not isinstance(text, str):
            raise ValueError(f"where the value is kept is expected: {forms}")
        kept, _, reference = text.strip().partition(":")
        if kept not in _KEPT:
            raise ValueError(
                "this says not where the value is kept (it is not repeated here, in case it is the "
                f"value: a value must never be in a specification). Write {forms}"
            )
        pattern, form = _KEPT[kept]
        if not pattern.fullmatch(reference):
            raise ValueError(f"a reference to {kept} is written {form}")
        return cls(kept, reference)  # type: ignore[arg-type]

    def __str__(self) -> str:
        return f"{self.kept}:{self.reference}"


Secret = Annotated[
    Source,
    PlainValidator(Source.parse),
    PlainSerializer(str, when_used="json"),
    WithJsonSchema({"type": "string", "examples": [form for _, form in _KEPT.values()]}),
]

# --- places ---------------------------------------------------------------------------------------

_PLACEHOLDER = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def check_url(text: str, schemes: Iterable[str]) -> str:
    """A URL of one of `schemes`, without a password in it. Raises `ValueError`."""
    allowed = list(schemes)
    parts = urlsplit(text)
    if parts.scheme not in allowed or not (parts.netloc or parts.scheme == "file"):
        hint = suggest(parts.scheme, allowed) if parts.scheme else ""
        listed = ", ".join(f"{scheme}://…" for scheme in allowed)
        raise ValueError(f"a URL is expected: {listed}{hint}")
    who, _, _ = parts.netloc.rpartition("@")
    user, colon, password = who.partition(":")
    # abfs://container@account is no secret; https://token@host is one.
    secret = password if colon else user if parts.scheme in ("http", "https") else ""
    if secret and not _PLACEHOLDER.fullmatch(secret):
        raise ValueError(
            "the URL has a password in it (not repeated here): name it under `secrets` and write "
            "${NAME} in its place"
        )
    return text


def placeholders(text: str) -> list[str]:
    """The names in `${NAME}`."""
    return _PLACEHOLDER.findall(text)


def check_word(value: Any, pattern: str, what: str) -> str:
    """`value`, if all of it is `pattern`. Raises `ValueError` with `what` is expected."""
    if not isinstance(value, str):
        raise ValueError(f"{what}; as text: put it in quotes")
    if not re.fullmatch(pattern, value):
        raise ValueError(f"{value!r} cannot be: {what}")
    return value
