"""Large values on the wire: once, without copies, past a broken connection, and never half."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from mlcloud import errors
from mlcloud.client import transfer
from mlcloud.client.api import Client
from mlcloud.client.connection import Connection, fixed
from mlcloud.client.objects import download, upload
from mlcloud.client.session import Session
from mlcloud.values.digests import CHUNK_BYTES
from mlcloud.values.messages import Group
from mlcloud.values.reducers import Classes
from mlcloud.values.scan import Scan
from tests.live import Embedded, start_python, until
from tests.page import open_page
from tests.tunnel import Tunnel

pytestmark = pytest.mark.cluster
MIB = 2**20


@pytest.fixture
def tunnel(client: Client, cluster: Embedded) -> Iterator[Tunnel]:
    port = int(cluster.connection["url"].rpartition(":")[2])
    with Tunnel(port) as tunnel:
        yield tunnel


@pytest.fixture
def through(tunnel: Tunnel, cluster: Embedded) -> Callable[[], Connection]:
    """Makes connections to the gateway through the tunnel, as separate notebooks have."""
    token = cluster.connection["token"]
    return lambda: Connection(fixed(tunnel.url, token), embedded=False)


def new(size: int) -> Any:
    """Content that no store has seen."""
    return np.frombuffer(bytearray(os.urandom(size)), np.uint8)


def packed(**names: Any) -> list[Group]:
    scan = Scan(names, Classes())
    scan.add(names)
    return scan.pack([[name] for name in names])


def fetched(connection: Connection, groups: list[Group], objects: dict[str, list[str]]) -> bytes:
    """The first buffer of the first group, as it comes back."""
    back = [Group.from_wire(group.to_wire(inline=65536)) for group in groups]
    return bytes(download(connection, back, objects).take(back[0].buffers[0]))


# --- the connection breaks ------------------------------------------------------------------------


def test_a_dropped_connection_goes_on_where_it_was(
    tunnel: Tunnel, through: Callable[[], Connection]
) -> None:
    x = new(6 * CHUNK_BYTES)
    groups, connection = packed(x=x), through()
    tunnel.rate = 60e6  # each connection

    def drop() -> None:
        until(lambda: tunnel.sent > x.nbytes * 0.4, "some of it is on its way")
        tunnel.drop()

    breaker = threading.Thread(target=drop)
    breaker.start()
    objects = upload(connection, groups)
    breaker.join()
    assert tunnel.sent < x.nbytes + transfer.LANES * CHUNK_BYTES + MIB
    assert fetched(connection, groups, objects) == x.tobytes()


def test_a_dropped_download_goes_on_too(
    tunnel: Tunnel, through: Callable[[], Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = new(4 * CHUNK_BYTES)
    groups, connection = packed(x=x), through()
    objects = upload(connection, groups)
    counted: list[int] = []
    add = transfer.Progress.add

    def count(progress: transfer.Progress, size: int) -> None:
        add(progress, size)
        counted.append(size)
        if len(counted) == 20:
            tunnel.drop()

    monkeypatch.setattr(transfer.Progress, "add", count)
    assert fetched(connection, groups, objects) == x.tobytes()
    assert any(size < 0 for size in counted)  # a piece broke off, and came again


def test_it_gives_up_with_a_word_and_the_next_run_continues(
    tunnel: Tunnel, through: Callable[[], Connection]
) -> None:
    x = new(6 * CHUNK_BYTES)
    groups, connection = packed(x=x), through()
    tunnel.rate = 60e6

    def close() -> None:
        until(lambda: tunnel.sent > 4.5 * CHUNK_BYTES, "whole pieces have arrived")
        tunnel.open = False
        tunnel.drop()

    breaker = threading.Thread(target=close)
    breaker.start()
    with pytest.raises(errors.ConnectionFailed, match=r"broke off at .* run the cell again"):
        upload(connection, groups)
    breaker.join()
    tunnel.open, tunnel.rate = True, None
    before = tunnel.sent
    objects = upload(through(), groups)
    assert tunnel.sent - before < x.nbytes  # not from the beginning
    assert fetched(through(), groups, objects) == x.tobytes()


def test_what_the_gateway_refuses_is_said_at_once(
    tunnel: Tunnel, through: Callable[[], Connection]
) -> None:
    groups, connection = packed(x=new(2 * CHUNK_BYTES)), through()
    changed = groups[0].buffers[0]
    changed.chunks = ("0" * 64, *changed.chunks[1:])  # as if it were written to meanwhile
    start = time.monotonic()
    with pytest.raises(errors.UsageError, match="does not match its name"):
        upload(connection, groups)
    assert time.monotonic() - start < 10


def test_damage_in_the_store_is_noticed_by_who_fetches(
    client: Client, cluster: Embedded, through: Callable[[], Connection]
) -> None:
    groups, connection = packed(x=new(200_000)), through()
    objects = upload(connection, groups)
    (name,) = objects[groups[0].buffers[0].digest]
    digest = name.partition(":")[0]
    file = cluster.home / "store" / "chunks" / digest[:2] / digest
    data = bytearray(file.read_bytes())
    data[7] ^= 1
    file.write_bytes(data)
    with pytest.raises(errors.Damaged, match=digest):
        fetched(connection, groups, objects)


# --- an interrupt ---------------------------------------------------------------------------------

SENDER = """
import sys, time
import numpy as np
from mlcloud.client.connection import Connection, fixed
from mlcloud.client.objects import upload
from tests.client.test_transfer import packed
x = np.fromfile({file!r}, np.uint8)
connection = Connection(fixed({url!r}, {token!r}), embedded=False)
print("ready", flush=True)
try:
    upload(connection, packed(x=x))
