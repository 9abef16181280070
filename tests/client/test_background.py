"""Cells that go on in the background, and what comes back after the notebook was away."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

import mlcloud
from mlcloud.client.api import Client
from mlcloud.client.connection import Connection, fixed
from mlcloud.client.session import Session
from mlcloud.errors import NotFound
from tests.live import Embedded, Running, printed, until
from tests.page import Page, open_page
from tests.tunnel import Tunnel

pytestmark = pytest.mark.cluster

COUNT = "import time\nfor i in range({n}):\n    print('tick', i, flush=True)\n    time.sleep({s})\n"


def ticks(n: int) -> str:
    return "".join(f"tick {i}\n" for i in range(n))


@pytest.fixture(scope="module")
def page(cluster: Embedded) -> Iterator[Page]:
    with open_page(cluster) as page:
        page.ok("%%remote --session background\nimport time, threading")
        yield page
        page.ok("import mlcloud\nmlcloud.attach('background').close()")


# --- a detached cell ------------------------------------------------------------------------------


def test_it_returns_at_once_and_its_output_goes_on_under_its_cell(page: Page) -> None:
    cell = page.start(
        "%%remote --session background --detach\n"
        + COUNT.format(n=5, s=0.2)
        + "answer = 41\nanswer"
    )
    handle = cell.end()
    assert "tick 4" not in handle.stream()
    assert "runs in the background" in handle.shown_texts[0]
    other = page.ok("print('meanwhile')")
    assert other.stream() == "meanwhile\n"
    cell.printed("tick 4")
    done = cell.until(lambda run: run.of("update_display_data"), "its line says that it is over")
    assert "has finished" in done[-1]["content"]["data"]["text/plain"]
    assert cell.outputs.stream() == ticks(5)
    assert cell.outputs.result == "41"
    assert cell.outputs.footer is not None
    # Bound between two cells, never in the middle of one.
    assert page.ok("answer + 1").result == "42"


def test_the_handle_waits_and_raises_what_the_cell_raised(page: Page) -> None:
    page.ok("%%remote --session background --detach\nfound = {}\nfound['missing']")
    cell = page.run("handle = _\nhandle.result(60)")
    assert cell.error["ename"] == "KeyError"
    assert page.ok("print(handle.done, handle.state)").stream() == "True failed\n"
    failed = page.start("%%remote --session background --detach\n1 / 0")
    failed.until(lambda run: run.of("error"), "the error appears under the detached cell")


def test_it_can_be_interrupted(page: Page) -> None:
    page.ok("%%remote --session background --detach\nprint('on')\ntime.sleep(60)")
    cell = page.run(
        "import time\nhandle = _\n"
        "while handle.state != 'running': time.sleep(0.05)\n"
        "time.sleep(0.5)\nhandle.interrupt()\nhandle.result(20)"
    )
    assert cell.error["ename"] == "KeyboardInterrupt"


def test_a_cell_sent_meanwhile_waits_its_turn(
    page: Page,
) -> None:
    page.ok("%%remote --session background --detach\ntime.sleep(1)\nturn = ['first']")
    page.ok("%%remote --session background\nturn.append('second')")
    assert page.ok("turn").result == "['first', 'second']"


def test_detach_and_durable_exclude_each_other(page: Page) -> None:
    cell = page.run("%%remote --session background --detach --durable\n1")
    assert cell.error["ename"] == "UsageError"
    assert "choose one" in cell.error["evalue"]


# --- attaching ------------------------------------------------------------------------------------


def test_a_new_kernel_gets_all_output_once_and_goes_on_live(cluster: Embedded, page: Page) -> None:
    with open_page(cluster) as first:
        cell = first.start(
            "%%remote --session left --detach\n"
            "from IPython.display import HTML, display\n"
            "from tqdm import tqdm\n"
            "import matplotlib.pyplot as plt, time\n"
            "plt.plot([1, 2]); plt.show()\n"
            "bar = display(HTML('<b>0</b>'), display_id=True)\n"
            "for i in tqdm(range(40)):\n"
            "    bar.update(HTML(f'<b>{i}</b>'))\n"
            "    print('tick', i, flush=True); time.sleep(0.1)\n"
            "kept = {'i': i}\n"
        )
        cell.printed("tick 5\n", timeout=120)
    # That kernel is gone; the cell is not.
    attached = page.start("%mlcloud attach left")
    attached.printed("tick 8\n")
    assert not attached.ended
    outputs = attached.end()
    assert outputs.stream() == ticks(40)
    assert any("image/png" in data for data in outputs.shown)
    updates = [m["content"]["data"]["text/html"] for m in attached.of("update_display_data")]
    assert [u for u in updates if u.startswith("<b>")] == [f"<b>{i}</b>" for i in range(40)]
    assert "40/40" in outputs.stream("stderr")
    assert outputs.footer is not None
    assert page.ok("kept").result == "{'i': 39}"
    # Once more, when it has ended: the same.
    again = page.ok("%mlcloud attach left")
    assert again.stream() == outputs.stream()
    page.ok("import mlcloud\nmlcloud.attach('left').close()")


def test_attaching_to_what_is_not_there_says_so(page: Page) -> None:
    cell = page.run("%mlcloud attach nothing-of-that-name")
    assert cell.error["ename"] == "NotFound"
    page.ok("import mlcloud; mlcloud.session('empty')")
    cell = page.run("%mlcloud attach empty")
    assert cell.error["ename"] == "NotFound"
    assert "has run no cell" in cell.error["evalue"]
    page.ok("mlcloud.attach('empty').close()")


# --- late output ----------------------------------------------------------------------------------


def test_a_threads_print_lands_in_the_cell_that_started_it(page: Page) -> None:
    cell = page.start(
        "%%remote --session background\n"
        "from IPython.display import display, HTML\n"
        "def later():\n"
        "    time.sleep(1)\n"
        "    print('late', flush=True); display(HTML('<i>late</i>'))\n"
        "thread = threading.Thread(target=later)\n"
        "thread.start()\nprint('started')"
    )
    assert cell.end().stream() == "started\n"
    page.ok("import time; time.sleep(0.2)")
    other = page.start("%%remote --session background\ntime.sleep(1.5)\nprint('other')")
    cell.printed("late\n")
    cell.until(lambda run: run.outputs.shown, "the late display appears")
    assert other.end().stream() == "other\n"


# --- the tunnel drops -----------------------------------------------------------------------------


def test_a_dropped_tunnel_loses_and_repeats_nothing(
    cluster: Embedded, session: Callable[..., Session], capsys: pytest.CaptureFixture[str]
) -> None:
    name = session().name
    port = int(cluster.connection["url"].rpartition(":")[2])
    with Tunnel(port) as tunnel:
        client = Client(Connection(fixed(tunnel.url, cluster.connection["token"]), embedded=False))
        s = client.session(name, namespace={})
        s.run("warm = 1", quiet=True)
        capsys.readouterr()
        cell = Running(s, COUNT.format(n=150, s=0.02), quiet=True)
        for at in (20, 60, 100):
            cell.printed(f"tick {at}\n")
            tunnel.drop()
        assert cell.error() is None
        assert capsys.readouterr().out == ticks(150)
        assert tunnel.taken > 4
        s.feed.channel.close()
    assert printed(cluster.connect().attach(name)).count("tick 149\n") == 1


def test_a_session_left_alone_starts_no_gateway(own_cluster: Callable[..., Embedded]) -> None:
    """The channel's thread looks for its gateway, and leaves it at that."""
    embedded = own_cluster()
    client = embedded.connect()
    s = client.session("alone", namespace={})
    s.feed.channel.open()
    until(lambda: s.feed.channel._socket is not None, "the channel is connected")
    embedded.kill_gateway()
    until(lambda: s.feed.channel._socket is None, "the loss is seen")
    s.feed.channel.open()
    with pytest.raises(pytest.fail.Exception):
        until(embedded.running, "nobody starts a gateway", timeout=7)
    assert mlcloud.connect().sessions()[0].name == "alone"


def test_following_an_unknown_execution(session: Callable[..., Session]) -> None:
    s = session()
    with pytest.raises(NotFound):
        s.follow("x-00000000")
