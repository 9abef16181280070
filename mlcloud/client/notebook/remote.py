"""The session of a notebook's kernel: found or made by its first cell, asked in threads.

What must keep its order (cells, interrupts, answers, a page's messages) goes through one thread,
which may wait for a gateway that starts; questions of Tab have others. What the session tells is
posted to the main thread.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from mlcloud import errors
from mlcloud.client.channel import Channel, Event, Listener
from mlcloud.client.notebook.options import Identity, Options, WhenShut
from mlcloud.client.session import Session

if TYPE_CHECKING:
    from mlcloud.client.api import Client

log = logging.getLogger(__name__)

ASK_S = 1.0
END_S = 25.0


class Receiver(Protocol):
    """Who is told. Called on the main thread."""

    def on_event(self, event: Event) -> None: ...

    def on_refused(self, request_id: str, error: errors.MLCloudError) -> None: ...

    def on_link(self, text: str) -> None: ...

    def on_broken(self, error: errors.MLCloudError) -> None: ...


class Remote(Listener):
    """See the module. `fresh`: the session's namespace is not wanted any more."""

    def __init__(
        self,
        options: Options,
        who: Identity,
        *,
        fresh: bool,
        post: Callable[[Callable[[], None]], None],
        receiver: Receiver,
    ) -> None:
        self._options = options
        self.who = who
        self._fresh = fresh
        self.post = post
        self._receiver = receiver
        self._client: Client | None = None
        self._connecting = threading.Lock()
        self._session: Session | None = None
        self._channel: Channel | None = None
        self._in_order = ThreadPoolExecutor(1, thread_name_prefix="mlcloud-cells")
        self._asking = ThreadPoolExecutor(2, thread_name_prefix="mlcloud-asking")

    # --- the session ------------------------------------------------------------------------------

    @property
    def session(self) -> Session | None:
        """None until the first cell asked for it."""
        return self._session

    def _ready(self) -> tuple[Session, Channel]:
        if self._session is not None and self._channel is not None:
            return self._session, self._channel
        client = self._connected()
        session = client.session(self.who.name, namespace={}, **self._options.wanted())
        client.own(session)
        if self._fresh:
            session.restart()
            self._fresh = False
        after = session.info.last_event
        channel = Channel(session.connection, session.name, after=after, listener=self)
        channel.open()
        self._session, self._channel = session, channel
        return session, channel

    def _connected(self) -> Client:
        """The gateway; an embedded one that is not there is started."""
        from mlcloud.client.api import connect

        with self._connecting:
            if self._client is None:
                self._client = connect(self._options.target)
            return self._client

    def connect(self) -> None:
        """Find a session that this notebook has already: its widgets and late output come. One that
        there is none of is made by its first cell."""

        def look() -> None:
            from mlcloud.client import embedded
            from mlcloud.config import Settings

            settings = Settings()
            here = self._options.target is None and settings.url is None
            if self._fresh or (here and embedded.running(settings) is None):
                return
            with suppress(errors.MLCloudError):
                self._connected().attach(self.who.name)
                self._ready()

        self._do(look)

    def forget(self) -> None:
        """The session is closed, or not to be had here: the next cell asks for it anew."""
        channel, self._channel, self._session = self._channel, None, None
        if channel is not None:
            threading.Thread(target=channel.close, daemon=True).start()

    # --- in order ---------------------------------------------------------------------------------

    def execute(self, message: dict[str, Any], sent: Callable[[], bool]) -> None:
        """Send an execution, unless `sent()` says that it is not wanted any more."""

        def run() -> None:
            try:
                session, channel = self._ready()
                session.secrets.refuse_in(message["code"])
                if sent():
                    channel.execute(message)
            except errors.MLCloudError as error:
                self.on_refused(message["id"], error)
            except Exception as error:  # ours: the cell must not wait for ever
                log.exception("mlcloud: a cell could not be sent")
                self.on_refused(message["id"], errors.MLCloudError(f"it was not sent: {error!r}"))

        self._in_order.submit(run)

    def with_channel(self, what: Callable[[Session, Channel], None]) -> None:
        """Do this once what was sent before has left; nothing where there is no session."""

        def run() -> None:
            if self._session is not None and self._channel is not None:
                what(self._session, self._channel)

        self._do(run)

    def _do(self, what: Callable[[], None]) -> None:
        def run() -> None:
            try:
                what()
            except Exception:  # what it was for waits for nothing
                log.exception("mlcloud: a request could not be sent")

        self._in_order.submit(run)

    # --- beside -----------------------------------------------------------------------------------

    def ask(self, question: dict[str, Any], answered: Callable[[dict[str, Any]], None]) -> None:
        """What Tab and `?` want to know; empty where no kernel is there to be asked."""

        def run() -> None:
            answer: dict[str, Any] = {}
            session = self._session
            if session is not None:
                with suppress(Exception):  # a Tab is no error
                    answer = session.ask(question, ASK_S)
            self.post(lambda: answered(answer))

        self._asking.submit(run)

    def beside_gateway(
        self, what: Callable[[], None], failed: Callable[[errors.MLCloudError], None]
    ) -> None:
        """Do this in a thread, once the gateway is connected; `failed` is told on the main one."""

        def run() -> None:
            try:
                self._connected()
                what()
            except Exception as error:  # its cell must not wait for ever
                if not isinstance(error, errors.MLCloudError):
                    log.exception("mlcloud: a command failed")
                ours = error if isinstance(error, errors.MLCloudError) else None
                told = ours or errors.MLCloudError(f"the command failed: {error!r}")
                self.post(lambda: failed(told))

        self._asking.submit(run)

    def beside(self, what: Callable[[], None]) -> None:
        self._asking.submit(what)

    # --- what the channel tells -------------------------------------------------------------------

    def on_event(self, event: Event) -> None:
        self.post(lambda: self._receiver.on_event(event))

    def on_refused(self, request_id: str, error: errors.MLCloudError) -> None:
        if isinstance(error, (errors.SessionClosed, errors.NotFound)):
            self.forget()
        self.post(lambda: self._receiver.on_refused(request_id, error))

    def on_link(self, text: str) -> None:
        self.post(lambda: self._receiver.on_link(text))

    def on_secrets(self, sources: dict[str, str]) -> None:
        if self._session is not None:
            self._session.secrets.asked(sources)

    def on_broken(self, error: errors.MLCloudError) -> None:
        self.post(lambda: self._receiver.on_broken(error))

    # --- the end ----------------------------------------------------------------------------------

    def end(self, how: WhenShut | str) -> None:
        """`park` and `close` it, `restart` it, or leave it: what runs goes on then, and idle it
        parks itself. The gateway does it also when nobody waits for the answer."""
        session = self._session
        if session is not None and how != "keep":
            with suppress(Exception):  # there is nobody to be told
                self._end(session, how)
        if self._channel is not None:
            self._channel.close()

    def _end(self, session: Session, how: str) -> None:
        info = session.info
        if how == "close" or not (info.node or info.running or info.last_event):
            session.close()
            return
        path = f"/v1/sessions/{session.name}"
        if how == "restart":
            session.connection.post(f"{path}/restart", timeout=END_S)
        else:
            params = {"stop": True, "force": True}
            session.connection.post(f"{path}/park", params=params, timeout=END_S)
