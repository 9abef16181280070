"""A cell that runs in the background: the handle that `%%remote --detach` returns.

Its output goes on appearing under the cell that started it, and ends with its footer. What it
returns is bound in the notebook by the next cell that runs here, or by `result()`: never in the
middle of one. Closing the notebook does not stop it; `%mlcloud attach` finds it again.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from mlcloud import errors
from mlcloud.client import frontend
from mlcloud.client.channel import Event
from mlcloud.client.display import STYLE, Display, Here, Under
from mlcloud.client.following import unpacked
from mlcloud.models import ExecutionInfo
from mlcloud.widgets.tables import escaped

if TYPE_CHECKING:
    from mlcloud.client.session import Session


class Execution:
    """One run of a cell, going on in the background."""

    holds_the_cell = False

    def __init__(self, session: Session, execution_id: str, *, quiet: bool = False) -> None:
        self._session = session
        self.id = execution_id
        self.cell = frontend.cell()
        self._quiet = quiet
        self._sink = Here(result_hook=False) if self.cell is None else Under(self.cell)
        self._display = Display(self._sink)
        self._answer: dict[str, Any] = {}
        self._done: dict[str, Any] | None = None
        self._ended = threading.Event()
        self._failure: errors.MLCloudError | None = None
        self._line = f"mlcloud-{uuid4().hex[:12]}"
        self._shown = False
        self._since = time.monotonic()

    # --- what the user asks -----------------------------------------------------------------------

    @property
    def info(self) -> ExecutionInfo:
        """What the gateway knows of it, as of now."""
        return self._session.execution_info(self.id)

    @property
    def state(self) -> str:
        """One of queued, running, finished, safe, failed."""
        return self.info.state.value

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self._ended.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for its end, at most `timeout` seconds; whether it has ended."""
        return self._ended.wait(timeout)

    def result(self, timeout: float | None = None) -> None:
        """Wait for its end and bind what it returned here. Raises what the cell raised, and
        TimeoutError where it has not ended after `timeout` seconds."""
        if not self._ended.wait(timeout):
            raise TimeoutError(f"{self.id} has not ended after {timeout:g} s; it goes on")
        self._session.apply_returns()
        if self._failure is not None:
            raise self._failure
        assert self._done is not None
        if self._done["status"] != "ok":
            raise self._session.error_of(self._done, self._answer, self._display)

    def interrupt(self) -> None:
        """Interrupt it, or take it out of the queue."""
        self._session.feed.channel.interrupt(self.id)

    def attach(self) -> None:
        """Follow it in this cell, from its first output on, until it ends."""
        self._session.follow(self.id)

    def __repr__(self) -> str:
        return self._text()

    def _ipython_display_(self) -> None:
        Here().display(*self._bundle(), {"display_id": self._line})
        self._shown = True

    def _text(self) -> str:
        name = self._session.name
        if self._failure is not None:
            return f"✕ {self.id} in session {name}: {self._failure}"
        if self._done is None:
            return (
                f"▷ runs in the background of session {name} as {self.id}; closing the notebook "
                f"does not stop it, `%mlcloud attach {name}` shows it again"
            )
        took = time.monotonic() - self._since
        if self._done["status"] == "ok":
            return f"✓ {self.id} in session {name} has finished after {took:.1f} s"
        return f"✕ {self.id} in session {name} has failed: {self._done.get('ename')}"

    def _bundle(self) -> tuple[dict[str, Any], dict[str, Any]]:
        text = self._text()
        data = {
            "text/plain": text,
            "text/html": f'<div style="{STYLE}">{escaped(text)}</div>',
        }
        return data, {"mlcloud": {"line": text, "execution": self.id}}

    # --- what the channel's thread puts in --------------------------------------------------------

    def put(self, event: Event) -> None:
        content = event.body["content"]
        if event.kind == "mlcloud_return":
            self._answer = unpacked(event)
        elif event.kind == "done":
            self._finish(content)
        elif event.kind == "input_request":
            self._display.status(
                f"waits for input: {content['prompt']} · `%mlcloud attach {self._session.name}` "
                "in another cell to answer"
            )
        else:
            self._session.feed.show(event, self._display, self.cell)

    def refused(self, error: errors.MLCloudError) -> None:
        self._failure = error
        self._end()

    def link(self, text: str) -> None:
        self._display.status(text)

    def left(self) -> tuple[Event, ...]:
        return ()

    def _finish(self, done: dict[str, Any]) -> None:
        self._done = done
        self._session.feed.ended(self.id)
        if done["status"] != "ok" and self._display.error is None:
            self._sink.error(done)  # not of the cell: its kernel died, the session was closed
        if not self._quiet and done.get("footer") and done.get("runs"):
            self._session.feed.footer(self._display, done["footer"])
        self._session.keep_return(self._answer, self._display)
        self._end()

    def _end(self) -> None:
        if self._shown and self.cell is not None:
            self._sink.display(*self._bundle(), {"display_id": self._line}, update=True)
        self._ended.set()
        self._session.feed.unfollow(self.id, self)
