"""A session's namespace in a process of its own, over two pipes: `Process` starts it, `main` is it.

Frames are a 4-byte length and a msgpack map. The namespace is the process's own `__main__`, as in a
kernel.
"""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path
from typing import Any, BinaryIO

import msgpack

ROOT = Path(__file__).parents[2]


def write(stream: BinaryIO, message: Any) -> None:
    data = msgpack.packb(message)
    stream.write(len(data).to_bytes(4, "big") + data)
    stream.flush()


def read(stream: BinaryIO) -> Any:
    size = stream.read(4)
    return msgpack.unpackb(stream.read(int.from_bytes(size, "big"))) if size else None


class Process:
    """The client's end. It has RemoteSide's calls, and `run(code)` for the cell."""

    def __init__(self) -> None:
        command = [sys.executable, str(Path(__file__))]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
        )

    def cell(self, shipment: dict[str, Any], code: str) -> dict[str, Any]:
        """Load, run and collect; the Return's wire form. An error comes as `{"error": text}`."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        write(self.process.stdin, {"shipment": shipment, "code": code})
        answer: dict[str, Any] = read(self.process.stdout)
        return answer

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(10)


def main() -> None:
    sys.path.insert(0, str(ROOT))
    from mlcloud.kernel.mentions import mentions
    from mlcloud.kernel.namespace import RemoteSide
    from mlcloud.values.messages import Shipment

    user = types.ModuleType("__main__")
    sys.modules["__main__"] = user
    side = RemoteSide(user.__dict__, cheap_s=0.0)
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr
    while (message := read(source)) is not None:
        shipment = Shipment.from_wire(message["shipment"])
        try:
            side.load(shipment)
            exec(message["code"], user.__dict__)
            answer = {"return": side.collect(shipment, mentions(message["code"])).to_wire()}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        write(sink, answer)


if __name__ == "__main__":
    main()
