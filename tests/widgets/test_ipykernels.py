"""Remote widgets on each generation of ipykernel, spoken to as JupyterLab does.

ipykernel 6 reads its shell channel on the main thread, 7.0 to 7.3 on a thread of its own, and 7.4
routes a comm's answers besides. JupyterLab may send a widget's messages to a subshell: then they
carry its id, which means nothing to the session.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import ipykernel
import pytest

from tests.live import Embedded
from tests.page import Page, Running, open_page
from tests.widgets.ipykernels import interpreter

pytestmark = pytest.mark.cluster

VERSIONS = ["6.31.0", "7.1.0", "installed"]
REMOTE = "%%remote --session on-{version} --quiet\n"


class Front:
    """A page on a kernel of one version, and its session's cells."""

    def __init__(self, page: Page, version: str) -> None:
        self.page = page
        self.version = version
        self.subshells = int(version.split(".")[0]) >= 7

    def start(self, code: str, **options: Any) -> Running:
        return self.page.start(REMOTE.format(version=self.version) + code, **options)

    def ok(self, code: str, **options: Any) -> Any:
        return self.page.ok(REMOTE.format(version=self.version) + code, **options)

    def model(self, running: Running) -> str:
        """The id of the widget that this cell displays."""

        def shown(cell: Running) -> str | None:
            for message in cell.of("display_data", "execute_result"):
                view = message["content"]["data"].get("application/vnd.jupyter.widget-view+json")
                if view:
                    return str(view["model_id"])
            return None

        found: str = running.until(shown, "a widget is displayed")
        return found

    def subshell(self) -> str:
        """A new subshell of the local kernel, as JupyterLab makes one for comms."""
        client = self.page.client
        message = client.session.msg("create_subshell_request")
        client.control_channel.send(message)
        reply = client.get_control_msg(timeout=30)
        assert reply["content"]["status"] == "ok", reply["content"]
        made: str = reply["content"]["subshell_id"]
        return made


@pytest.fixture(scope="module", params=VERSIONS)
def front(cluster: Embedded, request: pytest.FixtureRequest) -> Iterator[Front]:
    version = str(request.param)
    python = None
    if version == "installed":
        version = ipykernel.__version__
    else:
        python = interpreter(version)
    with open_page(cluster, python=python) as page:
        running = page.ok("import ipykernel; print(ipykernel.__version__)").stream().strip()
        assert running == version
        front = Front(page, version)
        front.ok("import time\nfrom ipywidgets import *")
        yield front
        page.ok(f"import mlcloud; mlcloud.attach('on-{version}').close()")


WAITING = (
    "moved = []\nslider = IntSlider(max=100)\n"
    "slider.observe(lambda change: moved.append(change['new']), 'value')\ndisplay(slider)\n"
    "until = time.monotonic() + 30\n"
    "while slider.value < 50 and time.monotonic() < until:\n    time.sleep(0.01)\n"
    "print('saw', slider.value, moved)"
)


def test_a_widget_moved_while_its_cell_runs(front: Front) -> None:
    cell = front.start(WAITING)
    moved = front.page.comm(front.model(cell), {"value": 20})
    moved.until(Running._is_idle, "the page hears that its message was handled")
    assert not cell.ended
    front.page.comm(front.model(cell), {"value": 60})
    assert cell.end().stream() == "saw 60 [20, 60]\n"


def test_a_widget_moved_through_a_subshell(front: Front) -> None:
    if not front.subshells:
        pytest.skip("ipykernel 6 has no subshells")
    subshell = front.subshell()
    cell = front.start(WAITING)
    moved = front.page.comm(front.model(cell), {"value": 30}, subshell_id=subshell)
    moved.until(Running._is_idle, "the page hears that its message was handled")
    front.page.comm(front.model(cell), {"value": 70}, subshell_id=subshell)
    assert cell.end().stream() == "saw 70 [30, 70]\n"


def test_a_widget_moved_after_its_cell(front: Front) -> None:
    cell = front.start(
        "later = IntSlider(max=100)\nheard = []\n"
        "later.observe(lambda change: heard.append(change['new']), 'value')\nlater"
    )
    cell.end()
    moved = front.page.comm(front.model(cell), {"value": 33})
    moved.until(Running._is_idle, "the page hears that its message was handled")
    assert front.ok("print(later.value, heard)").stream() == "33 [33]\n"


