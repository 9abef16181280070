"""The values of a session's secrets: found in pickles, and taken out of what is shown.

    Secrets({"HF_TOKEN": "hf_…"})
        .held_by(payload, buffers)   ─► "HF_TOKEN", where the value is in these bytes
        .mask(text)                  ─► the text with `***` in its place
        .masked(content)             ─► the same for all texts of a message

Looked for is the value itself, and how JSON, `repr` and a URL write it; of a value of several lines
(a private key) also each long line. Bytes are searched for UTF-8, and for UTF-16 and UTF-32, which
is how numpy keeps text. Not found is what code makes of a value: its base64, its hash, its letters
one by one.

Values shorter than `SHORTEST` are left alone: every third word would be one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

SHORTEST = 8  # characters
LONG_LINE = 16  # of a value of several lines
MASK = "***"
#: Larger buffers are numbers; texts and bytes are in the payload, whatever their size.
BUFFER_BYTES = 1 << 26


class Secrets:
    """Values by name. Its repr has the names only, and it cannot be pickled."""

    def __init__(self, values: Mapping[str, str] | None = None) -> None:
        self._values = dict(values or {})
        forms = {form: name for name, value in self._values.items() for form in _forms(value)}
        # The longest first: one secret may begin with another.
        self._forms = dict(sorted(forms.items(), key=lambda each: -len(each[0])))
        self._longest = max(map(len, self._forms), default=0)
        self._pattern = re.compile("|".join(map(re.escape, self._forms))) if forms else None
        self._bytes = [
            (name, re.compile(re.escape(form.encode(coding))), form.encode(coding))
            for form, name in self._forms.items()
            for coding in ("utf-8", "utf-16-le", "utf-32-le")
        ]

    def __repr__(self) -> str:
        return f"Secrets({', '.join(sorted(self._values))})"

    def __reduce__(self) -> Any:
        raise TypeError("secrets do not travel in a pickle")

    def __bool__(self) -> bool:
        return bool(self._values)

    @property
    def values(self) -> dict[str, str]:
        """A copy: name and value."""
        return dict(self._values)

    @property
    def unmasked(self) -> list[str]:
        """The names whose values are too short to be told from other text."""
        return sorted(name for name, value in self._values.items() if len(value) < SHORTEST)

    def held_by(self, payload: bytes, buffers: Iterable[memoryview] = ()) -> str | None:
        """The name of a secret whose value is in these bytes."""
        if not self._bytes:
            return None
        for name, _, form in self._bytes:
            if form in payload:
                return name
        for buffer in buffers:
            if buffer.nbytes <= BUFFER_BYTES:
                for name, pattern, _ in self._bytes:
                    if pattern.search(buffer):
                        return name
        return None

    def mask(self, text: str) -> str:
        """The text, with `***` where a value was."""
        return text if self._pattern is None else self._pattern.sub(MASK, text)

    def masked(self, content: Any) -> Any:
        """Plain data, with every text masked, those of keys too. Bytes are left as they are."""
        if self._pattern is None:
            return content
        if isinstance(content, str):
            return self._pattern.sub(MASK, content)
        if isinstance(content, dict):
            return {self.masked(key): self.masked(value) for key, value in content.items()}
        if isinstance(content, (list, tuple)):
            return [self.masked(each) for each in content]
        return content

    def begun(self, text: str) -> int:
        """How many characters at the end of `text` may be the beginning of a value."""
        if self._pattern is None:
            return 0
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            end = text[-length:]
            if any(len(form) > length and form.startswith(end) for form in self._forms):
                return length
        return 0


def _forms(value: str) -> set[str]:
    """How a value is written where it is shown."""
    forms = {value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]}
    forms |= {repr(value)[1:-1], quote(value, safe=""), value.strip()}
    lines = value.splitlines()
    if len(lines) > 1:
        forms.update(line for line in map(str.strip, lines) if len(line) >= LONG_LINE)
    return {form for form in forms if len(form) >= SHORTEST}
