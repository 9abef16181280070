"""A session from the notebook's side: run cells in it, read and set its names, park and close it.

run(code) ─► LocalSide.prepare ─► upload large values ─► channel.execute
                                                            │ events, shown as they come
          LocalSide.apply ◄── mlcloud_return ◄── done ◄─────┘
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Any
from uuid import uuid4

import msgpack

from mlcloud import errors
from mlcloud.client.channel import Channel, Event
from mlcloud.client.connection import Connection
from mlcloud.client.display import Display
from mlcloud.client.environments import Comparison, SessionEnvironment
from mlcloud.client.errors import rebuilt
from mlcloud.client.objects import INLINE_BYTES, download, upload
from mlcloud.client.shipping import LocalSide, Row
from mlcloud.models import SessionInfo
from mlcloud.values import pickling as values
from mlcloud.values.messages import Blob, Group, Return, Shipment

KILL_AFTER_S = 5.0
MAX_RETURN = 1 << 20


class Session:
    """A durable remote kernel. Made by `mlcloud.session()`; its namespace is shared with yours.

    `session["x"]` fetches a name whatever its size, `session["x"] = 1` sets one, `run()` runs code
    with the same shipping of names as `%%remote`.
    """

    def __init__(
        self, connection: Connection, info: SessionInfo, namespace: dict[str, Any] | None = None
    ) -> None:
        self._connection = connection
        self.name = info.name
        self.id = info.id
        self.closed = False
        self._side = LocalSide(
            {} if namespace is None else namespace,
            info.id,
            fetch=self._get,
            session_name=info.name,
        )
        self._channel = Channel(connection, info.name, after=info.last_event)
        self._environment = SessionEnvironment(connection, info.name)

    def __repr__(self) -> str:
        return f"<mlcloud session {self.name!r}: {self.state}>"

    # --- facts ------------------------------------------------------------------------------------

    @property
    def info(self) -> SessionInfo:
        """Everything the gateway knows of it, as of now."""
        return SessionInfo.model_validate(self._connection.get(f"/v1/sessions/{self.name}"))

    @property
    def state(self) -> str:
        """One of starting, idle, busy, waiting, moving, parked, closed, failed."""
        return self.info.state.value

    @property
    def cost(self) -> Decimal:
        """Dollars spent so far (simulated on the embedded cluster)."""
        return self.info.usd

    @property
    def environment(self) -> Comparison:
        """This notebook's packages beside the session's, as a table."""
        return self.compared()

    def compared(self, *, everything: bool = False) -> Comparison:
        """As `environment`; `everything` that is installed, not only what is loaded here."""
        return self._environment.compared(everything=everything)

    def events(self, after: int = 0) -> list[dict[str, Any]]:
        """The journal after event number `after`, up to 256 events; bytes are base64."""
        found: list[dict[str, Any]] = self._connection.get(
            f"/v1/sessions/{self.name}/events", params={"after": after}
        )
        return found

    # --- running ----------------------------------------------------------------------------------

    def run(
        self,
        code: str,
        *,
        only_in: Iterable[str] | None = None,
        out: Iterable[str] | None = None,
        keep_remote: bool = False,
        timeout: float | None = None,
        on_preempt: str = "rerun",
        durable: bool = False,
        quiet: bool = False,
        result_hook: bool = False,
    ) -> None:
        """Run a cell here and show its output as it comes. Raises what the cell raised.

        `timeout` is in seconds; `durable` waits until the state is in the store; the others are the
        options of `%%remote`.
        """
        options: dict[str, Any] = {"on_preempt": on_preempt}
        if timeout is not None:
            options["timeout_s"] = timeout
        for fresh in (False, True):
            display = Display(result_hook=result_hook)
            shipment = self._side.prepare(
                code,
                only_in=None if only_in is None else list(only_in),
                out=None if out is None else list(out),
                keep_remote=keep_remote,
                max_return=MAX_RETURN,
            )
            for note in shipment.notes:
                display.status(note)
            done, answer = self._execute("cell", code, shipment, options, display, durable=durable)
            if fresh or not answer.get("fresh_kernel"):
                break
            # The kernel was lost before anything of it was in the store: nothing ran, send it all.
            self._side.reset()
        self._apply(answer, display)
        if not quiet and done.get("footer") and done.get("runs"):
            display.footer(done["footer"])
        if done["status"] != "ok":
            if display.error is not None:
                done = {**display.error, **done, "traceback": display.error["traceback"]}
            raise self._error(done, answer)

    def _error(self, done: dict[str, Any], answer: dict[str, Any]) -> BaseException:
        def load() -> Any:
            # From our own session over the authenticated channel: the user's own object.
            payload, buffers = answer["exception"]
            side = self._side
            return values.load(payload, buffers, side.namespace, classes=side.classes)

        return rebuilt(done, load)

    def _execute(
        self,
        kind: str,
        code: str,
        shipment: Shipment | None,
        options: dict[str, Any],
        display: Display,
        *,
        durable: bool = False,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Send, show, wait: the `done` event's content, and what the kernel returned."""
        message: dict[str, Any] = {
            "op": "execute",
            "id": f"x-{uuid4().hex}",
            "kind": kind,
            "code": code,
            "options": options,
        }
        if shipment is not None:
            for warning in self._environment.check(shipment):
                display.warn(warning)
            message["shipment"] = {
                "wire": shipment.to_wire(INLINE_BYTES),
                "objects": upload(self._connection, shipment.blobs()),
            }
        self._channel.execute(message)
        return self._follow(message["id"], display, durable=durable)

    def _follow(
        self, execution_id: str, display: Display, *, durable: bool
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        answer: dict[str, Any] = {}
        done: dict[str, Any] | None = None
        ladder = Ladder(self._channel, execution_id, display)
        while True:
            try:
                event = self._channel.next(display.status)
                if event.execution_id != execution_id:
                    continue
                if event.kind == "mlcloud_return":
                    answer = _unpacked(event)
                elif event.kind == "done":
                    self._channel.ended(execution_id)
                    done = event.body["content"]
                    if not durable or done["status"] != "ok":
                        return done, answer
                elif event.kind == "safe" and done is not None:
                    return done, answer
                else:
                    display.show(event.kind, event.body)
                    unsafe = event.kind == "story" and event.body["content"]["what"] == "unsafe"
                    if unsafe and done is not None:
                        raise errors.StoreError(event.body["content"]["text"])
            except KeyboardInterrupt:
                ladder.step()

    def _apply(self, answer: dict[str, Any], display: Display) -> None:
        names = answer.get("names")
        if not names:
            return
        returned = Return.from_wire(names["wire"])
        self._side.apply(returned, resolve=self._resolver(names["objects"]))
        for note in returned.notes:
            display.status(note)

    def _resolver(self, objects: dict[str, list[str]]) -> Callable[[Blob], bytearray]:
        return lambda blob: download(self._connection, blob, objects)

    # --- names ------------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> Any:
        """The value of a name in the session, fetched whatever its size. Raises `NotFound`."""
        return self._get(name)

    def _get(self, name: str, binding: int | None = None) -> Any:
        options = {"name": name, "binding": binding}
        done, answer = self._execute("get", "", None, options, Display())
        if done["status"] != "ok":
            raise self._error(done, answer)
        group = Group.from_wire(answer["group"]["wire"])
        resolve = self._resolver(answer["group"]["objects"])
        return self._side.open(group, resolve)

    def __setitem__(self, name: str, value: Any) -> None:
        """Bind a name in the session, whatever it held. Raises `NotPicklable`."""
        namespace, nothing = self._side.namespace, object()
        before = namespace.get(name, nothing)
        namespace[name] = value
        try:
            # A side of its own: what the notebook knows of its own `name` stays as it is.
            shipment = LocalSide(namespace, self.id).prepare(name, only_in=[name], out=[])
        finally:
            if before is nothing:
                del namespace[name]
            else:
                namespace[name] = before
        done, answer = self._execute("load", "", shipment, {}, Display())
        if done["status"] != "ok":
            raise self._error(done, answer)

    def dry(self, code: str) -> list[Row]:
        """What `%%remote --dry` shows: one row a name, nothing sent."""
        return self._side.dry(code)

    # --- life -------------------------------------------------------------------------------------

    def park(self, *, force: bool = False) -> None:
        """Give the node back, keep the state; the next cell resumes it.

        Raises `Conflict` where names would be lost, unless `force`.
        """
        self._connection.post(f"/v1/sessions/{self.name}/park", params={"force": force})

    def resume(self) -> None:
        """Bring the session back on a node now instead of at its next cell."""
        self._connection.post(f"/v1/sessions/{self.name}/resume", timeout=600)

    def interrupt(self) -> None:
        """Interrupt whatever cell runs in this session, from wherever."""
        running = self.info.running
        if running:
            self._connection.post(f"/v1/sessions/{self.name}/executions/{running}/interrupt")

    def close(self) -> None:
        """End the session for good and give its node back."""
        self._connection.request("DELETE", f"/v1/sessions/{self.name}", missing_ok=True)
        self._channel.close()
        self.closed = True


class Ladder:
    """What each interrupt of a waiting cell does, one step after the other.

    The first sends SIGINT (the host repeats it for 5 s). One that comes when that has not helped
    says what would be lost; the one after it ends the kernel, which comes back with the state
    before this cell. Releasing the node is never an interrupt's work.
    """

    def __init__(self, channel: Channel, execution_id: str, display: Display) -> None:
        self._channel = channel
        self._execution_id = execution_id
        self._display = display
        self._first: float | None = None
        self._warned = False

    def step(self) -> None:
        now = time.monotonic()
        if self._first is None or now - self._first < KILL_AFTER_S:
            self._first = self._first or now
            self._channel.interrupt(self._execution_id)
        elif not self._warned:
            self._warned = True
            self._display.status(
                "the cell does not yield to the interrupt. Interrupt once more to end its kernel: "
                "what this cell did is lost, the state before it comes back"
            )
        else:
            self._channel.kill(self._execution_id)


def _unpacked(event: Event) -> dict[str, Any]:
    buffers = event.body.get("buffers") or []
    if not buffers:
        return {}
    answer: dict[str, Any] = msgpack.unpackb(buffers[0], strict_map_key=False)
    return answer


def main_namespace() -> dict[str, Any]:
    """The notebook's own namespace: IPython's, or `__main__`'s."""
    from mlcloud.client.display import shell

    ip = shell()
    namespace: dict[str, Any] = ip.user_ns if ip is not None else vars(sys.modules["__main__"])
    return namespace