def test_the_kernel_moves_the_page(front: Front) -> None:
    cell = front.start("followed = IntSlider(max=100)\nfollowed")
    cell.end()
    later = front.start("followed.value = 44")
    later.end()
    sent = [
        message["content"]["data"]["state"]
        for message in later.of("comm_msg")
        if message["content"]["comm_id"] == front.model(cell)
    ]
    assert sent == [{"value": 44}]


def test_a_reloaded_page_is_told_every_state(front: Front) -> None:
    cell = front.start(
        "kept = Image(value=bytes(range(256)) * 8, format='png')\n"
        "knob = IntSlider(5)\nVBox([kept, knob])"
    )
    cell.end()
    listed = front.page.request("comm_info_request", {"target_name": "jupyter.widget"})
    front.page.until(lambda: listed.ended, "comm_info is answered")
    comms = front.page.replies[listed.msg_id]["content"]["comms"]
    assert front.model(cell) in comms
    control = uuid4().hex
    front.page.request(
        "comm_open",
        {"comm_id": control, "target_name": "jupyter.widget.control", "data": {}},
    )
    asked = front.page.request(
        "comm_msg", {"comm_id": control, "data": {"method": "request_states"}}
    )
    (answer,) = asked.until(lambda run: run.of("comm_msg"), "the states come")
    data = answer["content"]["data"]
    assert data["method"] == "update_states"
    states = data["states"]
    assert states[front.model(cell)]["model_name"] == "VBoxModel"
    knobs = [each for each in states.values() if each["model_name"] == "IntSliderModel"]
    assert any(each["state"]["value"] == 5 for each in knobs)
    (number,) = (
        index
        for index, path in enumerate(data["buffer_paths"])
        if states[path[0]]["model_name"] == "ImageModel"
    )
    assert bytes(answer["buffers"][number]) == bytes(range(256)) * 8


def test_buffers_travel_both_ways(front: Front) -> None:
    """2 MB out with the widget, 2 MB back in, and a custom message with a buffer each way."""
    cell = front.start(
        "sent = bytes(i % 249 for i in range(2_000_000))\nbox = Image(value=sent)\ngot = []\n"
        "box.on_msg(lambda w, content, parts: got.append((content, [bytes(b) for b in parts])))\n"
        "box"
    )
    cell.end()
    model = front.model(cell)
    (opened,) = (each for each in cell.of("comm_open") if each["content"]["comm_id"] == model)
    assert bytes(opened["buffers"][0]) == bytes(i % 249 for i in range(2_000_000))
    back = bytes(i % 251 for i in range(2_000_000))
    update = {"method": "update", "state": {}, "buffer_paths": [["value"]]}
    _send(front.page, model, update, [back])
    custom = {"method": "custom", "content": {"question": 1}}
    last = _send(front.page, model, custom, [b"\x00\xff"])
    last.until(Running._is_idle, "the page hears that its message was handled")
    said = front.start(
        "import hashlib\nprint(hashlib.sha256(box.value).hexdigest(), got)\n"
        "box.send({'answer': 2}, [b'\\x01'])"
    )
    assert said.end().stream() == (
        f"{hashlib.sha256(back).hexdigest()} [({{'question': 1}}, [b'\\x00\\xff'])]\n"
    )
    (answer,) = (each for each in said.of("comm_msg") if each["content"]["comm_id"] == model)
    assert answer["content"]["data"] == {"method": "custom", "content": {"answer": 2}}
    assert [bytes(each) for each in answer["buffers"]] == [b"\x01"]


def test_input_is_asked_in_the_page(front: Front) -> None:
    cell = front.ok("print('hello', input('name? '))", answers=["Ada"])
    assert cell.stream() == "hello Ada\n"


def test_late_output_belongs_to_its_cell(front: Front) -> None:
    cell = front.start(
        "import threading\ngo = threading.Event()\n"
        "def work():\n    go.wait(30)\n    print('late', flush=True)\n    display('shown late')\n"
        "threading.Thread(target=work).start()\nprint('started')"
    )
    cell.end()
    other = front.start("go.set()\nprint('another')")
    other.end()
    cell.until(lambda run: len(run.of("display_data")) == 1, "the late display comes")
    assert cell.outputs.stream() == "started\nlate\n"
    assert other.outputs.stream() == "another\n"


def _send(page: Page, comm_id: str, data: dict[str, Any], buffers: list[bytes]) -> Running:
    """A comm message with binary parts."""
    message = page.client.session.msg("comm_msg", {"comm_id": comm_id, "data": data})
    session = page.client.session
    session.send(page.client.shell_channel.socket, message, buffers=buffers)
    return Running(page, message["header"]["msg_id"])
