"""Waiting for an execution in the cell that runs now: its events shown, its questions asked, the
interrupts counted.

    channel's thread ── put ──► queue ──► Following.until_done, on the main thread
    SIGINT ───────────── put ──►

An interrupt is an item of the queue, between two events: no event is lost or shown twice because a
KeyboardInterrupt came in the middle of it. Only while the user is asked something does it raise.
"""

from __future__ import annotations

import contextlib
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import msgpack

from mlcloud import errors
from mlcloud.client import frontend
from mlcloud.client.channel import Channel, Event
from mlcloud.client.display import Display

if TYPE_CHECKING:
    from mlcloud.client.session import Session
    from mlcloud.models import SessionInfo

INTERRUPT = object()
KILL_AFTER_S = 5.0
POLL_S = 0.02


class Following:
    """One execution, followed by the cell that runs now. Use it as a context around sending."""

    holds_the_cell = True

    def __init__(self, session: Session, execution_id: str, display: Display) -> None:
        self._session = session
        self.execution_id = execution_id
        self._display = display
        display.paced = frontend.in_page()
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._ladder = Ladder(session.feed.channel, lambda: session.info, execution_id, display)
        self._previous: Any = None
        self._main = threading.current_thread() is threading.main_thread()
        self.cell = frontend.cell()

    def __enter__(self) -> Following:
        if self._main:
            self._previous = signal.signal(signal.SIGINT, self._interrupted)
        self._session.feed.follow_with(self.execution_id, self, self.cell)
        return self

    def __exit__(self, *_: object) -> None:
        self._display.flush()
        self._session.feed.unfollow(self.execution_id, self)
        if self._main:
            signal.signal(signal.SIGINT, self._previous)

    def _interrupted(self, *_: object) -> None:
        self._queue.put(INTERRUPT)

    # --- what the channel's thread puts in --------------------------------------------------------

    def put(self, event: Event) -> None:
        self._queue.put(event)

    def refused(self, error: errors.MLCloudError) -> None:
        self._queue.put(error)

    def link(self, text: str) -> None:
        self._queue.put(text)

    def left(self) -> Iterator[Event]:
        """What came after the end, and was not looked at."""
        with contextlib.suppress(queue.Empty):
            while True:
                item = self._queue.get_nowait()
                if isinstance(item, Event):
                    yield item

    # --- on the main thread -----------------------------------------------------------------------

    def until_done(
        self, *, durable: bool = False, replay: Iterator[Event] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The `done` event's content, and what the kernel returned.

        `replay` are the events that came before this started to listen. Raises what the gateway
        answered to a request it refused.
        """
        answer: dict[str, Any] = {}
        done: dict[str, Any] | None = None
        questions: dict[str, Event] = {}
        for event, old in self._events(replay):
            if event.kind != "stream":
                self._display.flush()
            if event.kind == "mlcloud_return":
                answer = unpacked(event)
            elif event.kind == "done":
                self._session.feed.ended(self.execution_id)
                done = event.body["content"]
                if not durable or done["status"] != "ok":
                    return done, answer
            elif event.kind == "safe" and done is not None:
                return done, answer
            elif event.kind == "input_request":
                questions[event.body["content"]["request"]] = event
            elif event.kind == "input_reply":
                questions.pop(event.body["content"]["request"], None)
            else:
                self._session.feed.show(event, self._display, self.cell)
                unsafe = event.kind == "story" and event.body["content"]["what"] == "unsafe"
                if unsafe and done is not None:
                    raise errors.StoreError(event.body["content"]["text"])
            if not old:
                while questions:
                    self._ask(questions.pop(next(iter(questions))))
        raise AssertionError("a session's events do not end")

    def _events(self, replay: Iterator[Event] | None) -> Iterator[tuple[Event, bool]]:
        """Events of this execution, in order, and whether they were there before."""
        last: Event | None = None
        for event in replay or ():
            if last is not None:
                yield last, True
            last = event
        if last is not None:
            yield last, False  # the last of them: whatever is open now is to be answered
        while True:
            item = self._next()
            if item is INTERRUPT:
                self._ladder.step()
            elif isinstance(item, errors.MLCloudError):
                raise item
            elif isinstance(item, str):
                self._display.status(item)
            elif isinstance(item, Event):
                yield item, False

    def _next(self) -> Any:
        router = self._session.feed.router
        due = self._display.due
        if router is None or not router.polls():
            # Not for ever: the first widget of this cell may bring a router that must poll.
            timeout = due if due is not None else None if router is not None else 1.0
            try:
                return self._queue.get(timeout=timeout)
            except queue.Empty:
                if due is not None:
                    self._display.flush()
                return None
        while True:
            try:
                return self._queue.get(timeout=POLL_S)
            except queue.Empty:
                if self._display.due == 0:
                    self._display.flush()
                router.poll()

    def _ask(self, event: Event) -> None:
        """`input()` and `getpass()` of the remote cell, asked here."""
        content = event.body["content"]
        with self._interruptible():
            try:
                value: str | None = _ask(content["prompt"], content["password"])
            except (EOFError, errors.UsageError):
                value = None
            except KeyboardInterrupt:
                self._queue.put(INTERRUPT)
                return
        self._session.feed.answer(self.execution_id, content["request"], value)

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        if not self._main:
            yield
            return
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, self._interrupted)


def _ask(prompt: str, password: bool) -> str:
    from IPython.core.error import StdinNotImplementedError

    try:
        if password:
            import getpass

            return getpass.getpass(prompt)
        return input(prompt)
    except StdinNotImplementedError as error:
        raise errors.UsageError(str(error)) from None


class Ladder:
    """What each interrupt of a waiting cell does, one step after the other.

    The first sends SIGINT (the host repeats it for 5 s). One that comes when that has not helped
    says what would be lost; the one after it ends the kernel, which comes back with the state
    before this cell. Releasing the node is never an interrupt's work.
    """

    def __init__(
        self,
        channel: Channel,
        info: Callable[[], SessionInfo],
        execution_id: str,
        display: Display,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._channel = channel
        self._info = info
        self._execution_id = execution_id
        self._display = display
        self._clock = clock
        self._first: float | None = None
        self._warned = False

    def step(self) -> None:
        now = self._clock()
        if self._first is None or now - self._first < KILL_AFTER_S:
            self._first = self._first or now
            self._channel.interrupt(self._execution_id)
        elif not self._warned:
            self._warned = True
            self._display.status(
                "the cell does not yield to the interrupt. Interrupt once more to end its kernel: "
                f"{self._loss()}"
            )
        else:
            self._display.status("ending the kernel; the state before this cell comes back")
            self._channel.kill(self._execution_id)

    def _loss(self) -> str:
        """What ending the kernel would cost, as the gateway knows it."""
        info = self._info()
        unsafe = info.finished_cells - info.safe_cells
        again = ""
        if unsafe > 0:
            cells = "the last cell" if unsafe == 1 else f"the last {unsafe} cells"
            again = f" ({cells} before it are not in the store yet, and will run again)"
        return f"what this cell did is lost, the state before it comes back{again}"


def unpacked(event: Event) -> dict[str, Any]:
    """What a `mlcloud_return` holds."""
    buffers = event.body.get("buffers") or []
    if not buffers:
        return {}
    answer: dict[str, Any] = msgpack.unpackb(buffers[0], strict_map_key=False)
    return answer
