"""Who holds a cluster: one head at a time, told by the store alone.

    manifests/leases/<cluster>/<n>.json    the n-th head; created once, so of two that race one wins
    marks/lease-<cluster>                  the holder's sign of life, renewed every few seconds

A new head takes over where there is no sign of life for `LEASE_S`, or where the holder is known to
have ended: a gateway of the same home on the same machine, whose lock the new one has. A holder
that finds a later head than itself is fenced: it stops, and commits nothing any more.

A head that gave no sign of life for nearly as long (a machine that slept, a process that was
stopped) may have lost what it held, and has not been told: its lease has *lapsed*. It begins no
cell and tells no end of one until it has looked.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import socket
import time
from pathlib import Path

from mlcloud.errors import Conflict, StepExists
from mlcloud.store import Signer, Store

KIND = "leases"
LEASE_S = 30.0
RENEW_S = 8.0
LAPSES_S = LEASE_S - RENEW_S  # before anybody else may think so
PATIENCE_S = LEASE_S + RENEW_S  # of a head that was made anew after another
LOOK_S = 1.0


def cluster_of(home: Path, cluster_id: str = "") -> str:
    """A cluster's name in its store. Elsewhere its own, whatever machine is the head; an embedded
    one's is the same for the same home on the same machine, for ever."""
    if cluster_id:
        return cluster_id
    digest = hashlib.blake2b(str(home.resolve()).encode(), digest_size=6).hexdigest()
    host = "".join(c if c.isalnum() else "-" for c in socket.gethostname())[:40].strip("-")
    return f"{host or 'local'}-{digest}"


class Lapsed(Exception):
    """Perhaps another head has what this one held: it must look first."""


class Lease:
    """One head's hold on `cluster`. Methods block: call them in a thread."""

    def __init__(self, store: Store, signer: Signer, cluster: str) -> None:
        self._store, self._signer = store, signer
        self.cluster = cluster
        self.holder = secrets.token_hex(8)
        self.number = 0
        self._sure = (time.time(), time.monotonic())

    @property
    def lapsed(self) -> bool:
        """Whether a session may be another head's by now. Cheap; blocks not."""
        at, clock = self._sure
        # A machine that slept sees it by the time of day, one whose clock was set by the other.
        return max(time.time() - at, time.monotonic() - clock) > LAPSES_S

    def looked(self) -> None:
        """What this head holds was found to be its own, just now."""
        self._sure = (time.time(), time.monotonic())

    def take(self, patience_s: float = 0.0) -> None:
        """Become the head. Raises `Conflict` where another one is alive, or was faster. It is tried
        for `patience_s`: one that was lost is heard no more after `LEASE_S`."""
        until = time.monotonic() + patience_s
        while True:
            try:
                self._take()
                return
            except Conflict:
                if time.monotonic() >= until:
                    raise
            time.sleep(min(LOOK_S, max(0.0, until - time.monotonic())))

    def _take(self) -> None:
        last = self._store.latest(KIND, self.cluster) or 0
        if last and (age := sign_of_life(self._store, self.cluster)) is not None:
            holder, seconds, where = age
            if seconds < LEASE_S and where != _where():
                raise Conflict(
                    f"another head holds the cluster {self.cluster} (last heard of "
                    f"{seconds:.0f} s ago, {holder}): end it, or wait {LEASE_S:.0f} s"
                )
        try:
            self._store.commit(
                KIND, self.cluster, last + 1, {"holder": self.holder}, sign=self._signer.sign
            )
        except StepExists:
            raise Conflict(f"another head has just taken the cluster {self.cluster}") from None
        self.number = last + 1
        self.looked()
        self.renew()

    def renew(self) -> bool:
        """Give a sign of life. False: there is a later head, and this one is fenced."""
        if not self.is_held():
            return False
        self._mark(time.time())
        if not self.lapsed:
            self.looked()
        return True

    def is_held(self) -> bool:
        return self._store.latest(KIND, self.cluster) == self.number

    def release(self) -> None:
        """The head ends in peace: the next one need not wait."""
        if self.is_held():
            self._mark(0.0)

    def _mark(self, at: float) -> None:
        text = json.dumps({"holder": self.holder, "at": at, "where": _where()})
        self._store.write_mark(f"lease-{self.cluster}", text.encode())


def sign_of_life(store: Store, cluster: str) -> tuple[str, float, str] | None:
    """The last holder's name, how many seconds ago it was heard of, and where it was."""
    raw = store.read_mark(f"lease-{cluster}")
    if raw is None:
        return None
    try:
        found = json.loads(raw)
        return str(found["holder"]), time.time() - float(found["at"]), str(found["where"])
    except (ValueError, KeyError, TypeError):
        return None


def _where() -> str:
    """This machine: two heads of one home here exclude each other by a lock of their own."""
    boot = Path("/proc/sys/kernel/random/boot_id")  # Linux alone has it
    return f"{socket.gethostname()}:{boot.read_text().strip() if boot.exists() else ''}"
