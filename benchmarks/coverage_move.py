"""One instance of one class is moved from a process to another: what `coverage.py` runs.

    coverage_move.py take    <folder>    cells are run, and a snapshot is taken after each
    coverage_move.py restore <folder>    two of these snapshots, in a process that ran none of it

The folder holds the case (`case.json`), the store and what each process found (`take.msgpack`,
`restore.json`). It runs in the library's own environment, which has what mlcloud's snapshots need
and not mlcloud itself.
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import msgpack
from blake3 import blake3

from mlcloud.kernel.mentions import mentions
from mlcloud.kernel.namespace import RemoteSide
from mlcloud.kernel.recipes import CellRun
from mlcloud.kernel.snapshot import Snapshots
from mlcloud.store import Store

ALIASES = "alias = x\ninside = {'deep': [x]}"
SHORT = 40  # numbers of an array that are written out; of a longer one the hash


class NotMade(Exception):
    """The library's own code fails, before anything of ours looked at the instance."""


class Session:
    """A kernel's namespace and its snapshots, in this process's `__main__`."""

    def __init__(self, folder: Path) -> None:
        user = sys.modules["__main__"] = types.ModuleType("__main__")
        self.names = user.__dict__
        # Nothing is looked at only because it is cheap: what tracking misses is to be seen here.
        self.side = RemoteSide(self.names, cheap_s=0.0)
        self.snapshots = Snapshots(Store(f"file://{folder / 'store'}"), self.side)
        self._step = 0

    def cell(self, code: str, *, made: bool = True) -> dict[str, Any]:
        self._step += 1
        try:
            self._execute(code)
        except Exception as error:
            if made:
                raise
            raise NotMade(f"{type(error).__name__}: {error}") from error
        self.side.look(mentions(code))
        return self.snapshots.take(run=CellRun(self._step, f"e-{self._step}", code, code))

    def restore(self, body: dict[str, Any]) -> dict[str, Any]:
        restoring = self.snapshots.restore(body)
        for run in restoring.cells():
            try:
                self._execute(run.code)
            except Exception as error:
                restoring.failed(run.step, error)
        return restoring.end()

    def _execute(self, code: str) -> None:
        exec(compile(code, "<cell>", "exec", dont_inherit=True), self.names)

    def value(self, expression: str) -> Any:
        return plain(eval(compile(expression, "<value>", "eval", dont_inherit=True), self.names))


def plain(value: Any) -> Any:
    """The value as JSON that is equal where the values are.

    Raises `TypeError` for what has no equality of its own: an address in a `repr` compares nothing.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, (float, complex)):
        return repr(complex(value)) if isinstance(value, complex) else float(value).hex()
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, (list, tuple)):
        return [type(value).__name__, *map(plain, value)]
    if isinstance(value, dict):
        return {"dict": [[plain(key), plain(item)] for key, item in value.items()]}
    if isinstance(value, (set, frozenset)):
        return {"set": sorted(map(plain, value), key=repr)}
    module = type(value).__module__.partition(".")[0]
    if module == "numpy" and hasattr(value, "dtype"):
        return _array(value)
    if module == "pandas" and hasattr(value, "columns"):
        return {"frame": [[plain(name), plain(value[name])] for name in value.columns]}
    if module == "pandas" and hasattr(value, "index"):
        index, items = list(map(str, value.index)), list(map(str, value))
        return {"series": [str(value.dtype), index, items]}
    raise TypeError(f"a {type(value).__name__} is no plain data: compare what is in it")


def _array(value: Any) -> Any:
    head = [str(value.dtype), list(value.shape)]
    if value.dtype.hasobject or value.size <= SHORT:
        return {"array": [*head, plain(value.tolist())]}
    return {"array": [*head, blake3(value.tobytes()).hexdigest()]}


def take(folder: Path, case: dict[str, str]) -> dict[str, Any]:
    """The two snapshots, before and after a change, and what they must give back."""
    session = Session(folder)
    if case["setup"]:
        session.cell(case["setup"], made=False)
    session.cell(case["make"], made=False)
    kind = type(session.names["x"])
    before = session.cell(ALIASES)
    same = session.cell("alias")
    found: dict[str, Any] = {
        "kind": f"{kind.__module__}.{kind.__qualname__}",
        "skipped": before["skipped"].get("x", ""),
        "rewritten": same["new_bytes"] if same["bytes"] else 0,
        "before": before,
        "value": session.value(case["value"]),
    }
    found["after"] = session.cell(case["change"])
    found["changed"] = session.value(case["value"])
    return found


def restore(folder: Path, case: dict[str, str]) -> dict[str, Any]:
    """What each snapshot gives here: the value, whether the aliases are, and what went wrong."""
    taken = msgpack.unpackb((folder / "take.msgpack").read_bytes(), strict_map_key=False)
    found = {}
    for which in ("before", "after"):
        try:
            session = Session(folder)
            answer = session.restore(taken[which])
            names = session.names
            found[which] = {
                "missing": answer["missing"],
                "rebuilt": answer["rebuilt"].get("x", []),
                "alias": "x" in names
                and names["x"] is names["alias"] is names["inside"]["deep"][0],
                "value": session.value(case["value"]),
            }
        except Exception as error:
            found[which] = {"error": f"{type(error).__name__}: {error}"}
    return found


def main() -> None:
    step, folder = sys.argv[1], Path(sys.argv[2])
    case = json.loads((folder / "case.json").read_text())
    try:
        if step == "take":
            (folder / "take.msgpack").write_bytes(msgpack.packb(take(folder, case)))
        else:
            (folder / "restore.json").write_text(json.dumps(restore(folder, case)))
    except Exception as error:
        (folder / "error.txt").write_text(f"{type(error).__name__}: {error}")
        raise


if __name__ == "__main__":
    main()
