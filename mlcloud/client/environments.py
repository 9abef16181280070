"""The notebook's packages against the session's: refused, warned of, or shown; and sent along.

    check_basics(connection)      at connect: Python, mlcloud, IPython, cloudpickle
    SessionEnvironment.check(...) before a cell is sent: the packages of the objects it ships
    SessionEnvironment.compared() everything, as a table (`%mlcloud env`, `session.environment`)
    spec(environment, …)          what `mlcloud.session(environment=…)` sends; wheels are uploaded

The gateway tells what its nodes run before there is a node, so what cannot work is refused before
anything is spent. What one side has is remembered and asked for again before it is complained of:
a cell may have installed the package meanwhile. `MLCLOUD_ENVIRONMENT_CHECK=warn` (or `off`) turns
refusals into warnings (or nothing).
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Collection, Iterable
from html import escape
from pathlib import Path
from typing import Any

from mlcloud import errors
from mlcloud.client.connection import Connection
from mlcloud.client.objects import put
from mlcloud.config import Settings
from mlcloud.environment import compare, facts
from mlcloud.environment.compare import Row, Verdict
from mlcloud.environment.facts import Facts
from mlcloud.environment.lock import CLUSTERS_OWN, Environment, html_table, text_table
from mlcloud.models import NodeFacts
from mlcloud.values.messages import Shipment


class EnvironmentWarning(UserWarning):
    """Versions differ in a way that might matter."""


def check_basics(connection: Connection) -> None:
    """Compare what every cell depends on. Raises `EnvironmentMismatch`, or warns."""
    mode = Settings().environment_check
    if mode == "off":
        return
    try:
        there = _facts(connection.get("/v1/environment"))
    except errors.NotFound:
        raise errors.EnvironmentMismatch(
            f"the gateway at {connection.address.url} is older than this mlcloud and does not tell "
            "what its nodes run: bring both to the same version"
        ) from None
    for row in compare.basics(facts.report(), there):
        if row.verdict.blocks and mode == "error":
            raise errors.EnvironmentMismatch(_basic(row, connection))
        if row.verdict.blocks or row.verdict is Verdict.MAY_MATTER:
            warnings.warn(_basic(row, connection), EnvironmentWarning, stacklevel=4)


def _basic(row: Row, connection: Connection) -> str:
    """A difference of the two sides in words, and what to do."""
    where = "the embedded cluster" if connection.embedded else connection.address.url
    minor = ".".join(row.there.split(".")[:2])
    if row.package == "Python":
        todo = f"run this notebook with Python {minor}"
        if connection.embedded:
            todo += ", or end the cluster (`mlcloud down`): the next one runs this notebook's"
    elif row.package == "mlcloud":
        todo = "install the same version on both sides"
        if connection.embedded:
            todo = "end the cluster (`mlcloud down`): the next one runs this version"
    else:
        todo = f"`%pip install {row.package}=={row.there}` here makes them equal"
    why = f" ({row.why})" if row.why else ""
    return f"{row.package} is {row.here} here and {row.there} on {where}{why}: {todo}"


class SessionEnvironment:
    """What one session runs with, as far as this notebook knows."""

    def __init__(self, connection: Connection, session: str) -> None:
        self._connection = connection
        self._session = session
        self._there: Facts | None = None
        self._source = ""
        self._done: set[str] = set()  # modules whose package needs no further look
        self._told: set[str] = set()  # packages that a warning was shown for

    def _ask(self, modules: Iterable[str] = ()) -> Facts:
        answer = self._connection.get(
            f"/v1/sessions/{self._session}/environment", params={"module": sorted(modules)}
        )
        self._there, self._source = _facts(answer), str(answer["source"])
        return self._there

    # --- before a cell ----------------------------------------------------------------------------

    def check(self, shipment: Shipment) -> list[str]:
        """Compare the packages whose objects the shipment carries; the warnings to show.

        Each package is looked at once. Raises `EnvironmentMismatch` before anything is sent.
        """
        new = shipment.modules.keys() - self._done
        if not new:
            return []
        mode = Settings().environment_check
        if mode == "off":
            return []
        needed: dict[str, str] = {}  # package -> a module it was met by
        owners = {module: facts.owner(module) for module in sorted(new)}
        for module, name in owners.items():
            if name is not None and name not in CLUSTERS_OWN:
                needed.setdefault(name, module)
        rows, found = self._rows(needed), []
        for name, row in rows.items():
            module = needed[name]
            if row.verdict.blocks:
                text = self._complaint(row, shipment.modules[module])
                if mode == "error":
                    raise errors.EnvironmentMismatch(text)
            elif row.verdict is Verdict.MAY_MATTER:
                text = (
                    f"{name} is {row.here} here and {row.there} in session {self._session!r} "
                    f"({row.why}): what `{shipment.modules[module]}` holds may behave differently. "
                    f"{self._way_out(row)}"
                )
            else:
                continue
            if name not in self._told:
                self._told.add(name)
                found.append(text)
        later = {name for name, row in rows.items() if row.verdict is Verdict.UNKNOWN}
        self._done |= {module for module, name in owners.items() if name not in later}
        return found

    def _rows(self, needed: dict[str, str]) -> dict[str, Row]:
        """The verdicts, with fresh facts where old ones would lead to a complaint."""
        here = facts.report()

        def verdicts(there: Facts) -> dict[str, Row]:
            tops = {name: module.partition(".")[0] for name, module in needed.items()}
            return {name: compare.package(name, here, there, tops[name]) for name in needed}

        if not needed:
            return {}
        if self._there is not None:
            rows = verdicts(self._there)
            if all(row.verdict in (Verdict.SAME, Verdict.FINE) for row in rows.values()):
                return rows
        try:
            return verdicts(self._ask({module.partition(".")[0] for module in needed.values()}))
        except (errors.NotFound, errors.SessionClosed):  # sending the cell says so, in its words
            return {}

    def _complaint(self, row: Row, name: str) -> str:
        if row.verdict is Verdict.MISSING:
            text = f"`{name}` needs {row.package} {row.here}, which session {self._session!r} lacks"
        else:
            text = (
                f"`{name}` holds objects of {row.package} {row.here}, and session "
                f"{self._session!r} has {row.there} ({row.why})"
            )
        return f"{text}. Nothing was sent. {self._way_out(row)}"

    def _way_out(self, row: Row) -> str:
        there = f"`%pip install {row.package}=={row.here}` in a %%remote cell"
        if row.there:
            there = f"`%pip install {row.package}=={row.there}` here, or {there}"
        return (
            f"To make them equal: {there}, or a session with this notebook's packages, "
            "mlcloud.session(NAME, environment='capture')."
        )

    # --- all of it --------------------------------------------------------------------------------

    def compared(self, *, everything: bool = False) -> Comparison:
        """Both sides as a table: what this notebook has loaded, or all that is installed."""
        there = self._ask()
        here = facts.report()
        names = _all(here, there) if everything else _loaded()
        title = {
            "session": f"here and in session {self._session!r}, as of now",
            "expected": f"here and as session {self._session!r} will be, once it is on a node",
            "nodes": f"here and in session {self._session!r}, with the nodes' packages",
        }[self._source]
        return Comparison(title, compare.table(here, there, names))


def compared_with_nodes(connection: Connection, *, everything: bool = False) -> Comparison:
    """This Python and what every node has."""
    there, here = _facts(connection.get("/v1/environment")), facts.report()
    names = _all(here, there) if everything else _loaded()
    return Comparison("here and on the cluster's nodes", compare.table(here, there, names))


def _all(here: Facts, there: Facts) -> Collection[str]:
    return here.packages.keys() | there.packages.keys()


def _loaded() -> Collection[str]:
    """The packages that this notebook has loaded modules of."""
    tops = {name for name in list(sys.modules) if "." not in name and not name.startswith("_")}
    return {name for name in map(facts.owner, sorted(tops)) if name is not None}


class Comparison:
    """Shows itself as a table; `rows` has the figures."""

    def __init__(self, title: str, rows: list[Row]) -> None:
        self.title = title
        self.rows = rows

    HEADS = ("package", "here", "there", "verdict")

    def _cells(self) -> list[tuple[str, ...]]:
        return [
            (
                row.package,
                row.here or "–",
                row.there or "–",
                row.verdict.value + (f": {row.why}" if row.why else ""),
            )
            for row in self.rows
        ]

    def __repr__(self) -> str:
        return "\n".join([self.title, *text_table(self.HEADS, self._cells())])

    def _repr_html_(self) -> str:
        return f"<div>{escape(self.title)}</div>{html_table(self.HEADS, self._cells())}"


def _facts(answer: dict[str, Any]) -> Facts:
    body = NodeFacts.model_validate(answer).model_dump()
    del body["source"]
    return Facts(**body)


# --- sending one ----------------------------------------------------------------------------------


def spec(
    environment: Environment | str | Path | Iterable[str | Path], connection: Connection
) -> dict[str, Any]:
    """What `POST /v1/sessions` takes; the wheels are in the store when this returns.

    `environment` is an `Environment`, `"capture"`, the path of a requirements file, or a list of
    requirements. Raises `UsageError` and `EnvironmentFailed`.
    """
    from blake3 import blake3

    from mlcloud.environment import capture, of

    if environment == "capture":
        environment = capture()
    elif not isinstance(environment, Environment):
        environment = of(environment)
    wheels = []
    for path in environment.wheels:
        data = path.read_bytes()
        objects = put(connection, data, "a wheel")
        wheels.append({"name": path.name, "digest": blake3(data).hexdigest(), "objects": objects})
    return {
        "python": environment.python,
        "pins": [
            each.requirement
            for each in environment.packages
            if each.requirement and each.name not in CLUSTERS_OWN
        ],
        "wheels": wheels,
        "requirements": list(environment.requirements),
        "summary": environment.summary,
    }
