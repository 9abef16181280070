"""Machines of one's own, end to end: namespaces with sshd, and everything of ours real on them."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
from click.testing import CliRunner

import mlcloud
from mlcloud import cli
from mlcloud.client import elsewhere, launching, machines, notes, reaching
from mlcloud.client.machines import SSHCluster
from mlcloud.client.packages import Packages
from mlcloud.cluster import ssh
from mlcloud.cluster.headspec import Machine, Runtime
from mlcloud.config import Settings
from mlcloud.environment import index
from mlcloud.errors import ClusterDown, Conflict, ConnectionFailed
from tests import netns
from tests.environment.index_server import CommandLines, Index, found_in
from tests.environment.projects import project, wheel_of
from tests.live import ROOT, until

pytestmark = pytest.mark.skipif(bool(netns.why_not()), reason=netns.why_not() or "-")


HERE = Runtime(sys.executable, variables={"PYTHONPATH": str(ROOT)})


class Lab:
    """Machines, and a cluster on them: the first is the head and works not."""

    def __init__(
        self, home: Path, machines: dict[str, netns.Machine], runtime: Runtime = HERE
    ) -> None:
        self.machines = machines
        self.said: list[str] = []
        store = home / "store"
        store.mkdir()
        self.wanted = SSHCluster(
            "lab",
            tuple(Machine(each.address, 1, 2 * 2**30) for each in machines.values()),
            f"file://{store}",
            key=home / "key",
            runtime=runtime,
            settings={"MLCLOUD_NODE_IDLE": "2m", "MLCLOUD_OFFER_COOLDOWN": "10s"},
        )

    def up(self) -> None:
        launching.up(self.wanted, Settings(), self.said.append).close()

    def down(self) -> None:
        launching.down("lab", Settings(), self.said.append)

    def machine_of(self, session: mlcloud.Session) -> netns.Machine:
        """Where a session's kernel runs, as its process ids tell."""
        session.run("import os as _os; _pid = _os.getpid()", quiet=True)
        pid = session["_pid"]
        return next(each for each in self.machines.values() if pid in each.pids())

    def logs(self) -> str:
        """What the machines wrote, for who looks at a failure."""
        found = sorted(p for each in self.machines.values() for p in each.home.rglob("*.log"))
        return "\n".join(f"== {path}\n{path.read_text()[-4000:]}" for path in found)

    def assert_nothing_is_left(self) -> None:
        for each in self.machines.values():
            assert each.pids() == [], each.name
            assert each.listening() == [], each.name
            assert not (each.home / ".mlcloud-node").exists(), each.name
            assert list((each.folder / "tmp").rglob("*")) == [], each.name
            keys = (each.home / ".ssh" / "authorized_keys").read_text()
            assert "mlcloud cluster lab" not in keys, each.name


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Makes a lab of so many machines; takes its cluster down, if that is still up."""
    monkeypatch.setenv("MLCLOUD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    Settings().make_folders()
    with contextlib.ExitStack() as stack:

        def make(*names: str, runtime: Runtime = HERE) -> Lab:
            public = ssh.make_key(tmp_path / "key", "the user")
            there = stack.enter_context(netns.machines(*names, public_key=public))
            made = Lab(tmp_path, there, runtime)
            stack.callback(lambda: "lab" in notes.known(Settings()) and made.down())
            return made

        yield make


def test_a_cluster_on_two_machines(lab: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Up, a cell, the tunnel lost and made again, the direct way, down; nothing listens to others,
    and nothing is left."""
    two = lab("a", "b")
    two.up()
    assert two.said[-1].endswith('lab is up: mlcloud.connect("lab")')
    note = Settings().clusters / "lab.json"
    assert note.stat().st_mode & 0o777 == 0o600

    client = mlcloud.connect("lab")
    namespace = {"start": 40}
    session = client.session("s", namespace=namespace)
    session.run("import sys\nfor i in range(3): print('line', i, flush=True)\nanswer = start + 2")
    assert "line 0\nline 1\nline 2" in capsys.readouterr().out
    assert namespace["answer"] == 42
    worker = two.machine_of(session)
    assert worker.name == "b"

    for each in two.machines.values():
        addresses = {place.rpartition(":")[0] for place in each.listening()}
        assert addresses <= {each.address, f"[::ffff:{each.address}]", "127.0.0.1", "[::1]"}
        assert addresses & {each.address, f"[::ffff:{each.address}]"}

    tunnel = elsewhere.tunnels["lab"]
    killed = tunnel.pid
    os.kill(killed, signal.SIGKILL)
    session.run("answer += 1")
    assert namespace["answer"] == 43
    assert tunnel.pid not in (None, killed)

    # A server that a cell runs, here.
    session.run(
        "import http.server, threading\n"
        "server = http.server.HTTPServer(('127.0.0.1', 0), http.server.SimpleHTTPRequestHandler)\n"
        "threading.Thread(target=server.serve_forever, daemon=True).start()\n"
        "port = server.server_port"
    )
    place = reaching.target("s", reaching.chosen(None, Settings()), Settings())
    assert place.host == worker.address
    with reaching.forwarded(place, namespace["port"]) as url:
        assert httpx.get(url, trust_env=False).is_success
    session.run("server.shutdown(); del server")
    assert CliRunner().invoke(cli.main, ["ssh", "s", "exit", "7"]).exit_code == 7

    # No token is on any command line, the cluster's own keys neither.
    commands = b"".join(_command(int(each.name)) for each in Path("/proc").glob("[0-9]*"))
    assert notes.note_of("lab", Settings()).token.encode() not in commands

    # In the same network: no tunnel, the certificate is known instead.
    found = notes.note_of("lab", Settings())
    assert found.nodes_url.startswith(f"https://{two.machines['a'].address}:")
    with pytest.raises(ConnectionFailed, match="not the gateway that was asked for"):
        mlcloud.connect(found.nodes_url, token=found.token, fingerprint="0" * 64)
    with pytest.raises(ConnectionFailed, match="fingerprint=…"):
        mlcloud.connect(found.nodes_url, token=found.token)
    direct = mlcloud.connect(found.nodes_url, token=found.token, fingerprint=found.fingerprint)
    beside = direct.attach("s")
    beside.run("print('by TLS', answer)")
    assert "by TLS 43" in capsys.readouterr().out

    two.down()
    assert tunnel.pid is None
    two.assert_nothing_is_left()
    with pytest.raises(ClusterDown, match="'lab' was taken down"):  # who waits looks no further
        client._connection.reopen(start=False)


