"""Marks in a kernel's output pipes: whose the following text is, and where a message came between.

What a cell prints leaves the kernel as plain bytes in a pipe (`streams.py`), and subprocesses and C
code write to the same pipe. So what the bytes do not say is said between them:

    NUL nonce P <request id> NUL     what follows was printed for this request
    NUL nonce S <number> NUL         iopub message <number> was published here (`outlet.py`)

The nonce is random for each kernel: no output looks like a mark by accident. A mark is shorter than
PIPE_BUF, so the kernel's pipe takes it whole, whoever else writes.
"""

from __future__ import annotations

from typing import NamedTuple

PARENT = b"P"
SYNC = b"S"
LONGEST = 512


class Mark(NamedTuple):
    kind: bytes
    value: str


def mark(nonce: bytes, kind: bytes, value: str) -> bytes:
    """The bytes of a mark. An id too long for one is cut: it is nobody's that we know."""
    return b"\0" + nonce + kind + value.encode("ascii", "replace")[: LONGEST // 2] + b"\0"


class Splitter:
    """Cuts what was read from a pipe into text and marks, wherever the reads ended."""

    def __init__(self, nonce: bytes) -> None:
        self._start = b"\0" + nonce
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes | Mark]:
        """What is whole so far, in order. A mark that has only begun waits for its end."""
        data, self._rest = self._rest + data, b""
        if b"\0" not in data:
            return [data] if data else []
        found: list[bytes | Mark] = []
        at = 0
        while True:
            begin = data.find(self._start, at)
            if begin < 0:
                break
            kind = begin + len(self._start)
            end = data.find(b"\0", kind)
            if end < 0:
                if len(data) - begin > LONGEST:  # cut off by a full disk, a closed pipe: no mark
                    break
                self._add(found, data[at:begin])
                self._rest = data[begin:]
                return found
            self._add(found, data[at:begin])
            found.append(Mark(data[kind : kind + 1], data[kind + 1 : end].decode("ascii")))
            at = end + 1
        # The end may be a part of the start of a mark.
        last = data.rfind(b"\0", max(at, len(data) - len(self._start)))
        if last >= 0 and self._start.startswith(data[last:]):
            self._add(found, data[at:last])
            self._rest = data[last:]
        else:
            self._add(found, data[at:])
        return found

    @staticmethod
    def _add(found: list[bytes | Mark], data: bytes) -> None:
        if data:
            found.append(data)
