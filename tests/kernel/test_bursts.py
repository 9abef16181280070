"""Pieces of a line, printed fast: held until its end, and never lost, late or out of place."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mlcloud.client.session import Session
from tests.live import Running, printed

pytestmark = pytest.mark.cluster

BURST = "for i in range(50): print('line', i)\n"
LINES = "".join(f"line {i}\n" for i in range(50))


@pytest.fixture
def s(session: Callable[..., Session]) -> Session:
    made = session()
    made.run("import os, sys, threading, subprocess, time, multiprocessing", quiet=True)
    return made


def out(s: Session) -> str:
    return printed(s).removeprefix(LINES)


def test_an_unfinished_line_is_shown_while_the_cell_goes_on(s: Session) -> None:
    cell = Running(s, BURST + "print('a', 'b', end=''); time.sleep(60)", quiet=True)
    cell.printed("a b", timeout=10)
    s.interrupt()
    assert isinstance(cell.error(30), KeyboardInterrupt)


@pytest.mark.parametrize(
    "after",
    [
        "os.system('echo c')",
        "subprocess.run(['echo', 'c'])",
        "os.write(1, b'c\\n')",
        "sys.stdout.flush(); os.write(1, b'c\\n')",
        "pid = os.fork()\nif not pid: print('c', flush=True); os._exit(0)\nos.waitpid(pid, 0)",
    ],
)
def test_what_others_write_comes_after_it(s: Session, after: str) -> None:
    wait = "" if "flush" in after or "fork" in after else "time.sleep(0.1)\n"
    s.run(BURST + f"print('a', 'b', end=' ')\n{wait}{after}", quiet=True)
    assert out(s).replace("\n", " ").split() == ["a", "b", "c"]


def test_a_child_prints_each_piece_once(s: Session) -> None:
    code = (
        "def child(n): print('child', n, end='|'); sys.stdout.flush()\n"
        + BURST
        + "print('before', end='|')\n"
        "many = [multiprocessing.get_context('fork').Process(target=child, args=(n,))\n"
        "        for n in range(3)]\n"
        "for each in many: each.start()\n"
        "for each in many: each.join()\n"
        "print('after')"
    )
    s.run(code, quiet=True)
    text = out(s)
    assert text.startswith("before|")
    assert text.endswith("after\n")
    # Three processes write to one pipe: on a busy machine their pieces may lie between each other.
    rest = text.removeprefix("before|").removesuffix("after\n")
    assert sorted(rest) == sorted("child 0|child 1|child 2|")


def test_a_thread_of_an_earlier_cell_keeps_its_cell(s: Session) -> None:
    code = (
        "stop = threading.Event()\n"
        "def speak():\n"
        "    while not stop.is_set(): print('old', 'cell', sep='-', end='.')\n"
        "thread = threading.Thread(target=speak); thread.start()"
    )
    s.run(code, quiet=True)
    s.run("for i in range(3000): print('new', i)\nstop.set(); thread.join()", quiet=True)
    texts: dict[str, str] = {}
    from tests.live import events

    after = 0
    while found := events(s, after):
        for each in found:
            if each["kind"] == "stream":
                known = texts.get(each["execution_id"], "")
                texts[each["execution_id"]] = known + each["content"]["text"]
        after = found[-1]["seq"]
    old, new = (next(text for text in texts.values() if word in text) for word in ("old", "new"))
    assert set(old.split(".")) == {"old-cell", ""}
    assert new == "".join(f"new {i}\n" for i in range(3000))


def test_what_is_no_text_is_refused_where_it_is_written(s: Session) -> None:
    for wrong in ("b'x'", "5", "None"):
        with pytest.raises(TypeError, match="must be str"):
            s.run(BURST + f"sys.stdout.write({wrong})", quiet=True)


def test_what_an_interrupt_left_of_a_line_is_not_the_next_cells(s: Session) -> None:
    cell = Running(s, "while True: print('tick', 'tock', sep='-')", quiet=True)
    cell.printed("tick-tock", timeout=20)
    s.interrupt()
    assert isinstance(cell.error(60), KeyboardInterrupt)
    before = s.info.last_event
    s.run("print('the', 'end')", quiet=True)
    assert printed(s, before) == "the end\n"
