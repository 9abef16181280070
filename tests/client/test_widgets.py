"""Widgets made in a remote cell, as the page sees them: comms both ways, also while a cell runs.

Run with the installed ipykernel, and with others on both sides: what a kernel does with a page's
message while a cell runs differs between them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.live import ROOT, Embedded
from tests.page import Page, Running, open_page

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

SLIDER = """%%remote --session widgets
import ipywidgets as w, time, threading
slider = w.IntSlider(value=3)
out = w.Output()
seen = []
def moved(change):
    seen.append((change['new'], threading.current_thread() is threading.main_thread()))
    print('moved to', change['new'])
slider.observe(moved, 'value')
display(slider, out)
"""


def other_ipykernel(version: str) -> Path:
    """A folder with this ipykernel alone, to be put before the installed one."""
    folder = ROOT / ".ipykernels" / version
    if not (folder / "ipykernel").is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        command += ["--target", str(folder), f"ipykernel=={version}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"ipykernel {version} cannot be installed: {done.stderr[-300:]}")
    return folder


# Of these two the fast tests have those in tests/widgets.
OTHERS = [pytest.param(version, marks=pytest.mark.slow) for version in ("6.31.0", "7.1.0")]


@pytest.fixture(scope="module", params=["installed", *OTHERS])
def page(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Page]:
    home = tmp_path_factory.mktemp("widgets")
    with pytest.MonkeyPatch.context() as patch:
        if request.param != "installed":
            path = os.pathsep.join([str(other_ipykernel(request.param)), str(ROOT)])
            patch.setenv("PYTHONPATH", path)
        with Embedded(home) as embedded, open_page(embedded) as page:
            found = page.ok("import ipykernel; print(ipykernel.__version__)").stream().strip()
            assert request.param in ("installed", found)
            page.ok(
                "%%remote --session widgets\nimport ipykernel\n"
                f"assert ipykernel.__version__ == {found!r}"
            )
            yield page


def opened(run: Running, model: str) -> str:
    """The id of the widget of this model that a cell has opened."""
    return next(
        str(m["content"]["comm_id"])
        for m in run.of("comm_open")
        if m["content"]["data"]["state"].get("_model_name") == model
    )


def texts(run: Running) -> str:
    return "".join(m["content"]["text"] for m in run.of("stream"))


def idle(run: Running) -> bool:
    return any(m["content"]["execution_state"] == "idle" for m in run.of("status"))


@pytest.mark.parametrize("subshell", [False, True], ids=["plain", "subshell"])
def test_a_slider_moved_while_the_cell_runs(page: Page, subshell: bool) -> None:
    header: dict[str, Any] = {}
    if subshell:  # as JupyterLab names them, where the kernel has subshells
        info = page.request_on_control("create_subshell_request", {})
        if info is None or info.get("status") != "ok":
            pytest.skip("this ipykernel has no subshells")
        header["subshell_id"] = info["subshell_id"]
    cell = page.start(
        SLIDER + "print('ready', flush=True)\n"
        "until = time.monotonic() + 60\n"
        "while slider.value < 50 and time.monotonic() < until: time.sleep(0.02)\n"
        "print('now', slider.value, seen)"
    )
    cell.printed("ready")
    move = page.comm(opened(cell, "IntSliderModel"), {"value": 60}, **header)
    ended = cell.end(60)
    assert ended.error is None
    assert "now 60 [(60, False)]" in ended.stream()
    move.until(idle, "the page hears that its message was handled")
    # What a callback prints belongs to the page's message; ipykernel 6 knows one parent alone.
    assert "moved to 60" in texts(move) + ended.stream()


def test_a_slider_moved_between_cells_runs_in_the_main_thread(page: Page) -> None:
    cell = page.start(SLIDER)
    cell.end()
    move = page.comm(opened(cell, "IntSliderModel"), {"value": 7})
    move.until(idle, "the page's message was handled")
    assert "moved to 7" in texts(move)
    assert page.ok("%%remote --session widgets\n(slider.value, seen)").result == "(7, [(7, True)])"


def test_a_cell_that_awaits_answers_in_its_own_loop(page: Page) -> None:
    cell = page.start(
        SLIDER + "import asyncio\nprint('ready', flush=True)\n"
        "for _ in range(3000):\n"
        "    if seen: break\n"
        "    await asyncio.sleep(0.02)\n"
        "print('now', seen)"
    )
    cell.printed("ready")
    page.comm(opened(cell, "IntSliderModel"), {"value": 9})
    assert "now [(9, True)]" in cell.end(90).stream()


def test_what_the_session_sets_reaches_the_page(page: Page) -> None:
    cell = page.start(SLIDER + "slider.value = 42\nslider.description = 'set there'")
    cell.end()
    states = [m["content"]["data"]["state"] for m in cell.of("comm_msg")]
    assert {"value": 42} in states
    assert {"description": "set there"} in states


def test_an_output_widget_captures_the_local_cells_output(page: Page) -> None:
    cell = page.start(SLIDER + "with out:\n    print('inside')\nprint('outside')")
    cell.end()
    captured = [
        m["content"]["data"]["state"]["msg_id"]
        for m in cell.of("comm_msg")
        if "msg_id" in m["content"]["data"].get("state", {})
    ]
    assert captured == [cell.msg_id, ""]


def test_buffers_go_both_ways(page: Page) -> None:
    cell = page.start(
        "%%remote --session widgets\n"
        "import ipywidgets as w, traitlets\n"
        "class Holder(w.Widget):\n"
        "    _model_name = traitlets.Unicode('HolderModel').tag(sync=True)\n"
        "    data = traitlets.Bytes().tag(sync=True, from_json=lambda v, o: bytes(v))\n"
        "holder = Holder(data=bytes(range(256)) * 8192)\n"
    )
    cell.end()
    opening = next(
        m
        for m in cell.of("comm_open")
        if m["content"]["data"]["state"].get("_model_name") == "HolderModel"
    )
    assert opening["content"]["data"]["buffer_paths"] == [["data"]]
    assert bytes(opening["buffers"][0]) == bytes(range(256)) * 8192
    back = bytes(reversed(range(256))) * 8192
    data = {"method": "update", "state": {}, "buffer_paths": [["data"]]}
    sent = page.request(
        "comm_msg", {"comm_id": opening["content"]["comm_id"], "data": data}, buffers=[back]
    )
    sent.until(idle, "the page's message was handled")
    assert (
        page.ok(
            "%%remote --session widgets\nholder.data == bytes(reversed(range(256))) * 8192"
        ).result
        == "True"
    )


def test_a_reloaded_page_gets_every_widgets_state(page: Page) -> None:
    cell = page.start(SLIDER + "slider.value = 11")
    cell.end()
    slider = opened(cell, "IntSliderModel")
    page.comm(slider, {"value": 12}).until(idle, "the page's message was handled")
    page.ok("import ipywidgets\nmine = ipywidgets.IntText(value=5)")

    def all_states(tag: str) -> dict[str, Any]:
        page.request(
            "comm_open",
            {"comm_id": tag, "target_name": "jupyter.widget.control", "data": {}},
            metadata={"version": "1.0.0"},
        )
        asked = page.request("comm_msg", {"comm_id": tag, "data": {"method": "request_states"}})
        answer = asked.until(lambda run: run.of("comm_msg"), "all states come", 20)[0]
        page.request("comm_close", {"comm_id": tag, "data": {}})
        states: dict[str, Any] = answer["content"]["data"]["states"]
        return states

    states = all_states("control-1")
    assert states[slider]["state"]["value"] == 12
    assert states[slider]["model_name"] == "IntSliderModel"
    assert any(each["model_name"] == "IntTextModel" for each in states.values())
    # Also while a cell holds the main thread.
    running = page.start("%%remote --session widgets\nprint('on', flush=True)\ntime.sleep(4)")
    running.printed("on")
    assert all_states("control-2")[slider]["state"]["value"] == 12
    assert not running.ended
    running.end()
    listed = page.request("comm_info_request", {"target_name": "jupyter.widget"})
    listed.until(lambda run: run.ended, "comm_info is answered")
    assert slider in page.replies[listed.msg_id]["content"]["comms"]


def test_comms_that_the_page_opens(page: Page) -> None:
    page.ok(
        "%%remote --session widgets\n"
        "from comm import get_comm_manager\n"
        "got = []\n"
        "def opened(comm, message):\n"
        "    got.append(message['content']['data'])\n"
        "    comm.on_msg(lambda m: comm.send({'echo': m['content']['data']}))\n"
        "get_comm_manager().register_target('shout', opened)"
    )
    page.request("comm_open", {"comm_id": "c-1", "target_name": "shout", "data": {"hello": 1}})
    sent = page.request("comm_msg", {"comm_id": "c-1", "data": {"x": 2}})
    answer = sent.until(lambda run: run.of("comm_msg"), "the session answers", 20)[0]
    assert answer["content"]["data"] == {"echo": {"x": 2}}
    assert page.ok("%%remote --session widgets\ngot").result == "[{'hello': 1}]"


def test_local_widgets_and_cells_are_left_alone(page: Page) -> None:
    """What is not for the session takes its usual way through the local kernel."""
    page.ok(SLIDER)
    local = page.start(
        "import ipywidgets\nheard = []\nmine = ipywidgets.IntSlider()\n"
        "mine.observe(lambda change: heard.append(change['new']), 'value')\nmine"
    )
    local.end()
    remote = page.start("%%remote --session widgets\nprint('on', flush=True)\ntime.sleep(2)")
    remote.printed("on")
    page.comm(opened(local, "IntSliderModel"), {"value": 4})
    queued = page.start("print('after')")
    remote.end()
    assert queued.end().stream() == "after\n"
    assert page.ok("heard").result == "[4]"
