"""A session from the notebook's side: run cells in it, read and set its names, park and close it.

run(code) ─► LocalSide.prepare ─► upload large values ─► channel.execute
                                                            │ events, shown as they come
          LocalSide.apply ◄── mlcloud_return ◄── done ◄─────┘

Who gets an event, and where it is shown, is `feed`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any
from uuid import uuid4

from mlcloud import errors
from mlcloud.client import frontend
from mlcloud.client.connection import Connection
from mlcloud.client.display import Display, Here
from mlcloud.client.environments import Comparison, SessionEnvironment
from mlcloud.client.errors import in_cell, rebuilt
from mlcloud.client.execution import Execution
from mlcloud.client.feed import Feed
from mlcloud.client.following import Following
from mlcloud.client.history import History
from mlcloud.client.labels import Labels
from mlcloud.client.logs import Log
from mlcloud.client.objects import INLINE_BYTES, download, upload
from mlcloud.client.saved import Saved
from mlcloud.client.secrets import SessionSecrets
from mlcloud.client.shipping import LocalSide, Row
from mlcloud.cost.budgets import Limit
from mlcloud.errors import UsageError
from mlcloud.models import ExecutionInfo, SessionInfo
from mlcloud.saved_models import Boundary, Rewound, SavedState
from mlcloud.values import pickling as values
from mlcloud.values.messages import Group, Return, Shipment

MAX_RETURN = 1 << 20
# A cell without code: what it returns are the names that are others now.
RESTORED = "# back to step {step}"

PAGE_BURST = 1_500_000  # characters that a page can show of a cell at once, and stay usable


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
            ancestors=info.ancestors,
        )
        self.secrets = SessionSecrets(connection, info.name, self._side.classes)
        self.feed = Feed(
            connection, info.name, after=info.last_event, on_secrets=self.secrets.asked
        )
        self._labels = Labels(info.name)
        self._returns: list[tuple[dict[str, Any], Display]] = []
        self._environment = SessionEnvironment(connection, info.name)

    def __repr__(self) -> str:
        return f"<mlcloud session {self.name!r}: {self.state}>"

    # --- facts ------------------------------------------------------------------------------------

    @property
    def connection(self) -> Connection:
        """The gateway that it is reached by."""
        return self._connection

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

    def log(self, execution_id: str | None = None) -> Log:
        """All that an execution printed, however much; None: the session's last cell."""
        return Log(self._connection, self.name, execution_id)

    # --- running ----------------------------------------------------------------------------------

    def run(
        self,
        code: str,
        *,
        only_in: Iterable[str] | None = None,
        out: Iterable[str] | None = None,
        keep_remote: bool = False,
        timeout: float | None = None,
        max_cost: str | float | Decimal | None = None,
        on_preempt: str | None = None,
        durable: bool = False,
        quiet: bool = False,
        result_hook: bool = False,
        detach: bool = False,
    ) -> Execution | None:
        """Run a cell here and show its output as it comes. Raises what the cell raised.

        `timeout` is in seconds; `max_cost` is dollars, at which the cell is interrupted and raises
        `BudgetExceeded`; `durable` waits until the state is in the store; `detach` returns
        at once with a handle; the others are the options of `%%remote`. `on_preempt` is `rerun`,
        `ask` or `fail`; None: `rerun`, or `ask` where the cell was seen to write outside its
        workspace or to the network.
        """
        options: dict[str, Any] = {
            "on_preempt": on_preempt,
            "allow_stdin": detach or frontend.takes_input(),
        }
        if frontend.in_page():
            options["burst"] = PAGE_BURST
        _limit(options, timeout, max_cost)
        self.apply_returns()
        wanted: dict[str, Any] = {
            "only_in": None if only_in is None else list(only_in),
            "out": None if out is None else list(out),
            "keep_remote": keep_remote,
        }
        if detach:
            display = Display(Here(result_hook=result_hook))
            shipment = self._prepare(code, display, wanted, options)
            return self._detach(code, shipment, options, quiet=quiet)
        self._cell(code, wanted, options, durable=durable, quiet=quiet, result_hook=result_hook)
        return None

    def call(
        self,
        code: str,
        temporary: Mapping[str, Any],
        result: str,
        *,
        timeout: float | None = None,
        max_cost: str | float | Decimal | None = None,
        on_preempt: str | None = None,
        quiet: bool = False,
        max_return: int = MAX_RETURN,
    ) -> Any:
        """Run a cell that sees the names `temporary` too, and binds `result`: its value.

        The value comes back like a name's: itself up to `max_return` bytes, else a `RemoteValue`.
        Neither namespace keeps these names. Raises what the cell raised.
        """
        options: dict[str, Any] = {
            "allow_stdin": frontend.takes_input(),
            "on_preempt": on_preempt,
        }
        if frontend.in_page():
            options["burst"] = PAGE_BURST
        _limit(options, timeout, max_cost)
        self.apply_returns()
        wanted = {"temporary": temporary, "result": result, "max_return": max_return}
        shipment = self._cell(code, wanted, options, quiet=quiet)
        return self._side.take_result(shipment.id)

    def _cell(
        self,
        code: str,
        wanted: dict[str, Any],
        options: dict[str, Any],
        *,
        durable: bool = False,
        quiet: bool = False,
        result_hook: bool = False,
    ) -> Shipment:
        for fresh in (False, True):
            display = Display(Here(result_hook=result_hook))
            shipment = self._prepare(code, display, wanted, options)
            done, answer = self._execute("cell", code, shipment, options, display, durable=durable)
            if fresh or not (answer.get("fresh_kernel") or done.get("ename") == "Collected"):
                break
            if answer.get("fresh_kernel"):
                # It was lost before anything of it was in the store: nothing ran, send it all.
                self._side.reset()
                self._labels.reset()
        self._end(done, answer, display, quiet=quiet)
        return shipment

    def _prepare(
        self, code: str, display: Display, wanted: dict[str, Any], options: dict[str, Any]
    ) -> Shipment:
        self.secrets.refuse_in(code)
        options["cell"] = self._labels.describe(code)
        try:
            shipment = self._side.prepare(code, **{"max_return": MAX_RETURN, **wanted})
        except SyntaxError as error:
            raise in_cell(error, options["cell"]) from None
        for note in shipment.notes:
            display.status(note)
        return shipment

    def _end(
        self, done: dict[str, Any], answer: dict[str, Any], display: Display, *, quiet: bool
    ) -> None:
        """Bind what came back, show the bill, raise what the cell raised."""
        if done["status"] == "ok":
            display.flush_error()
        self.apply_returns()
        self._apply(answer, display)
        self._apply_result(answer, display)
        for payload in done.get("payload") or ():
            display.payload(payload)
        if done.get("footer") and done.get("runs"):
            figures = done["footer"]["metadata"]["mlcloud"]
            frontend.tell(frontend.cell(), {**figures, "state": done["status"]})
            if not quiet:
                self.feed.footer(display, done["footer"])
        if done["status"] != "ok":
            if done.get("ename") == "KeyboardInterrupt":
                display.status(f"interrupted; {self._still_billing()}", ready=True)
            raise self.error_of(done, answer, display)

    def _still_billing(self) -> str:
        from mlcloud.units import format_usd_per_hour

        info = self.info
        if info.node is None:
            return f"session {self.name} has no node, and bills nothing"
        note = " (simulated)" if info.simulated else ""
        return (
            f"session {self.name} keeps {info.instance_type}, which bills "
            f"{format_usd_per_hour(info.usd_per_hour)}{note}; `%mlcloud park` gives it back"
        )

    def error_of(
        self, done: dict[str, Any], answer: dict[str, Any], display: Display
    ) -> BaseException:
        """The exception of a cell that failed, as it was there."""
        return self._error(display.with_traceback(done), answer)

    def _error(self, done: dict[str, Any], answer: dict[str, Any]) -> BaseException:
        def load(part: Any) -> Any:
            # From our own session over the authenticated channel: the user's own object.
            payload, buffers = part
            side = self._side
            return values.load(payload, buffers, side.namespace, classes=side.classes)

        return rebuilt(done, answer, load, session=self.name)

    def _message(
        self,
        kind: str,
        code: str,
        shipment: Shipment | None,
        options: dict[str, Any],
        display: Display,
    ) -> dict[str, Any]:
        """The request, with its large values already at the gateway."""
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
                "objects": upload(self._connection, shipment.groups),
            }
        return message

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
        message = self._message(kind, code, shipment, options, display)
        with Following(self, message["id"], display) as following:
            if kind == "cell":
                frontend.tell(following.cell, self._facts(message["id"], "running"))
            self.feed.channel.execute(message)
            return following.until_done(durable=durable)

    def _detach(
        self, code: str, shipment: Shipment, options: dict[str, Any], *, quiet: bool
    ) -> Execution:
        message = self._message("cell", code, shipment, options, Display())
        execution = Execution(self, message["id"], quiet=quiet)
        self.feed.follow_with(execution.id, execution, execution.cell)
        frontend.tell(execution.cell, self._facts(execution.id, "running"))
        try:
            self.feed.channel.execute(message)
        except BaseException:
            self.feed.unfollow(execution.id, execution)
            raise
        return execution

    def _facts(self, execution_id: str, state: str) -> dict[str, Any]:
        """What a page keeps of a cell, to find its execution again."""
        facts = {"execution_id": execution_id, "session": self.name, "state": state}
        return {**facts, **({"cluster": name} if (name := self._connection.cluster) else {})}

    def follow(self, execution_id: str | None = None) -> None:
        """Show an execution here from its first output on, and go on live until it ends.

        None: the cell that runs now, or the last one. What it returned is bound here. Raises what
        it raised, and `NotFound` where nothing ran yet.
        """
        info = self.execution_info(execution_id) if execution_id else self._latest()
        display = Display()
        with Following(self, info.id, display) as following:
            replay = self.feed.replay(info)
            done, answer = following.until_done(replay=replay)
        self._end(done, answer, display, quiet=False)

    def _latest(self) -> ExecutionInfo:
        found = self.executions()
        if not found:
            raise errors.NotFound(f"session {self.name!r} has run no cell yet")
        running = [each for each in found if each.state.value in ("running", "queued")]
        return running[0] if running else found[-1]

    def executions(self) -> list[ExecutionInfo]:
        """Its latest cells, oldest first."""
        answer = self._connection.get(f"/v1/sessions/{self.name}/executions")
        return [ExecutionInfo.model_validate(each) for each in answer]

    def execution_info(self, execution_id: str) -> ExecutionInfo:
        """Raises `NotFound`."""
        path = f"/v1/sessions/{self.name}/executions/{execution_id}"
        return ExecutionInfo.model_validate(self._connection.get(path))

    # --- what comes back --------------------------------------------------------------------------

    def keep_return(self, answer: dict[str, Any], display: Display) -> None:
        """What a detached cell returned; the next cell of this notebook binds it."""
        self._returns.append((answer, display))
        ip = frontend.shell()
        if ip is not None and self._bind_before_next not in ip.events.callbacks["pre_run_cell"]:
            ip.events.register("pre_run_cell", self._bind_before_next)

    def _bind_before_next(self, *_: Any) -> None:
        self.apply_returns()

    def apply_returns(self) -> None:
        """Bind what detached cells have returned since."""
        while self._returns:
            self._apply(*self._returns.pop(0))

    def _apply(self, answer: dict[str, Any], display: Display) -> None:
        names = answer.get("names")
        if not names:
            return
        returned = Return.from_wire(names["wire"])
        # Fetched whole before any of it is applied: an interrupt here leaves nothing half done.
        inbox = download(self._connection, returned.groups, names["objects"])
        self._side.apply(returned, resolve=inbox.take)
        for note in returned.notes:
            display.status(note)

    def _apply_result(self, answer: dict[str, Any], display: Display) -> None:
        """The cell's value: the name that holds it, or itself where it is small."""
        result, side = answer.get("result"), self._side
        if result is None:
            return
        if result["name"] is not None and side.holds(result["name"], result["version"]):
            display.value(side.namespace[result["name"]])
        elif result["value"] is not None:
            payload, buffers = result["value"]
            try:
                value = values.load(payload, buffers, side.namespace, classes=side.classes)
            except Exception:  # a package that only the session has: what was shown stays
                return
            display.value(value)

    # --- names ------------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> Any:
        """The value of a name in the session, fetched whatever its size. Raises `NotFound`."""
        return self._get(name)

    def _get(self, name: str, binding: int | None = None) -> Any:
        options = {"name": name, "binding": binding}
        for again in (False, True):
            done, answer = self._execute("get", "", None, options, Display())
            if done["status"] != "ok":
                raise self._error(done, answer)
            group = Group.from_wire(answer["group"]["wire"])
            inbox = download(self._connection, [group], answer["group"]["objects"])
            if again or not inbox.gone:  # else it was removed from the store at that moment
                break
        return self._side.open(group, inbox.take)

    def __setitem__(self, name: str, value: Any) -> None:
        """Bind a name in the session, whatever it held. Raises `NotPicklable`."""
        namespace, nothing = self._side.namespace, object()
        before = namespace.get(name, nothing)
        namespace[name] = value
        try:
            # A side of its own: what the notebook knows of its own `name` stays as it is.
            side = LocalSide(namespace, self.id)
            side.classes.secrets = self._side.classes.secrets
            shipment = side.prepare(name, only_in=[name], out=[])
        finally:
            if before is nothing:
                del namespace[name]
            else:
                namespace[name] = before
        done, answer = self._execute("load", "", shipment, {}, Display())
        if done.get("ename") == "Collected":
            done, answer = self._execute("load", "", shipment, {}, Display())
        if done["status"] != "ok":
            raise self._error(done, answer)

    def debug(self) -> None:
        """IPython's debugger in the session, in the last error that a cell raised there.

        Raises `UsageError` where there is none, or where this front end cannot answer its prompt.
        """
        if not frontend.takes_input():
            raise UsageError("the debugger asks for commands, and this front end answers none")
        if self.info.node is None:
            raise UsageError(
                f"session {self.name} is on no node: an error is not kept when a kernel ends"
            )
        display = Display(Here(result_hook=False))
        done, answer = self._execute("debug", "", None, {"allow_stdin": True}, display)
        if done["status"] != "ok":
            raise self.error_of(done, answer, display)
        display.flush_error()

    # --- Tab and ? --------------------------------------------------------------------------------

    def ask(self, question: dict[str, Any], timeout: float) -> dict[str, Any]:
        """What the session's kernel knows of its names; empty where it does not answer in time.

        Nothing is started for it: not a gateway, not a node. `timeout` is in seconds.
        """
        path = f"/v1/sessions/{self.name}/{question['what']}"
        answer: dict[str, Any] = self._connection.ask(
            path, {key: value for key, value in question.items() if key != "what"}, timeout
        )
        return answer

    def dry(self, code: str) -> list[Row]:
        """What `%%remote --dry` shows: one row a name, nothing sent."""
        return self._side.dry(code)

    # --- life -------------------------------------------------------------------------------------

    def park(self, *, force: bool = False, stop: bool = False) -> None:
        """Give the node back, keep the state; the next cell resumes it.

        Raises `Conflict` where names would be lost, unless `force`, and where a cell runs, unless
        `stop`, which ends it first.
        """
        params = {"force": force, "stop": stop}
        self._connection.post(f"/v1/sessions/{self.name}/park", params=params, timeout=60)

    def resume(
        self,
        *,
        gpu: str | None = None,
        cpus: float | None = None,
        memory: str | None = None,
        market: str | None = None,
    ) -> None:
        """Bring the session back on a node now instead of at its next cell.

        With any of the options of `mlcloud.session()`, on a node of that shape, which is the
        session's from then on; what is not given stays as it is, and `"none"` for `gpu` or `memory`
        asks for no GPU, and for the node's memory. A session that is on a node is parked first.

        Raises `NoSuchResources` where the cluster has no such shape and `Conflict` while a cell
        runs, where its state is too large for the shape or something of it would be lost: nothing
        has changed then. Raises `SessionFailed` where it did not come up there: it is parked then,
        with its state and the shape that it had.
        """
        given = {"gpu": gpu, "cpus": cpus, "memory": memory, "market": market}
        shape = {
            key: None if key in ("gpu", "memory") and str(value).lower() == "none" else value
            for key, value in given.items()
            if value is not None
        }
        self._connection.post(f"/v1/sessions/{self.name}/resume", shape or None, timeout=600)

    def saved(self) -> Saved:
        """What would be left if the node went now: each variable saved, made again by which cells,
        or lost and why; shown as a table."""
        found = self._connection.get(f"/v1/sessions/{self.name}/state")
        return Saved(self.info, SavedState.model_validate(found))

    def history(self) -> History:
        """The states that `restore` can go back to, oldest first, as a table.

        One for each cell, but for those that followed each other at once and were saved together.
        """
        found = self._connection.get(f"/v1/sessions/{self.name}/history")
        return History(Boundary.model_validate(each) for each in found)

    def restore(self, step: int) -> None:
        """Put the session back into the state of this step of `history()`.

        The notebook's names follow, unless they were changed here since; on a parked session, with
        its next cell. Names that the session did not have then stay as they are here. What was
        after that step is in the history still. Raises `Conflict` while a cell runs, `NotFound`
        where there is no such step, and `Damaged` where it cannot be read.
        """
        path = f"/v1/sessions/{self.name}/restore"
        answer = self._connection.post(path, json={"step": step}, timeout=600)
        self._side.rewound(Rewound.model_validate(answer).names)
        if self.info.node is not None:
            self.run(RESTORED.format(step=step), quiet=True)

    def restart(self) -> None:
        """A new kernel, without any name, on the node that the session has; a cell that runs is
        ended first.

        The notebook's own names stay as they are. What the session had is in its `history()`, so
        `restore` takes a restart back.
        """
        self._connection.post(f"/v1/sessions/{self.name}/restart", timeout=600)

    def fork(self, name: str, *, step: int | None = None) -> Session:
        """Another session, with this one's resources and its newest state, or that of `step`.

        From there on the two know nothing of each other; what is in the store already is not
        written again. It takes a node with its first cell. RemoteValues of this session stand for
        the fork's own objects in its cells. Raises `Conflict` where the name is taken.
        """
        body = {"name": name, "step": step}
        answer = self._connection.post(f"/v1/sessions/{self.name}/fork", json=body, timeout=60)
        info = SessionInfo.model_validate(answer)
        return Session(self._connection, info, self._side.namespace)

    def interrupt(self) -> None:
        """Interrupt whatever cell runs in this session, from wherever."""
        running = self.info.running
        if running:
            self._connection.post(f"/v1/sessions/{self.name}/executions/{running}/interrupt")

    def close(self) -> None:
        """End the session for good and give its node back."""
        self._connection.request("DELETE", f"/v1/sessions/{self.name}", missing_ok=True)
        self.feed.close()
        self.closed = True


def main_namespace() -> dict[str, Any]:
    """The notebook's own namespace: IPython's, or `__main__`'s."""
    ip = frontend.shell()
    namespace: dict[str, Any] = ip.user_ns if ip is not None else vars(sys.modules["__main__"])
    return namespace


def _limit(
    options: dict[str, Any], timeout: float | None, max_cost: str | float | Decimal | None
) -> None:
    """How long a cell may run, in seconds, and what it may cost, in dollars."""
    if timeout is not None:
        options["timeout_s"] = timeout
    if max_cost is not None:
        limit = Limit.parse(max_cost)
        if limit.period:
            raise UsageError(f"max_cost is for one cell, in dollars: 5, not {max_cost}")
        options["max_cost"] = str(max_cost)
