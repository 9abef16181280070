"""The kernel that a front end sees: its requests answered by the session, the session's events
shown.

    shell     execute ─► cells      complete, inspect ─► asked beside      comm_… ─► widgets
    control   interrupt, shutdown
    stdin     input_reply ─► the question that the session asks
    events    by their execution ─► the cell of that request, or the page's message
"""

from __future__ import annotations

import os
import platform
import signal
from collections import OrderedDict, deque
from typing import Any, TypeVar

from mlcloud import __version__, errors
from mlcloud.client.channel import Channel, Event
from mlcloud.client.display import Display, Under
from mlcloud.client.feed import OVER
from mlcloud.client.following import Ladder
from mlcloud.client.frontend import Cell
from mlcloud.client.notebook import commands, introspection
from mlcloud.client.notebook.cells import Request, publisher
from mlcloud.client.notebook.options import Options, WhenShut, ending, identity
from mlcloud.client.notebook.remote import Remote
from mlcloud.client.notebook.sockets import Message, Sockets
from mlcloud.client.notebook.widgets import Widgets
from mlcloud.client.session import Session

T = TypeVar("T")

REMEMBERED = 10_000  # requests, for what comes after their end
TICK_S = 0.25


class NotebookKernel:
    """One notebook's kernel. `run` returns when it was shut down."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._sockets = Sockets(options.connection_file)
        self._in_page = bool(os.environ.get("JPY_SESSION_NAME"))
        self._provisioned = bool(os.environ.get("MLCLOUD_KERNEL_ID"))
        self._parent = os.getppid()
        who = identity(options, os.environ)
        self._remote = Remote(
            options,
            who,
            fresh=os.environ.pop("MLCLOUD_FRESH", "") == "1",
            post=self._sockets.post,
            receiver=self,
        )
        self._widgets = Widgets(self._sockets, self._comm)
        self._requests: deque[Request] = deque()  # the first one has its turn
        self._known: OrderedDict[str, Request] = OrderedDict()
        self._pages: OrderedDict[str, Message] = OrderedDict()  # a page's messages, handled
        self._asked: tuple[str, str] | None = None  # execution, request: the question that is open
        self._count = self._last_count = 0
        self._how: WhenShut | str = ending(options, who)

    def run(self) -> None:
        signal.signal(signal.SIGINT, lambda *_: self._sockets.post(self._interrupt))
        signal.signal(signal.SIGTERM, lambda *_: self._sockets.stop())
        self._sockets.publish("status", {"execution_state": "starting"}, {})
        self._remote.connect()
        self._sockets.run(self._handle, self._tick)
        self._remote.end(self._how)
        self._sockets.close()

    def _tick(self) -> float:
        """What is due now; how long nothing more is."""
        for request_id in self._widgets.overdue():
            self._handled(request_id)
        if os.getppid() != self._parent:  # whoever started us is gone: the session goes on
            self._how = "keep"
            self._sockets.stop()
        due = self._requests[0].display.due if self._requests else None
        if due == 0:
            self._requests[0].display.flush()
            due = None
        return TICK_S if due is None else min(due, TICK_S)

    # --- requests ---------------------------------------------------------------------------------

    def _handle(self, channel: str, idents: list[bytes], message: Message) -> None:
        kind = message["header"]["msg_type"]
        if kind == "input_reply":
            self._answer(message["content"]["value"])
        elif kind == "execute_request":
            self._execute(idents, message)
        elif kind in ("comm_open", "comm_msg", "comm_close"):
            self._widgets.outgoing(kind, message)
        elif kind in ("complete_request", "inspect_request", "history_request"):
            self._beside(channel, idents, message)
        else:
            self._at_once(channel, idents, message)

    def _at_once(self, channel: str, idents: list[bytes], message: Message) -> None:
        kind, content = message["header"]["msg_type"], message["content"]
        if kind == "kernel_info_request":
            answer = _info(self._remote.who.name)
        elif kind == "is_complete_request":
            answer = introspection.is_complete(content["code"])
        elif kind == "comm_info_request":
            answer = {"status": "ok", "comms": self._widgets.info(content.get("target_name"))}
        elif kind == "interrupt_request":
            self._interrupt()
            answer = {"status": "ok"}
        elif kind == "shutdown_request":
            answer = {"status": "ok", "restart": bool(content.get("restart"))}
        else:
            why = f"this kernel does not know {kind}"
            answer = {"status": "error", "ename": "NotImplemented", "evalue": why, "traceback": []}
        publish = self._sockets.publish
        publish("status", {"execution_state": "busy"}, message)
        reply = kind.replace("_request", "_reply")
        self._sockets.reply(channel, idents, reply, answer, message)
        publish("status", {"execution_state": "idle"}, message)
        if kind == "shutdown_request":
            publish(reply, answer, message)
            self._shut(restart=answer["restart"])

    def _shut(self, *, restart: bool) -> None:
        """With a provisioner, the kernel that follows begins anew; else there is only us."""
        if restart:
            self._how = "keep" if self._provisioned else "restart"
        self._sockets.stop()

    def _beside(self, channel: str, idents: list[bytes], message: Message) -> None:
        kind = message["header"]["msg_type"]
        publish = self._sockets.publish
        publish("status", {"execution_state": "busy"}, message)

        def answered(answer: Message) -> None:
            reply = kind.replace("_request", "_reply")
            self._sockets.reply(channel, idents, reply, answer, message)
            publish("status", {"execution_state": "idle"}, message)

        introspection.ask(self._remote, kind, message["content"], answered)

    # --- cells ------------------------------------------------------------------------------------

    def _execute(self, idents: list[bytes], message: Message) -> None:
        count = self._count + 1
        request = Request(self._sockets, idents, message, count, self._in_page)
        if not (request.stored and (request.needs_session or request.is_command)):
            request.cell = Cell(message, self._count)
        else:
            self._count = count
        before = self._requests[-1] if self._requests else None
        after = before.id if before is not None and before.stop_on_error else None
        self._requests.append(request)
        _remember(self._known, request.id, request)
        if request.needs_session:

            def sent() -> bool:
                request.sent = request.done is None
                return request.sent

            self._remote.execute(request.wire(self._remote.who.name, after), sent)
        elif not request.is_command:
            request.done = {"status": "ok"}
        if len(self._requests) == 1:
            self._begin()

    def _begin(self) -> None:
        """The first request has its turn; those that have ended already, their ends."""
        while self._requests:
            request = self._requests[0]
            if request.begun is None:
                request.begin(self._remote.who.name, self._options.target)
                if request.is_command and request.done is None and not request.dropped:
                    self._command(request)
            if request.dropped and request.done is None:
                request.done = {"status": "error"}
            if request.done is None:
                return
            self._requests.popleft()
            dropped = request.is_dropped(request.done)
            failed = request.finish(request.done, footers=self._options.footers)
            if not dropped and request.stored:
                self._last_count = request.cell.count or 0
            if failed:
                for each in self._requests:
                    each.dropped = each.dropped or not each.sent
            if dropped and not any(each.stored for each in self._requests):
                self._count = self._last_count

    def _command(self, request: Request) -> None:
        """Run `%mlcloud …` beside everything else; its cell waits for it."""

        def run() -> None:
            outputs, done = commands.run(request.code)
            for kind, content in outputs if not request.silent else ():
                self._sockets.publish(kind, content, request.message)
            self._sockets.post(lambda: self._end(request, done))

        self._remote.beside_gateway(run, lambda error: self._end(request, _failed(error)))

    def _end(self, request: Request, done: dict[str, Any]) -> None:
        if self._asked is not None and self._asked[0] == request.id:
            self._asked = None
        if request.done is None:
            request.done = done
            self._begin()

    def _interrupt(self) -> None:
        if not self._requests:
            return
        request = self._requests[0]
        if not request.sent:
            self._end(request, {"status": "error", "ename": "KeyboardInterrupt", "evalue": ""})
            return

        def step(session: Session, channel: Channel) -> None:
            if request.ladder is None:
                request.ladder = Ladder(channel, lambda: session.info, request.id, request.display)
            request.ladder.step()

        self._remote.with_channel(step)

    def _answer(self, value: str) -> None:
        asked, self._asked = self._asked, None
        if asked is not None:
            answer = None if value == "\x04" else value
            self._remote.with_channel(lambda _, channel: channel.answer(*asked, answer))

    def _comm(self, request_id: str, message: dict[str, Any]) -> bool:
        if self._remote.session is None:
            return False
        self._remote.with_channel(lambda _, channel: channel.comm(request_id, message))
        return True

    # --- events (on the main thread) --------------------------------------------------------------

    def on_event(self, event: Event) -> None:
        kind, body = event.kind, event.body
        request = self._known.get(event.execution_id)
        parent = self._parent_of(event.execution_id) if request is None else request.message
        if kind == "mlcloud_comm_done":
            self._handled(event.execution_id)
        elif parent is None:
            return  # another client's, or of the session itself
        elif kind.startswith("comm_"):
            self._widgets.receive(kind, body, parent)
        elif request is None:
            self._show_late(event, Cell(parent, None))
        elif request.done is not None:
            self._show_late(event, request.cell)
        elif kind == "done":
            self._remote.with_channel(lambda _, channel: channel.ended(request.id))
            self._end(request, body["content"])
        elif kind == "input_request":
            self._ask(request, body["content"])
        elif kind == "input_reply":
            self._asked = None
        elif kind not in OVER or kind == "status":
            request.display.show(kind, body)

    def _show_late(self, event: Event, cell: Cell) -> None:
        """Something of a cell that has ended, or of a widget's callback."""
        if event.kind in OVER:
            return
        content = event.body.get("content") or {}
        shown = str((content.get("transient") or {}).get("display_id", ""))
        if shown.startswith("mlcloud-footer-") and not self._options.footers:
            return
        Display(Under(cell, publisher(self._sockets)), late=True).show(event.kind, event.body)

    def _handled(self, request_id: str) -> None:
        """A page's message was handled, or takes long: what comes later is shown under it."""
        message = self._widgets.done(request_id)
        if message is not None:
            _remember(self._pages, request_id, message)

    def _parent_of(self, request_id: str) -> Message | None:
        return self._widgets.parent(request_id) or self._pages.get(request_id)

    def _ask(self, request: Request, content: dict[str, Any]) -> None:
        request.display.flush()
        self._asked = (request.id, content["request"])
        asked = {"prompt": content["prompt"], "password": content["password"]}
        self._sockets.reply("stdin", request.idents, "input_request", asked, request.message)

    def on_refused(self, request_id: str, error: errors.MLCloudError) -> None:
        request = self._known.get(request_id)
        if request is not None:
            self._end(request, _failed(error))

    def on_link(self, text: str) -> None:
        if self._requests:
            self._requests[0].display.status(text)

    def on_broken(self, error: errors.MLCloudError) -> None:
        self._remote.forget()
        for request in list(self._requests):
            self._end(request, _failed(error))


def _remember(known: OrderedDict[str, T], key: str, value: T) -> None:
    known[key] = value
    while len(known) > REMEMBERED:
        known.popitem(last=False)


def _failed(error: errors.MLCloudError) -> dict[str, Any]:
    return {"status": "error", "ename": type(error).__name__, "evalue": str(error)}


def _info(session: str) -> Message:
    version = platform.python_version()
    return {
        "status": "ok",
        "protocol_version": "5.3",
        "implementation": "mlcloud",
        "implementation_version": __version__,
        "language_info": {
            "name": "python",
            "version": version,
            "mimetype": "text/x-python",
            "codemirror_mode": {"name": "ipython", "version": 3},
            "pygments_lexer": "ipython3",
            "nbconvert_exporter": "python",
            "file_extension": ".py",
        },
        "banner": f"Python {version} on mlcloud {__version__}, session {session}: it takes a node "
        "with its first cell, and gives it back when it is idle",
        "debugger": False,
        "help_links": [],
        "supported_features": [],
    }


def serve(options: Options) -> None:
    """Until it is shut down."""
    NotebookKernel(options).run()