except KeyboardInterrupt:
    print("interrupted", flush=True)
else:
    print("sent", flush=True)
"""


def test_an_interrupt_stops_it_and_the_next_run_continues(
    tunnel: Tunnel, cluster: Embedded, tmp_path: Any
) -> None:
    size = 8 * CHUNK_BYTES
    file = tmp_path / "x"
    file.write_bytes(os.urandom(size))
    token = cluster.connection["token"]
    code = SENDER.format(file=str(file), url=tunnel.url, token=token)
    tunnel.rate = 30e6
    process = start_python(cluster, code)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    until(lambda: tunnel.sent > 4.5 * CHUNK_BYTES, "whole pieces have arrived", timeout=60)
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "interrupted\n"
    took = time.monotonic() - start
    process.wait(30)
    assert took < 1.0
    before, tunnel.rate = tunnel.sent, None
    again = start_python(cluster, code)
    output, problems = again.communicate(timeout=60)
    assert output == "ready\nsent\n", problems
    assert tunnel.sent - before < size


# --- not twice ------------------------------------------------------------------------------------


@pytest.fixture
def far(
    client: Client, through: Callable[[], Connection]
) -> Iterator[Callable[[str, dict[str, Any]], Session]]:
    """Opens sessions through the tunnel, each with a client and a namespace of its own."""
    made: list[Session] = []

    def make(name: str, namespace: dict[str, Any]) -> Session:
        made.append(Client(through()).session(f"far-{name}", namespace=namespace))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_unchanged_data_is_sent_once(
    tunnel: Tunnel, far: Callable[[str, dict[str, Any]], Session]
) -> None:
    x = new(3 * CHUNK_BYTES)
    here: dict[str, Any] = {"x": x}
    session = far("one", here)

    def sent(session: Session, code: str) -> int:
        before = tunnel.sent
        session.run(code, quiet=True)
        return tunnel.sent - before

    assert sent(session, "n = int(x[-1])") > x.nbytes
    assert here["n"] == x[-1]
    assert sent(session, "n = int(x[0])") < 20_000
    # another notebook, the same session; another notebook, another session
    other = {"x": x.copy()}
    assert sent(far("one", other), "m = int(x[1])") < 50_000
    assert other["m"] == x[1]
    third = {"renamed": x.copy()}
    assert sent(far("two", third), "m = int(renamed[2])") < 50_000
    assert third["m"] == x[2]
    # one element: one piece
    x[0] ^= 1
    assert CHUNK_BYTES < sent(session, "n = int(x[0])") < CHUNK_BYTES + 50_000
    assert here["n"] == x[0]


def test_what_arrives_is_the_cells_to_write_to(session: Callable[..., Session]) -> None:
    here: dict[str, Any] = {"x": np.zeros(3 * MIB), "y": np.zeros(3 * MIB)}  # equal content
    remote = session("write", namespace=here)
    remote.run("x[0] = 7\nfirst = (x[0], y[0])", out=["x", "first"], quiet=True)
    assert here["first"] == (7, 0)
    assert here["x"][0] == 7
    here["x"][1] = 8  # and what comes back is the notebook's
    remote.run("total = x.sum()", quiet=True)
    assert here["total"] == 15
    here["y"][2] = 1
    assert here["x"][2] == 0


@pytest.mark.parametrize("kind", ["frame", "tensor", "strided", "fortran", "readonly"])
def test_every_kind_of_array_makes_the_round(session: Callable[..., Session], kind: str) -> None:
    import pandas as pd
    import torch

    base = np.arange(400_000, dtype=np.float64).reshape(400, 1000)
    readonly = base.copy()
    readonly.flags.writeable = False
    value: Any = {
        "frame": pd.DataFrame(base),
        "tensor": torch.from_numpy(base.copy()),
        "strided": base[::2, ::3],
        "fortran": np.asfortranarray(base),
        "readonly": readonly,
    }[kind]
    remote = session(kind)
    remote["v"] = value
    back = remote["v"]
    assert type(back) is type(value)
    assert (np.asarray(back) == np.asarray(value)).all()
    if kind == "tensor":
        back.resize_(10)  # its storage is its own


# --- memory ---------------------------------------------------------------------------------------

MEMORY = """
import json, threading
import numpy as np, psutil, mlcloud
session = mlcloud.attach({name!r})
x = np.random.default_rng().integers(0, 255, {size}, dtype=np.uint8)
me = psutil.Process()
def extra(call):
    before, peak, end = me.memory_info().rss, [0], threading.Event()
    def watch():
        while not end.wait(0.002):
            peak[0] = max(peak[0], me.memory_info().rss)
    watcher = threading.Thread(target=watch)
    watcher.start()
    value = call()
    end.set()
    watcher.join()
    return peak[0] - before, value
