"""Tab and `?` for names that live in a session, as a front end asks for them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.live import Embedded
from tests.page import Page, open_page

pytestmark = pytest.mark.cluster

SOON_S = 3.0  # Tab waits one second for a session at most; the rest is a busy machine


@pytest.fixture(scope="module")
def page(cluster: Embedded) -> Iterator[Page]:
    with open_page(cluster) as page:
        page.ok(
            "%%remote --session tab\nimport threading\nlock = threading.Lock()\n"
            "class Net:\n    depth = 3\n    def forward(self, x):\n        'Runs the layers.'\n"
            "    def __init__(self): self.lock = threading.Lock()\n"
            "net = Net()\ntable = {'first key': 1, 'second key': 2, 'lock': lock}"
        )
        yield page
        page.ok("import mlcloud\nmlcloud.attach('tab').close()")


def complete(page: Page, code: str) -> list[str]:
    """The texts of Tab at the end of `code`, each as the whole it would leave there."""
    run = page.request("complete_request", {"code": code, "cursor_pos": len(code)})
    page.until(lambda: run.msg_id in page.replies, "Tab is answered", 20)
    content = page.replies[run.msg_id]["content"]
    head = code[: content["cursor_start"]].rpartition("\n")[2]
    return [f"{head}{match}" for match in content["matches"]]


def inspect(page: Page, code: str) -> str:
    """The text of Shift-Tab at the end of `code`."""
    content = {"code": code, "cursor_pos": len(code), "detail_level": 0}
    run = page.request("inspect_request", content)
    page.until(lambda: run.msg_id in page.replies, "Shift-Tab is answered", 20)
    answer: dict[str, Any] = page.replies[run.msg_id]["content"]
    return str(answer["data"].get("text/plain", ""))


REMOTE = "%%remote --session tab\n"


def test_names_and_attributes_of_a_remote_cell(page: Page) -> None:
    assert "net" in complete(page, f"{REMOTE}ne")
    found = complete(page, f"{REMOTE}net.")
    assert {"net.depth", "net.forward"} <= set(found)
    assert not [each for each in found if each.endswith(".get")], "attributes of the handle"
    assert complete(page, f"{REMOTE}x = 1\nprint(net.for") == ["print(net.forward"]


def test_keys_of_a_remote_value(page: Page) -> None:
    assert any("second key" in each for each in complete(page, f"{REMOTE}table['sec"))
    assert any("second key" in each for each in complete(page, "table['sec"))


def test_local_names_are_completed_too(page: Page) -> None:
    page.ok("only_here = 1")
    assert "only_here" in complete(page, f"{REMOTE}only_h")
    assert "only_here" in complete(page, "only_h")


def test_the_line_of_the_magic(page: Page) -> None:
    found = complete(page, "%%remote --")
    assert {"%%remote --session", "%%remote --detach", "%%remote --gpu"} <= set(found)
    assert "%%remote --session tab" in complete(page, "%%remote --session t")
    assert "%mlcloud attach" in complete(page, "%mlcloud att")
    assert "%mlcloud attach tab" in complete(page, "%mlcloud attach t")


def test_inspection_of_a_remote_name(page: Page) -> None:
    shown = inspect(page, f"{REMOTE}net.forward")
    assert "Runs the layers." in shown
    assert "Session:        tab" in shown
    assert "Runs the layers." in inspect(page, "net.forward")


def test_a_question_mark(page: Page) -> None:
    cell = page.start("net?")
    cell.end()
    reply = page.replies[cell.msg_id]["content"]
    (shown,) = reply["payload"]
    assert "Session:        tab" in shown["data"]["text/plain"]
    local = page.start("len?")
    local.end()
    (shown,) = page.replies[local.msg_id]["content"]["payload"]
    assert "Session:" not in shown["data"]["text/plain"]


@contextmanager
def another_while(page: Page, cluster: Embedded, call: str) -> Iterator[Page]:
    """Another notebook of the session, while a cell of this one is in `call`."""
    with open_page(cluster) as other:
        other.ok(f"{REMOTE}net\nimport ctypes, time")
        cell = page.start(f"{REMOTE}print('runs')\n{call}")
        cell.printed("runs")
        yield other
        assert not cell.ended
        cell.end(60)


def seconds_of(page: Page, code: str) -> float:
    began = time.monotonic()
    complete(page, code)
    return time.monotonic() - began


def test_another_notebook_asks_while_a_cell_runs(page: Page, cluster: Embedded) -> None:
    with another_while(page, cluster, "time.sleep(6)") as other:
        assert seconds_of(other, f"{REMOTE}net.") < SOON_S
        assert "net.depth" in complete(other, f"{REMOTE}net.")


def test_a_kernel_that_cannot_answer_is_waited_for_a_second(page: Page, cluster: Embedded) -> None:
    with another_while(page, cluster, "ctypes.PyDLL(None).sleep(6)") as other:
        assert seconds_of(other, f"{REMOTE}net.") < SOON_S
        assert seconds_of(other, f"{REMOTE}net.") < 1.0  # not asked again for a while


def test_a_parked_session_is_not_woken(page: Page) -> None:
    page.ok("%%remote --session asleep --durable\nimport numpy\nsleeper = numpy.zeros(1_000_000)")
    page.ok("import mlcloud\ns = mlcloud.attach('asleep')\ns.park()")
    assert page.ok("s.state").result == "'parked'"
    complete(page, "%%remote --session asleep\nsleeper.")
    inspect(page, "sleeper")
    time.sleep(1)
    assert page.ok("s.state").result == "'parked'"
    page.ok("s.close()")


def test_nothing_is_started_for_a_tab(own_cluster: Any) -> None:
    embedded = own_cluster()
    with open_page(embedded) as page:
        assert "print" in complete(page, "%%remote\nprin")
        complete(page, "%%remote\nnothing.")
        inspect(page, "%%remote\nnothing")
        complete(page, "%mlcloud attach ")
        assert not embedded.running()


def test_a_dir_that_fails_is_no_error(page: Page) -> None:
    page.ok(
        f"{REMOTE}class Odd:\n    def __dir__(self): raise ValueError('no')\n"
        "    def __init__(self): self.lock = threading.Lock()\nodd = Odd()"
    )
    complete(page, f"{REMOTE}odd.")
    assert "net" in complete(page, f"{REMOTE}ne")


def test_without_the_extension_it_is_as_before(page: Page) -> None:
    page.ok("%unload_ext mlcloud")
    try:
        assert not complete(page, "table['sec")
        assert "Session:" not in inspect(page, "net")
    finally:
        page.ok("%load_ext mlcloud")
    assert any("second key" in each for each in complete(page, "table['sec"))
