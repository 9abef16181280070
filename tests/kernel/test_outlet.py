"""The way out of the kernel: whole messages, in their order, whatever interrupts."""

from __future__ import annotations

import queue
import random
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mlcloud.kernel import outlet


class IOThread:
    """ipykernel's IOPubThread, as far as `redirect` uses it."""

    def __init__(self) -> None:
        self.work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self.scheduled = 0
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while (do := self.work.get()) is not None:
            do()

    def schedule(self, do: Callable[[], None]) -> None:
        self.scheduled += 1
        self.work.put(do)

    def _is_master_process(self) -> bool:
        return True

    def _really_send(self, *_: Any) -> None:
        raise AssertionError("nothing goes by ZMQ")

    send_multipart: Any = None


class Kernel:
    """A redirected IO thread, what was marked, and a reader that reads when told."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.io = IOThread()
        self.marks: list[int] = []
        self.unread = False
        self.outlet = outlet.Outlet(self.io, self.ours, self.marks.append, lambda: self.unread)

    def publish(self, *frames: bytes) -> None:
        self.io.send_multipart(list(frames))

    def read(self, until: int) -> list[tuple[int, list[bytes]]]:
        """Messages up to number `until`."""
        found: list[tuple[int, list[bytes]]] = []
        with self.theirs.makefile("rb") as file:
            while not found or found[-1][0] < until:
                number, count = outlet.HEAD.unpack(file.read(outlet.HEAD.size))
                lengths = outlet.LENGTH.iter_unpack(file.read(outlet.LENGTH.size * count))
                found.append((number, [file.read(length) for (length,) in lengths]))
        return found


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    made = Kernel()
    yield made
    made.io.work.put(None)
    made.theirs.close()
    made.io.thread.join(10)
    made.ours.close()


def test_a_short_message_is_written_by_who_publishes_it(kernel: Kernel) -> None:
    kernel.publish(b"one", b"", b"two")
    kernel.publish(b"three")
    assert kernel.io.scheduled == 0
    assert kernel.read(2) == [(1, [b"one", b"", b"two"]), (2, [b"three"])]
    assert kernel.marks == [1, 2]


def test_nothing_overtakes_what_waits(kernel: Kernel) -> None:
    """Nobody reads: first the socket is full, then everything waits, short ones too."""
    for number in range(1, 400):
        kernel.publish(b"%d" % number, b"x" * (10_000 if number % 5 else 300_000))
    assert kernel.io.scheduled > 100
    found = kernel.read(399)
    assert [number for number, _ in found] == list(range(1, 400))
    assert all(frames[0] == b"%d" % number for number, frames in found)
    kernel.outlet.settle()
    before = kernel.io.scheduled
    kernel.publish(b"at once again")
    assert kernel.io.scheduled == before
    assert kernel.read(400) == [(400, [b"at once again"])]


def test_the_end_of_a_cell_is_marked_only_where_something_printed_is_unread(
    kernel: Kernel,
) -> None:
    kernel.publish(b"one")
    kernel.outlet.end([b"quiet"])
    kernel.unread = True
    kernel.outlet.end([b"printed"])
    assert kernel.read(2) == [(1, [b"one"]), (0, [b"quiet"]), (2, [b"printed"])]
    assert kernel.marks == [1, 2]
    # and it does not overtake what waits
    kernel.unread = False
    for number in range(3, 60):
        kernel.publish(b"%d" % number, b"x" * 20_000)
    kernel.outlet.end([b"end"])
    kernel.publish(b"60")
    found = kernel.read(60)
    assert [number for number, _ in found] == [*range(3, 60), 0, 60]


def test_many_threads(kernel: Kernel) -> None:
    def publish(name: int) -> None:
        for number in range(200):
            kernel.publish(b"%d %d" % (name, number), b"y" * (50 if number % 7 else 40_000))

    threads = [threading.Thread(target=publish, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    found = kernel.read(800)
    for thread in threads:
        thread.join()
    assert [number for number, _ in found] == list(range(1, 801)) == kernel.marks
    for name in range(4):
        mine = [f[0] for _, f in found if f[0].startswith(b"%d " % name)]
        assert mine == [b"%d %d" % (name, number) for number in range(200)]


def test_an_interrupt_at_any_moment_breaks_no_message(kernel: Kernel) -> None:
    """What was interrupted may be missing; all that comes is whole and in order."""
    found: list[tuple[int, list[bytes]]] = []
    reader = threading.Thread(target=lambda: found.extend(kernel.read(10**6)))
    reader.start()
    interrupted = published = 0
    body, times, armed = b"z" * 3000, random.Random(3), [False]

    def interrupt(*_: Any) -> None:
        armed[0] = False
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        for _ in range(400):
            armed[0] = True
            try:
                signal.setitimer(signal.ITIMER_REAL, times.uniform(0.0001, 0.003))
                while armed[0]:
                    kernel.publish(b"%d" % published, body)
                    published += 1
            except KeyboardInterrupt:
                interrupted += 1
    finally:
        signal.signal(signal.SIGALRM, previous)
    written = threading.Event()
    kernel.io.schedule(written.set)
    assert written.wait(60)
    kernel.ours.sendall(outlet.packed(10**6, [b"the end"]))
    reader.join(60)
    assert interrupted > 200, "some hit where Python swallows them"
    assert published > 400
    assert found[-1] == (10**6, [b"the end"])
    numbers = [number for number, _ in found]
    assert numbers == sorted(set(numbers))
    assert all(frames[1] == body for _, frames in found[:-1])
    assert len(found) - 1 >= published