@pytest.mark.slow
def test_a_specification_that_changes(
    lab: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A machine comes, limits change, what cannot be is refused; a machine in use stays."""
    three = lab("a", "b", "c")
    a, b, c = three.machines.values()
    made = machines.of_specification
    monkeypatch.setattr(
        machines, "of_specification", lambda told: replace(made(told), runtime=HERE)
    )

    def cluster(*machines: netns.Machine, **fields: Any) -> mlcloud.Cluster:
        facts = {"cpus": 1, "memory": "2GiB", "region": "hall-1"}
        hosts = [{"host": each.address, **facts} for each in machines]
        ssh = {"user": "root", "key": str(three.wanted.key), "hosts": hosts}
        told = {"regions": ["hall-1", "aws:eu-central-1"], "store": three.wanted.store, "ssh": ssh}
        return mlcloud.Cluster("lab", cloud="ssh", **told, **fields)

    cluster(a, b).up()
    client = mlcloud.connect("lab")
    first = client.session("first", namespace={})
    first.run(
        "import os; kept = 1; may = [os.environ[f'MLCLOUD_{x}'] for x in ('REGIONS', 'CLOUD')]"
    )
    assert first["may"] == ["hall-1,aws:eu-central-1", "ssh"]
    assert three.machine_of(first).name == "b"

    capsys.readouterr()
    cluster(a, b, c, budget="7/day", idle={"node": "3s"}).up()
    said = capsys.readouterr().out
    assert f"ssh.hosts[{c.address}]" in said
    assert "budget: – → 7/day (applied in place)" in said
    assert [each.limit for each in client.budgets()] == ["7/day"]
    second = client.session("second", namespace={})
    second.run("1")
    assert three.machine_of(second).name == "c"
    assert first["kept"] == 1

    with pytest.raises(Conflict, match=f"ssh.hosts: {c.address} .*is a node now: park"):
        cluster(a, b, budget="7/day", idle={"node": "3s"}).up()
    with pytest.raises(Conflict, match=r"(?s)ssh\.hosts.*needs down and up.*applied: .*8/d"):
        cluster(b, a, budget="8/day", idle={"node": "3s"}).up()
    assert [each.limit for each in client.budgets()] == ["8/day"]

    second.park()
    until(
        lambda: len(client.cluster.status().info.nodes) == 1, "the idle machine is given back", 60
    )
    cluster(a, b, budget="8/day", idle={"node": "3s"}).up()
    assert "mlcloud cluster lab" not in (c.home / ".ssh" / "authorized_keys").read_text()
    assert not cluster(a, b, budget="8/day", idle={"node": "3s"}).changes()
    three.down()
    three.assert_nothing_is_left()


@pytest.mark.slow
def test_machines_that_are_lost(lab: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A cable pulled, a machine without power, a gateway killed: the session goes on elsewhere."""
    three = lab("a", "b", "c")
    three.machines["c"].cut()
    three.up()
    assert any("is left out for now" in line for line in three.said)
    three.machines["c"].mend()
    client = mlcloud.connect("lab")
    namespace: dict[str, Any] = {}
    session = client.session("s", namespace=namespace)
    session.run("kept = list(range(1000))", durable=True)
    first = three.machine_of(session)
    assert first.name == "b"
    three.up()  # lets the key in on the machine that is back

    first.cut()
    began = time.monotonic()
    session.run("kept.append(-1); total = sum(kept)")
    print(f"moved off a cut machine after {time.monotonic() - began:.1f} s", file=sys.stderr)
    assert namespace["total"] == sum(range(1000)) - 1
    second = three.machine_of(session)
    assert second is not first

    first.mend()  # its node hears that it was given up
    until(lambda: first.pids() == [], "the node that was given up ends itself", 60)

    second.kill()
    began = time.monotonic()
    session.run("total = sum(kept)")
    print(f"moved off a killed machine after {time.monotonic() - began:.1f} s", file=sys.stderr)
    assert namespace["total"] == sum(range(1000)) - 1
    assert three.machine_of(session) in (first, second)  # its power is back

    # The laptop sleeps for a while in the middle of a cell: nothing it prints is missed.
    head = three.machines["a"]
    seen = elsewhere.tunnels["lab"].pid
    with contextlib.ExitStack() as sleeping:
        threading.Timer(2, sleeping.enter_context, (head.out_of_reach(),)).start()
        threading.Timer(22, sleeping.close).start()
        capsys.readouterr()
        session.run("import time\nfor i in range(30): print('tick', i, flush=True); time.sleep(1)")
    ticks = [line for line in capsys.readouterr().out.splitlines() if line.startswith("tick")]
    assert ticks == [f"tick {number}" for number in range(30)]
    assert elsewhere.tunnels["lab"].pid != seen

    gateway = next(pid for pid in head.pids() if b"mlcloud.gateway" in _command(pid))
    os.kill(gateway, signal.SIGKILL)
    session.run("total += 1")
    assert namespace["total"] == sum(range(1000))

    three.down()
    three.assert_nothing_is_left()


@pytest.mark.slow
def test_machines_that_have_nothing_yet(lab: Any, tmp_path: Path) -> None:
    """They get an environment, with this very mlcloud: the head from here, the node from the head;
    and one more package from a private index, whose password is in a file of theirs alone.

    Its other packages are this computer's: there is no other index in these networks.
    """
    packages = str(Path(ray.__file__).parents[1])
    two = lab("a", "b")
    bridge = f"{two.machines['a'].address.rpartition('.')[0]}.1"
    wheel_of(project(tmp_path / "sounds", name="sounds"), tmp_path / "wheels")
    tones = wheel_of(project(tmp_path / "tones", name="tones"), tmp_path / "more")
    tones.rename(tmp_path / "wheels" / tones.name)
    private = Index(tmp_path / "wheels", "build", "pw-9sKdQ2vLxW", bridge)
    runtime = Runtime(
        requirements=("sounds",),
        options=("--no-deps",),
        variables={"PYTHONPATH": packages},
        indexes=True,
    )
    urls = [f"http://build:${{PW}}@{private.host}/simple"]
    told = Packages(index.pip_conf(urls, {"PW": "pw-9sKdQ2vLxW"}))
    two.wanted = replace(two.wanted, runtime=runtime, packages=told)
    lines = CommandLines("pw-9sKdQ2vLxW")
    with contextlib.closing(private), lines:
        two.up()
        namespace: dict[str, Any] = {}
        session = mlcloud.connect("lab").session("s", namespace=namespace)
        session.run(
            "import sys, mlcloud, sounds\nwhere = [sys.prefix, mlcloud.__file__, sounds.__file__]"
        )
        # So does what a session asks for itself, and what a cell installs.
        session.close()
        own = mlcloud.connect("lab").session("t", environment=["tones"], namespace={})
        own.run("import tones\nversion = tones.VERSION")
        assert own["version"] == "1.0"
        own.run("where = __import__('os').environ['PIP_CONFIG_FILE']")
        assert own["where"].endswith(f"/{index.FILE}")
    made = two.machines["b"].home / ".mlcloud-node"
    assert all(each.startswith(f"{made}/venv-") for each in namespace["where"])
    # The head and its node each asked the index themselves.
    assert len([each for each in private.asked if each.startswith("/files/sounds")]) == 2
    assert lines.seen > 0
    assert lines.found == []
    kept = found_in(tmp_path, *(each.folder for each in two.machines.values()), of="pw-9sKdQ2vLxW")
    assert {path.name for path in kept} == {index.FILE}
    assert len(kept) == 2
    assert {path.stat().st_mode & 0o777 for path in kept} == {0o600}
    two.down()
    assert found_in(*(each.folder for each in two.machines.values()), of="pw-9sKdQ2vLxW") == []
    # What was installed is kept for the next cluster, and nothing else.
    assert [each.name[:5] for each in made.iterdir()] == ["venv-"]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