sending, _ = extra(lambda: session.__setitem__("x", x))
fetching, back = extra(lambda: session["x"])
print(json.dumps([sending, fetching, bool((back == x).all())]))
"""


def test_sending_and_fetching_take_no_memory_beyond_the_array(
    session: Callable[..., Session], cluster: Embedded
) -> None:
    size = 256 * MIB
    remote = session("memory")
    process = start_python(cluster, MEMORY.format(name=remote.name, size=size))
    output, problems = process.communicate(timeout=200)
    assert process.returncode == 0, problems
    sending, fetching, equal = json.loads(output)
    assert equal
    assert sending < 64 * MIB
    assert size * 0.9 < fetching < size + 64 * MIB


# --- what is shown --------------------------------------------------------------------------------


def test_a_slow_transfer_shows_a_bar_and_leaves_a_line(tunnel: Tunnel, cluster: Embedded) -> None:
    url, token = tunnel.url, cluster.connection["token"]
    with open_page(cluster) as page:
        page.run(
            "import mlcloud, os, numpy as np\n"
            f"client = mlcloud.connect({url!r}, token={token!r})\n"
            "x = np.frombuffer(os.urandom(48 * 2**20), np.uint8)"
        )
        page.run("%%remote\nready = 1")
        tunnel.rate = 8e6
        running = page.start("%%remote\nlast = int(x[-1])")
        running.end()
        tunnel.rate = None
        shown = [
            message
            for message in running.of("display_data", "update_display_data")
            if "sending" in message["content"]["data"].get("text/plain", "")
            or "sent `x`" in message["content"]["data"].get("text/plain", "")
        ]
        assert len(shown) >= 3
        ids = {message["content"]["transient"]["display_id"] for message in shown}
        assert len(ids) == 1  # one display, updated in place
        kinds = [message["header"]["msg_type"] for message in shown]
        assert kinds == ["display_data"] + ["update_display_data"] * (len(shown) - 1)
        first, last = shown[0]["content"]["data"], shown[-1]["content"]["data"]
        assert "<progress" in first["text/html"]
        assert "50.3 MB" in first["text/plain"]
        assert any("left" in each["content"]["data"]["text/plain"] for each in shown)
        assert "sent `x`" in last["text/plain"]
        assert "<progress" not in last["text/html"]
        quick = page.start("%%remote\nlast = int(x[-2])")
        quick.end()
        assert not [
            message
            for message in quick.of("display_data", "update_display_data")
            if "send" in message["content"]["data"].get("text/plain", "")
        ]
