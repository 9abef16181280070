"""A notebook and a session's namespace in one process, joined by the wire format alone."""

from __future__ import annotations

import builtins
from typing import Any

import msgpack

from mlcloud.client.shipping import LocalSide
from mlcloud.kernel.mentions import mentions
from mlcloud.kernel.namespace import RemoteSide
from mlcloud.kernel.tracking import ALL
from mlcloud.values.messages import Return, Shipment


def shipped(message: Shipment) -> Shipment:
    """The shipment as the other side reads it."""
    return Shipment.from_wire(msgpack.unpackb(msgpack.packb(message.to_wire())))


def returned(message: Return) -> Return:
    """The return as the notebook reads it."""
    return Return.from_wire(msgpack.unpackb(msgpack.packb(message.to_wire())))


def notebook() -> dict[str, Any]:
    """An empty namespace such as a notebook has."""
    return {"__name__": "__main__", "__builtins__": builtins}


def execute(code: str, namespace: dict[str, Any]) -> None:
    """Run a cell, without this file's own `from __future__`."""
    exec(compile(code, "<cell>", "exec", dont_inherit=True), namespace)


class Pair:
    """`local(code)` runs a local cell, `remote(code)` a `%%remote` cell."""

    def __init__(self, session: RemoteSide | None = None) -> None:
        self.here = notebook()
        self.side = LocalSide(self.here, "exp", fetch=self._fetch)
        # Nothing is looked at only because it is cheap: what tracking misses is to be seen here.
        self.session = session or RemoteSide(notebook(), cheap_s=0.0)
        self.there = self.session.namespace
        self.sent: list[str] = []
        self.mentioned = ALL
        self.changed: list[str] = []

    def _fetch(self, name: str, binding: int) -> Any:
        return self.side.open(self.session.fetch(name, binding))

    def local(self, code: str) -> None:
        execute(code, self.here)

    def start(self, code: str, **options: Any) -> Shipment:
        """Everything before and including the cell; the Return is still to come."""
        shipment = self.side.prepare(code, **options)
        self.sent = sorted(name for group in shipment.groups for name in group.names)
        self.session.load(shipped(shipment))
        self.mentioned = mentions(code)
        execute(code, self.there)
        return shipment

    def finish(self, shipment: Shipment) -> Return:
        ret = returned(self.session.collect(shipped(shipment), self.mentioned))
        self.changed = self.side.apply(ret)
        return ret

    def remote(self, code: str, **options: Any) -> Return:
        shipment = self.side.prepare(code, **options)
        self.sent = sorted(name for group in shipment.groups for name in group.names)
        self.session.load(shipped(shipment))
        self.mentioned = mentions(code)
        try:
            execute(code, self.there)
        finally:
            ret = self.finish(shipment)
        return ret
