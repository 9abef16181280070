"""`input()` and `getpass()` in a remote cell: asked in the notebook, answered once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from mlcloud.client.session import Session
from tests.live import Embedded, events, open_notebook, until
from tests.page import Page, open_page

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def page(cluster: Embedded) -> Iterator[Page]:
    with open_page(cluster) as page:
        page.ok("%%remote --session asking\nimport getpass")
        yield page
        page.ok("import mlcloud\nmlcloud.attach('asking').close()")


def test_prompts_are_the_cells_own(page: Page) -> None:
    page.asked.clear()
    cell = page.ok(
        "%%remote --session asking\n"
        "name = input('name? ')\nword = getpass.getpass('word? ')\nprint(name, len(word))",
        answers=["Ada Lovelace", "s3cret"],
    )
    assert page.asked == [
        {"prompt": "name? ", "password": False},
        {"prompt": "word? ", "password": True},
    ]
    assert cell.stream() == "Ada Lovelace 6\n"
    assert page.ok("name").result == "'Ada Lovelace'"


def test_what_was_typed_is_in_no_journal(page: Page, cluster: Embedded) -> None:
    page.ok(
        "%%remote --session asking\nimport getpass\n_ = getpass.getpass('key? ')",
        answers=["tr0ub4dor"],
    )
    assert "tr0ub4dor" not in str(events(cluster.connect().attach("asking")))


def test_the_session_waits_meanwhile(page: Page, cluster: Embedded) -> None:
    watch = cluster.connect().attach("asking")
    cell = page.start("%%remote --session asking\ninput('now? ')", answers=[])
    until(lambda: (page.read(), watch.state == "waiting")[1], "the session is waiting")
    page.until(lambda: page.asked, "the page is asked")
    page.client.input("yes")
    assert cell.end().result == "'yes'"
    assert watch.state == "idle"


def test_an_interrupt_ends_the_question(page: Page) -> None:
    cell = page.start("%%remote --session asking\nprint('ready')\ninput('never? ')", answers=[])
    before = len(page.asked)
    page.until(lambda: len(page.asked) > before, "the page is asked")
    page.interrupt()
    assert cell.end(20).error["ename"] == "KeyboardInterrupt"
    assert page.ok("%%remote --session asking\n1 + 1").result == "2"


def test_a_front_end_that_cannot_ask_is_told_as_locally(cluster: Embedded) -> None:
    with open_notebook(cluster) as notebook:
        local = notebook.run("input('?')")
        remote = notebook.run("%%remote --session asking\ninput('?')")
    assert remote.error["ename"] == local.error["ename"] == "StdinNotImplementedError"


def test_a_detached_cells_question_is_answered_by_whoever_attaches(
    page: Page, cluster: Embedded
) -> None:
    cell = page.start("%%remote --session asking --detach\nprint('got', input('who? '))")
    cell.until(lambda run: "waits for input: who?" in str(run.messages), "the cell says so")
    assert page.ok("%mlcloud attach asking", answers=["me"]).stream() == "got me\n"
    # Attached again, it is history: nobody is asked a second time.
    assert page.ok("%mlcloud attach asking", answers=["nobody"]).stream() == "got me\n"
    assert page.answers == ["nobody"]


def test_nobody_there_is_the_end_of_input(own_cluster: Callable[..., Embedded]) -> None:
    embedded = own_cluster(input_timeout="2s")
    s: Session = embedded.connect().session("alone", namespace={})
    with embedded.http() as http:
        code = "try: input('?')\nexcept EOFError: print('the end')"
        body = {"id": "asks-alone-1", "code": code, "allow_stdin": True}
        http.post("/v1/sessions/alone/executions", json=body).raise_for_status()
        path = "/v1/sessions/alone/executions/asks-alone-1"
        until(lambda: http.get(path).json()["state"] in ("finished", "safe"), "it ends", 90)
    found = events(s)
    printed = "".join(e["content"]["text"] for e in found if e["kind"] == "stream")
    assert "the end\n" in printed
    told = [e["content"]["text"] for e in found if e["kind"] == "story"]
    assert any("nobody was attached for 2 s" in text for text in told)
