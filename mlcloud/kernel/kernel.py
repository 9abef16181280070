"""The remote ipykernel: IPython's kernel, plus names in, names out, snapshots and notices.

Everything travels in ordinary Jupyter messages, so order is Jupyter's order:

    execute_request, buffers[0] = msgpack request  ─► names are loaded, the cell runs
                    ◄─ iopub  stream, display_data, …            as of any kernel
                    ◄─ iopub  mlcloud_event                      checkpoints, resumes
                    ◄─ stdin  input_request
                    ◄─ iopub  mlcloud_return                     what comes back, and how it ended
                    ◄─ iopub  mlcloud_snapshot              the state after this cell, in the store

A request without code is an operation (`get`, `load`, `restore`): it runs in
the same queue as the cells, on the main thread, so it can be interrupted like one. A notice comes
on the control channel, which answers while a cell runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import msgpack
import psutil
import zmq
from ipykernel.ipkernel import IPythonKernel
from traitlets import Type

from mlcloud.checkpoint import context as run_context
from mlcloud.errors import Conflict, MLCloudError, NameConflict, NotPicklable, UsageError
from mlcloud.kernel import activity, mounting, ranks, tracebacks
from mlcloud.kernel.c_stdio import flush_c
from mlcloud.kernel.comms import Comms
from mlcloud.kernel.effects import Effects
from mlcloud.kernel.files import Files
from mlcloud.kernel.inlet import Inlet
from mlcloud.kernel.introspection import Introspection
from mlcloud.kernel.masking import as_variables, secrets_of
from mlcloud.kernel.mentions import mentions, used_by
from mlcloud.kernel.namespace import RemoteSide
from mlcloud.kernel.outlet import DELIMITER, END, Outlet
from mlcloud.kernel.pace import Pace, together
from mlcloud.kernel.recipes import CellRun
from mlcloud.kernel.saving import Saving, failure
from mlcloud.kernel.shell import Cell, Shell
from mlcloud.kernel.snapshot import Snapshots
from mlcloud.kernel.threads import inherit_parents
from mlcloud.kernel.tracking import ALL
from mlcloud.kernel.transfer import Inbox, send
from mlcloud.store import Store
from mlcloud.store.mounts import data
from mlcloud.values import exceptions
from mlcloud.values.immutable import is_immutable
from mlcloud.values.messages import Shipment
from mlcloud.values.pickling import Enough, dump, up_to
from mlcloud.values.scan import Stopped
from mlcloud.values.secrets import Secrets

STDIN_S = 30.0  # for the host's socket to join
_MEAN_S = run_context.DEFAULT_MEAN_TIME_TO_PREEMPTION_S  # a gateway of before says none
MOST_RETAKEN = 3
MAX_PICKLED_BYTES = 1 << 20  # of an exception, or a result


@dataclass
class _Due:
    """A state that is not saved yet: after this request."""

    request: dict[str, Any]
    parent: dict[str, Any]
    must: bool  # before anything else runs


class RemoteKernel(IPythonKernel):  # type: ignore[misc]  # ipykernel ships no complete types
    """One session's kernel. `serve()` is called once, before the first message."""

    shell_class = Type(Shell)
    control_msg_types: ClassVar = [
        *IPythonKernel.control_msg_types,
        "mlcloud_notice",
        "mlcloud_comm",
        "mlcloud_ask",
        "mlcloud_secrets",
        "mlcloud_abort",
    ]

    def serve(
        self,
        *,
        session_id: str,
        store_url: str,
        keep_files: int,
        snapshot_memory: int,
        snapshot_max: int,
        snapshot_overhead: float,
        inlet: Inlet,
        outlet: Outlet,
    ) -> None:
        self.session_id = session_id
        self.store = Store(store_url)
        self.names = RemoteSide(self.shell.user_ns, snapshot_max=snapshot_max or None)
        self.names.classes.secrets = secrets_of(os.environ)
        self.ranks = ranks.of(os.environ)  # where it is one of a gang's
        self.names.follows = self.ranks is not None and self.ranks.follows
        self._workspace = workspace = Path.cwd()
        files = Files(workspace, keep_files, lambda data: self.names.classes.secrets.held_by(data))
        self.snapshots = Snapshots(self.store, self.names, files, self.shell)
        self._saving = Saving(snapshot_memory or psutil.virtual_memory().total // 10)
        self.effects = Effects(workspace, [self.store.folder] if self.store.folder else [])
        self._pace = Pace(snapshot_overhead)
        self._runs: list[CellRun] = []  # since the last snapshot
        self.notice = run_context.Notice()
        self.occupied = False  # by a cell; its snapshot is waited for
        self.comms = Comms(self)
        inherit_parents(self)
        self.introspection = Introspection(self.shell, self._is_doubtful)
        self._request: dict[str, Any] | None = None
        self._ended = False
        self._inlet, self._outlet = inlet, outlet
        self._due: _Due | None = None
        self._busy, self._handled = False, 0
        self._mean_s = _MEAN_S
        self._price: tuple[str, bool] = ("0", False)
        self._retaken = 0  # in a row

    def start(self) -> None:
        super().start()
        self._inlet.start()

    def _publish_status(self, *_: Any, **__: Any) -> None:
        """Nobody downstream asks whether this kernel is busy: the gateway knows what runs."""

    def _publish_execute_input(self, *_: Any, **__: Any) -> None:
        """Nor for the cell's own code."""

    # --- a cell -----------------------------------------------------------------------------------

    async def execute_request(self, stream: Any, ident: Any, parent: dict[str, Any]) -> None:
        if not parent.get("buffers"):
            await super().execute_request(stream, ident, parent)
            return
        self.occupied, self._ended = True, False
        try:
            request = msgpack.unpackb(parent["buffers"][0], strict_map_key=False)
            self._settle(request)
            self._saving.detach()
            self._request = request
            self._mean_s = request.get("mean_time_to_preemption_s") or _MEAN_S
            self._price = str(request.get("usd_per_hour", 0)), bool(request.get("simulated"))
            content = parent["content"]
            if self.ranks is not None:
                self.ranks.meet_at(content.get("port", 0))
            cell = request.get("cell") or {}
            reply = await self.do_execute(
                content["code"],
                bool(cell.get("silent")),
                bool(cell.get("store_history", True)),
                cell.get("user_expressions") or {},
                allow_stdin=content["allow_stdin"],
            )
        except BaseException as error:
            if not self._ended:  # an interrupt came where no cell runs any more
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                end = {"status": "error", "ename": type(error).__name__, "evalue": str(error)}
                self._outlet.end(self._frames("mlcloud_return", end, parent, {}))
            raise
        finally:
            self.occupied = False
        if request.get("snapshot", True):
            # What failed is not run again, nor what reached outside without a question.
            once = reply["status"] != "ok" or any(run.effects for run in self._runs)
            # A gang's state is whole where every rank has one after the same cell.
            must = once or request["op"] != "cell" or self.ranks is not None
            self._due = _Due(request, parent, must=must)
            self._await_rest(self._due)

    def _input_request(self, prompt: str, ident: Any, parent: Any, password: bool = False) -> str:
        """As ipykernel's, and the question reaches the host: a kernel's first statement may come
        before the host's socket has joined, and a ROUTER drops what it cannot deliver."""
        self.stdin_socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        until = time.monotonic() + STDIN_S
        while True:
            try:
                answer: str = super()._input_request(prompt, ident, parent, password)
                return answer
            except zmq.ZMQError as error:
                if error.errno != zmq.EHOSTUNREACH or time.monotonic() > until:
                    raise
            time.sleep(0.01)

    async def do_execute(
        self,
        code: str,
        silent: bool,
        store_history: bool = True,
        user_expressions: dict[str, Any] | None = None,
        allow_stdin: bool = False,
        **more: Any,
    ) -> dict[str, Any]:
        request, self._request = self._request, None
        if request is None:
            reply: dict[str, Any] = await super().do_execute(
                code, silent, store_history, user_expressions, allow_stdin, **more
            )
            return reply
        parent = self.get_parent("shell")
        answer: dict[str, Any] = {}
        try:
            if request["op"] == "debug":
                reply = await self._debug(allow_stdin, more)
            elif request["op"] == "cell":
                self.shell.begin(None)
                shipment = self._load(request)
                self.shell.begin(Cell.from_wire(request["cell"]) if request.get("cell") else None)
                count = self.shell.execution_count
                run = _run_of(request, code)
                self._runs.append(run)
                with self._running(request["execution_id"], run):
                    reply = await super().do_execute(
                        code, silent, store_history, user_expressions, allow_stdin, **more
                    )
                flush_c()
                self._note_failure(run, reply)
                if reply["status"] == "error" and self.shell.failed is not None:
                    reply = self._describe_failure(self.shell.failed, reply, answer)
                if self.ranks is not None:
                    self.ranks.learn()
                back = self.names.collect(shipment, self._mentioned())
                answer["names"] = send(back, self.store, self._tell)
                if not (request.get("cell") or {}).get("own"):  # else its value is wanted nowhere
                    answer["result"] = self._result(count)
                reply["pending"] = self.names.pending
            else:
                if request.get("snapshot", True):
                    self._runs.append(_run_of(request, ""))
                answer.update(await getattr(self, f"op_{request['op']}")(request))
                told: dict[str, Any] = {
                    key: answer[key] for key in ("missing", "rebuilt") if key in answer
                }
                reply = self._reply({"status": "ok", **told})
        except (Exception, KeyboardInterrupt, asyncio.CancelledError) as error:
            self.names.doubt()
            if isinstance(error, asyncio.CancelledError):  # how an interrupt ends an `await`
                error = KeyboardInterrupt()
            if isinstance(error, Conflict) and not isinstance(error, NameConflict):
                # Made for a kernel that is gone; the client prepares it anew, unseen by the user.
                answer["fresh_kernel"] = True
                reply = self._reply({"status": "error", "ename": "Conflict", "evalue": str(error)})
            else:
                reply = self._failed(error)
                answer["own"] = isinstance(error, MLCloudError)
            answer["exception"] = self._packed(error)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the cell is over: nothing cuts this short
        end = {key: reply[key] for key in END if key in reply}
        self._outlet.end(self._frames("mlcloud_return", end, parent, answer))
        self._ended = True
        return reply

    def _note_failure(self, run: CellRun, reply: dict[str, Any]) -> None:
        """Where it was interrupted it would go on next time; and of a gang's cell the ranks that
        did not fail wait for those that did."""
        run.failed = reply["status"] == "error"
        if run.failed and reply.get("ename") == "KeyboardInterrupt":
            run.effects.append("was interrupted")
        elif run.failed and self.ranks is not None:
            run.effects.append("failed")

    def _mentioned(self) -> frozenset[str]:
        """The names in the code that has run, as far as code tells (`tracking`)."""
        if self.shell.ran is None or self._is_busy():
            self.names.doubt()
            return ALL
        hooks = [hook for hooks in self.shell.events.callbacks.values() for hook in hooks]
        return mentions(self.shell.ran) | used_by(activity.codes_of(hooks))

    def _is_doubtful(self) -> bool:
        """Whether the last snapshot may not be what is here: something ran beside the cells."""
        return self._busy or self.comms.handled != self._handled or self.names.is_doubtful

    def _is_busy(self) -> bool:
        """Whether something else than cells runs here, or did since this was asked last."""
        before, self._busy = self._busy, activity.is_running(asyncio.get_running_loop())
        handled, self._handled = self._handled, self.comms.handled
        return before or self._busy or handled != self._handled

    async def _debug(self, allow_stdin: bool, more: dict[str, Any]) -> dict[str, Any]:
        """IPython's debugger in the last error of a cell; `UsageError` where there is none."""
        if not self.shell.can_debug:
            raise UsageError(
                "there is no error to look at: no cell has failed since this session's kernel "
                "started, and an error is not kept when a kernel ends"
            )
        reply: dict[str, Any] = await super().do_execute(
            "%debug", False, False, {}, allow_stdin, **more
        )
        return reply

    @contextlib.contextmanager
    def _cancel_on_sigint(self, future: asyncio.Future[Any]) -> Iterator[None]:
        """What SIGINT does while a cell with top-level `await` runs (ipykernel 7.4 loses it)."""
        loop = asyncio.get_running_loop()

        def interrupt(*_: Any) -> None:
            if asyncio.current_task(loop) is None:  # it waits: nothing of the cell runs right now
                loop.call_soon_threadsafe(future.cancel)
            else:
                raise KeyboardInterrupt

        previous = signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)

    def _describe_failure(
        self, error: BaseException, reply: dict[str, Any], answer: dict[str, Any]
    ) -> dict[str, Any]:
        """What the notebook needs to raise the cell's error as it was raised here."""
        answer["exception"] = self._packed(error)
        if isinstance(error, SystemExit):  # IPython showed one line of it; %tb shows it all
            answer["rendered"] = self.shell.render(error)
        return {**reply, "ename": type(error).__name__, "evalue": tracebacks.text_of(error)}

    def _failed(self, error: BaseException) -> dict[str, Any]:
        """Report an error of ours as IPython reports one of the cell's."""
        name, text = type(error).__name__, tracebacks.text_of(error)
        lines = [f"{name}: {text}"]
        if not isinstance(error, MLCloudError):
            tracebacks.strip(error)
            lines = self.shell.render(error)
        content = {"ename": name, "evalue": text, "traceback": lines}
        self._publish("error", content, self.get_parent("shell"))
        return self._reply({"status": "error", **content})

    def _reply(self, content: dict[str, Any]) -> dict[str, Any]:
        return {
            **content,
            "execution_count": self.shell.execution_count,
            "payload": [],
            "user_expressions": {},
        }

    def _packed(self, error: BaseException) -> list[dict[str, Any]]:
        """The exception and its family as plain data, as far as they can travel."""

        def one(value: Any) -> list[Any]:
            if isinstance(value, str):
                value = self.names.classes.secrets.mask(value)
            pickled = dump(value, self.shell.user_ns, classes=self.names.classes)
            if pickled.size > MAX_PICKLED_BYTES:
                raise NotPicklable("it is too large to travel with an exception")
            return [pickled.payload, [bytes(buffer) for buffer in pickled.buffers]]

        return exceptions.pack(error, one, tracebacks.frames)

    def _result(self, count: int) -> dict[str, Any] | None:
        """The value of the cell numbered `count`, for the notebook's `Out` and `_`."""
        outputs = self.shell.user_ns["_oh"]
        if count not in outputs:
            return None
        value = outputs[count]
        held = None if is_immutable(type(value)) else self.names.name_of(value)
        if held is not None:
            return {"name": held[0], "version": held[1], "value": None}
        return {"name": None, "version": 0, "value": self._pickled(value)}

    def _pickled(self, value: Any) -> list[Any] | None:
        """A result; None where it does not travel."""
        if value is None:
            return None
        ask = up_to(MAX_PICKLED_BYTES)
        try:
            pickled = dump(value, self.shell.user_ns, classes=self.names.classes, ask=ask)
        except (NotPicklable, Enough):
            return None
        if pickled.size > MAX_PICKLED_BYTES or pickled.devices:
            return None
        return [pickled.payload, [bytes(buffer) for buffer in pickled.buffers]]

    @contextlib.contextmanager
    def _running(self, execution_id: str, run: CellRun) -> Iterator[None]:
        """The user's code runs: what it asks of mlcloud, and what it does outside, is heard."""
        parent = self.get_parent("shell")
        began = time.perf_counter()
        self.effects.begin(lambda words: self._publish("mlcloud_effect", {"text": words}, parent))
        kind = run_context.RunContext if self.ranks is None else ranks.RankContext
        context = kind(
            store_url=self.store.url,
            series=f"{self.session_id}/{execution_id}",
            report=lambda event: self._publish("mlcloud_event", event, parent),
            notice=self.notice,
            mean_time_to_preemption_s=self._mean_s,
            usd_per_hour=Decimal(self._price[0]),
            simulated=self._price[1],
        )
        try:
            with run_context.use(context):
                yield
        finally:
            run.effects = self.effects.end()
            run.seconds = time.perf_counter() - began
            run.transformed = self.shell.ran or ""
            self._pace.ran(run.seconds)

    def _load(self, request: dict[str, Any]) -> Shipment:
        """The names a request brings, bound. A request without any is a bare run of code."""
        sent = request["shipment"] or {"wire": Shipment().to_wire(), "objects": {}}
        shipment = Shipment.from_wire(sent["wire"])
        if self.names.follows:
            shipment.max_return, shipment.out = 0, None
        inbox = Inbox(self.store, sent["objects"], self._tell)
        self.names.load(shipment, inbox.take, inbox.fetch)
        if self.ranks is not None:
            self._publish("mlcloud_loaded", {}, self.get_parent("shell"))
        return shipment

    def _tell(self, text: str, over: bool) -> None:
        """How far a long transfer between this kernel and the store is."""
        self._tell_of(self.get_parent("shell"), text, over)

    def _tell_of(self, parent: dict[str, Any], text: str, over: bool) -> None:
        self._publish("mlcloud_transfer", {"text": text, "ready": over}, parent)

    # --- operations -------------------------------------------------------------------------------

    async def op_get(self, request: dict[str, Any]) -> dict[str, Any]:
        """One name's value, whatever its size."""
        group = self.names.fetch(request["name"], request.get("binding"))
        return {"group": send(group, self.store, self._tell)}

    async def op_load(self, request: dict[str, Any]) -> dict[str, Any]:
        """Names sent without a cell (`s["x"] = 1`)."""
        self._load(request)
        return {}

    async def op_save(self, request: dict[str, Any]) -> dict[str, Any]:
        """Only the snapshot that follows: of what ran beside the cells."""
        return {}

    async def op_mount(self, request: dict[str, Any]) -> dict[str, Any]:
        """The session's data: read onto this node, and linked to where it is to be."""
        for each in request["mounts"]:
            tell = mounting.teller(each["url"], self._tell)
            source = data(each["url"], cache=each["cache"], tell=tell)
            mounting.mount(self._workspace, each["path"], source)
        return {}

    async def op_restore(self, request: dict[str, Any]) -> dict[str, Any]:
        """A snapshot's names, in a kernel that has none yet; some by running their cells again."""
        body = request["snapshot_body"]
        self.shell.compile.learn(body.get("labels", {}))
        again: Any = contextlib.nullcontext
        if self.ranks is not None:
            self.ranks.restore(body.get("gang", {}))
            again = self.ranks.again
        restoring = self.snapshots.restore(body)
        for run in restoring.cells():
            self.shell.begin(Cell.from_wire(run.cell) if run.cell else None)
            bare = CellRun(run.step, run.execution_id, "", "")
            with self._running(run.execution_id, bare), again():
                result = await self.shell.run_cell_async(
                    run.code, store_history=False, silent=True, transformed_cell=run.transformed
                )
            restoring.failed(run.step, result.error_before_exec or result.error_in_exec)
        self.shell.begin(None)
        return restoring.end()

    # --- after a cell -----------------------------------------------------------------------------

    def _settle(self, request: dict[str, Any]) -> None:
        """A request waits: save the state first, if it must be, or may be by now (`pace`)."""
        due = self._due
        if due is None or request["op"] == "get":  # that changes nothing
            return
        if not due.must and request["op"] == "cell" and not _brings_values(request):
            takes = self.names.cost
            if not self._pace.affords(takes) or not self._saving.wait(self._pace.most - takes):
                self._due = None
                return
        began = time.perf_counter()
        self._take_snapshot()
        self._pace.delayed(time.perf_counter() - began)

    def _await_rest(self, due: _Due) -> None:
        wait = self._pace.wait(self.names.cost)
        asyncio.get_running_loop().call_later(wait, self._rest, due)

    def _rest(self, due: _Due) -> None:
        """Nothing runs: save the state, unless that is done."""
        if self._due is not due:
            return
        if self.occupied:  # by a cell that awaits
            self._await_rest(due)
            return
        try:
            self._take_snapshot(self._inlet.waits)
        except Stopped:
            self._await_rest(due)

    def _take_snapshot(self, stop: Callable[[], bool] | None = None) -> None:
        """Unless it is taken. Raises `Stopped`, with all as before, where `stop` says so."""
        due = self._due
        if due is not None:
            self._snapshot(due.request, due.parent, stop)
            self._due = None

    def _snapshot(
        self,
        request: dict[str, Any],
        parent: dict[str, Any],
        stop: Callable[[], bool] | None,
    ) -> None:
        """Find what is new, and have it put into the store while this kernel goes on.

        An interrupt meant for a cell must not cut it short.
        """

        def tell(content: dict[str, Any]) -> None:
            if body := content.get("body"):
                body["labels"] = labels
                if gang is not None:
                    body["gang"] = gang
                self._retaken = 0
            content["execution_id"] = request["execution_id"]
            self._publish("mlcloud_snapshot", content, parent)

        def again() -> bool:
            self._retaken += 1
            if self._retaken <= MOST_RETAKEN:
                loop.call_soon_threadsafe(self._retake, request, parent)
            return self._retaken <= MOST_RETAKEN

        loop = asyncio.get_running_loop()
        labels = dict(self.shell.compile.labels)
        gang = None if self.ranks is None else self.ranks.capture()
        previous = signal.getsignal(signal.SIGINT)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self._saving.wait()
            if request["op"] not in ("cell", "load") or self._is_busy():
                self.names.doubt()
            taking = self.snapshots.begin(
                partial(self._tell_of, parent), together(self._runs), stop
            )
            self._runs.clear()
            self._saving.start(taking, tell, again)
        except Exception as error:
            tell(failure(error))
        finally:
            signal.signal(signal.SIGINT, previous)

    def _retake(self, request: dict[str, Any], parent: dict[str, Any]) -> None:
        """What was to be saved was not, unless a cell that has run since saves it anyway."""
        if self._due is None:
            self._due = _Due(request, parent, must=True)
            self._await_rest(self._due)

    # --- notices ----------------------------------------------------------------------------------

    async def mlcloud_notice(self, stream: Any, ident: Any, parent: dict[str, Any]) -> None:
        """The node goes away at `deadline` (ISO, UTC), or may (`save`): `resumable` loops save at
        once. Neither: it does not."""
        save = bool(parent["content"].get("save"))
        deadline = parent["content"].get("deadline")
        self._pace.hurry = save or deadline is not None
        if save:
            self.notice.save()
        elif deadline is None:
            self.notice.clear()
        else:
            self.notice.set(datetime.fromisoformat(deadline))
        self.session.send(stream, "mlcloud_notice_reply", {"status": "ok"}, parent, ident=ident)

    # --- widgets ----------------------------------------------------------------------------------

    async def mlcloud_comm(self, stream: Any, ident: Any, parent: dict[str, Any]) -> None:
        """A page's message for a widget."""
        self.comms.deliver(parent)

    # --- Tab and ? --------------------------------------------------------------------------------

    async def mlcloud_ask(self, stream: Any, ident: Any, parent: dict[str, Any]) -> None:
        """A question about the names here, answered at once."""
        answer = await self.introspection.answer(parent["content"])
        self.session.send(stream, "mlcloud_ask_reply", answer, parent, ident=ident)

    # --- secrets ----------------------------------------------------------------------------------

    async def mlcloud_secrets(self, stream: Any, ident: Any, parent: dict[str, Any]) -> None:
        """More environment variables, whose values are in no pickle from now on."""
        values: dict[str, str] = parent["content"]["values"]
        held = Secrets({**self.names.classes.secrets.values, **values})
        self.names.classes.secrets = held
        os.environ.update(as_variables(held))
        self.session.send(stream, "mlcloud_secrets_reply", {"status": "ok"}, parent, ident=ident)

    # --- a gang -----------------------------------------------------------------------------------

    async def mlcloud_abort(self, stream: Any, ident: Any, parent: dict[str, Any]) -> None:
        """No signal reaches a cell that waits for other ranks: end that."""
        cut = parent["content"]["connections"]
        aborted = {"aborted": True} if self.ranks is not None and self.ranks.abort(cut) else {}
        self.session.send(stream, "mlcloud_abort_reply", aborted, parent, ident=ident)

    # --- the wire ---------------------------------------------------------------------------------

    def _publish(
        self,
        msg_type: str,
        content: dict[str, Any],
        parent: dict[str, Any],
        packed: dict[str, Any] | None = None,
    ) -> None:
        self.iopub_socket.send_multipart(self._frames(msg_type, content, parent, packed))

    def _frames(
        self,
        msg_type: str,
        content: dict[str, Any],
        parent: dict[str, Any],
        packed: dict[str, Any] | None = None,
    ) -> list[bytes]:
        """A message as the host reads it: no signature, and of the headers what it looks at."""
        return [
            *(msg_type.encode(), DELIMITER, b""),
            self.session.pack({"msg_type": msg_type}),
            self.session.pack({"msg_id": parent.get("header", {}).get("msg_id", "")}),
            b"{}",
            self.session.pack(content),
            *([] if packed is None else [self._packed_answer(packed)]),
        ]

    def _packed_answer(self, answer: dict[str, Any]) -> bytes:
        """What a cell returns, its texts without the secrets that no pickle in it has."""
        packed: bytes = msgpack.packb(answer)
        held = self.names.classes.secrets
        if held.held_by(packed) is not None:
            packed = msgpack.packb(held.masked(answer))
        return packed


def _brings_values(request: dict[str, Any]) -> bool:
    wire = (request["shipment"] or {}).get("wire", {})
    return any(wire.get(part) for part in ("groups", "imports", "deletes"))


def _run_of(request: dict[str, Any], code: str) -> CellRun:
    """What is to be remembered of a request that changes names."""
    return CellRun(
        step=request.get("step", 0),
        execution_id=request["execution_id"],
        code=code,
        transformed="",
        cell=request.get("cell"),
        shipment=request.get("shipment"),
    )
