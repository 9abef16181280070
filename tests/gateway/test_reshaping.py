"""A session goes on on another node shape, or stays what it was and where it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mlcloud import errors
from mlcloud.client.api import Client
from mlcloud.client.session import Session
from mlcloud.cluster.shapes import choose, node_types
from mlcloud.cost.prices import local_offers
from mlcloud.gateway.reshaping import Shape, too_large
from mlcloud.models import SessionInfo, SessionRequest
from mlcloud.store import Store
from mlcloud.units import parse_gpu, parse_size
from tests.live import Embedded, Running, stories

TYPES = node_types(local_offers())


def asked(**request: Any) -> Shape:
    wanted = SessionRequest(name="exp", **request)
    memory = parse_size(wanted.memory) if wanted.memory else 0
    gpu = parse_gpu(wanted.gpu) if wanted.gpu else None
    return Shape(wanted, choose(TYPES, memory_bytes=memory, gpu=gpu), memory)


@pytest.mark.parametrize(
    ("held", "before", "after", "fits"),
    [
        (0, {}, {"memory": "64MB"}, True),  # nothing to restore: any shape will do
        (300_000_000, {}, {"memory": "1GB"}, True),
        (700_000_000, {}, {"memory": "1GB"}, False),  # it fits by itself, but not beside the rest
        (3_000_000_000, {}, {}, True),
        (3_400_000_000, {"memory": "6GB"}, {}, False),  # the node's own memory counts, too
        (15_000_000_000, {}, {"gpu": "T4:1"}, False),
        (15_000_000_000, {"gpu": "A10G:1"}, {"gpu": "T4:1"}, True),  # perhaps it is on the GPU
        (15_000_000_000, {"gpu": "A10G:1"}, {}, False),
    ],
)
def test_whether_a_state_fits(
    held: int, before: dict[str, Any], after: dict[str, Any], fits: bool
) -> None:
    refused = too_large(held, SessionRequest(name="exp", **before), asked(**after))
    assert (refused == "") is fits
    assert fits or "GB" in refused


# --- live -----------------------------------------------------------------------------------------


def shape(info: SessionInfo) -> tuple[str | None, float, str | None, str]:
    return info.gpu, info.cpus, info.memory, info.market


@pytest.mark.cluster
def test_onto_a_gpu_and_back(
    session: Callable[..., Session], cluster: Embedded, client: Client
) -> None:
    names: dict[str, object] = {}
    s = session(namespace=names)
    visible = "os.environ.get('CUDA_VISIBLE_DEVICES')"
    s.run(
        f"import os\nkept = [1]\nalias = kept\npid = os.getpid()\nvisible = {visible}", quiet=True
    )
    assert names["visible"] == "", "a session without a GPU sees none, where the node has one too"
    first, pid = s.info.node, names["pid"]

    cell = Running(s, "print('ready', flush=True)\nimport time; time.sleep(60)")
    cell.printed("ready")
    with pytest.raises(errors.Conflict, match=r"busy.*interrupt"):
        cell.watch.resume(gpu="T4:1")
    cell.watch.interrupt()
    assert isinstance(cell.error(), KeyboardInterrupt)

    with pytest.raises(errors.NoSuchResources, match=r"T4:1.*A10G|A10G.*T4:1"):
        s.resume(gpu="H100:8")
    with pytest.raises(errors.UsageError, match="cpus"):
        s.resume(cpus=-1)
    assert (s.info.node, s.state) == (first, "idle"), "nothing was given back"
    s.resume(cpus=1, market="spot")
    assert s["pid"] == pid, "it has this shape already"

    s.resume(gpu="T4:1")
    assert s.state == "idle"
    assert s.info.instance_type == "local.t4"
    assert shape(s.info) == ("T4:1", 1, None, "spot")
    assert "local.t4" in stories(s)["moved"]
    on = [node.id for node in client.cluster.status().info.nodes if s.name in node.sessions]
    assert on == [s.info.node]
    s.run(f"alias.append(2)\nvisible = {visible}", quiet=True)
    assert (names["kept"], names["visible"]) == ([1, 2], "0")

    # Another gateway finds it so, and the store's record says it.
    store = Store(client.cluster.status().info.store)
    last = store.latest("records", s.id)
    assert last is not None
    assert '"gpu":"T4:1"' in store.read("records", s.id, last)["session"]["request"]
    cluster.kill_gateway()
    assert shape(s.info) == ("T4:1", 1, None, "spot")

    s.park()
    s.resume(gpu="none", memory="2GB")
    assert s.info.instance_type in ("local.cpu2", "local.cpu4")  # what was to be had
    assert shape(s.info) == (None, 1, "2GB", "spot")
    assert s["kept"] == [1, 2]


# Read again only under a kernel that has the memory it was made with.
ONLY_HERE = """
class OnlyHere:
    def __reduce__(self):
        limits = "' '.join(__import__('psutil').Process(__import__('os').getppid()).cmdline())"
        return eval, (f"1 if '3000000000' in {limits} else 1 / 0",)
only_here = OnlyHere()
"""


@pytest.mark.slow
@pytest.mark.cluster
def test_what_would_not_come_up_there(session: Callable[..., Session]) -> None:
    s = session(memory="3GB")
    s.run(
        "import os, numpy as np\nbig = np.ones(4_000_000)\n"
        "file = os.path.expanduser('~/mlcloud-test-reshaping')\nhandle = open(file, 'w')",
        durable=True,
        quiet=True,
    )
    before = s.info
    try:
        with pytest.raises(errors.Conflict, match=r"would lose.*handle"):
            s.resume(memory="2GB")
    finally:
        s.run("handle.close(); os.unlink(file); del handle", durable=True, quiet=True)
    with pytest.raises(errors.Conflict, match=r"holds 32 MB .* with 200 MB of memory is too small"):
        s.resume(memory="200MB")
    assert (s.info.node, s.state) == (before.node, "idle"), "nothing was given back"

    # Small in the store, and too large for the node only when it is made again.
    s.run(
        "class Large:\n"
        "    def __init__(self): self.block = bytearray(b'x') * 700_000_000\n"
        "    def __reduce__(self): return Large, ()\n"
        "held = Large()",
        durable=True,
        quiet=True,
    )
    with pytest.raises(errors.SessionFailed, match=r"memory of 600 MB.*parked with its state"):
        s.resume(memory="600MB")
    assert s.state == "parked"
    assert shape(s.info) == shape(before)
    assert s.info.usd_per_hour == 0
    s.run("total = float(big.sum()), len(held.block); del held", durable=True, quiet=True)
    assert s["total"] == (4e6, 700_000_000)

    s.run(ONLY_HERE, durable=True, quiet=True)
    with pytest.raises(errors.SessionFailed, match=r"only_here: .*division by zero"):
        s.resume(memory="2GB")
    assert (s.state, s.info.memory) == ("parked", "3GB")
    s.run("there = only_here, float(big[0])", quiet=True)
    assert s["there"] == (1, 1.0)
