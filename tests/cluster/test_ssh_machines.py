"""One machine reached over SSH: what goes wrong is said in one line, and nothing is left there."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import psutil
import pytest

import mlcloud
from mlcloud import __version__
from mlcloud.client import notes
from mlcloud.client.machines import of_specification
from mlcloud.client.tunnel import Tunnel
from mlcloud.cluster import bootstrap, nodefile, onlyhere, ssh
from mlcloud.cluster.clouds.base import Cloud, Instance, LaunchRequest
from mlcloud.cluster.clouds.headed import Headed
from mlcloud.cluster.clouds.ssh import SSHCloud
from mlcloud.cluster.headspec import HeadSpec, Machine, Runtime
from mlcloud.cluster.offers import Offer
from mlcloud.cluster.records import now
from mlcloud.cluster.specification import from_yaml
from mlcloud.config import Settings
from mlcloud.errors import CloudRefused, Conflict, ConnectionFailed, CredentialsMissing, NoCapacity
from tests import netns
from tests.live import ROOT, until

needs_machines = pytest.mark.skipif(bool(netns.why_not()), reason=netns.why_not() or "-")


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("key") / "key"
    ssh.make_key(path, "the user")
    return path


@pytest.fixture(scope="module")
def machine(key: Path) -> Iterator[netns.Machine]:
    with netns.machines("m", public_key=key.with_name("key.pub").read_text()) as made:
        yield made["m"]


@pytest.fixture
def target(machine: netns.Machine, key: Path, tmp_path: Path) -> ssh.Target:
    return ssh.Target(machine.address, "root", tmp_path / "known_hosts", key=key)


def script(instance: str, runtime: Runtime, *, cluster: str = "one") -> str:
    node = {
        "id": instance,
        "node_type": "cpu1",
        "resources": {"CPU": 1},
        "labels": {},
        "offer": {"market": "on-demand"},
        "join": "the-join-token",
        # Nobody is there: its agent waits for a head that is still starting.
        "gateway": {"url": "https://127.0.0.1:9", "certificate": CERTIFICATE},
    }
    return bootstrap.worker(
        cluster=cluster,
        cluster_id=f"{cluster}-0",
        instance=instance,
        node=node,
        runtime=runtime,
        version=__version__,
    )


HERE = Runtime(sys.executable, variables={"PYTHONPATH": str(ROOT)})
CERTIFICATE = """-----BEGIN CERTIFICATE-----
MIIBfTCCASOgAwIBAgIUA==
-----END CERTIFICATE-----
"""


# --- what ssh says --------------------------------------------------------------------------------


@needs_machines
def test_a_key_that_is_not_taken(target: ssh.Target, tmp_path: Path) -> None:
    ssh.make_key(tmp_path / "other", "somebody else")
    with pytest.raises(CredentialsMissing, match=r"does not take the key .*other for root: name"):
        ssh.run(replace(target, key=tmp_path / "other"), "true")


@needs_machines
def test_a_machine_that_is_away(target: ssh.Target, machine: netns.Machine) -> None:
    with pytest.raises(NoCapacity, match=r"cannot be reached: Connection refused"):
        ssh.run(replace(target, port=23), "true")
    machine.cut()
    try:
        with pytest.raises(NoCapacity, match=r"cannot be reached: (Connection timed out|No route)"):
            ssh.run(replace(target, connect_s=1), "true")
    finally:
        machine.mend()


@needs_machines
def test_a_changed_host_key_gets_nothing(target: ssh.Target, machine: netns.Machine) -> None:
    assert ssh.run(target, "echo $HOME").strip() == str(machine.home)
    machine.new_host_key()
    machine.restart_sshd()
    proof = machine.home / "was-here"
    with pytest.raises(CloudRefused, match=r"another host key .* nothing was sent.*ssh-keygen -f"):
        ssh.run(target, f"touch {proof}")
    assert not proof.exists()
    told = ssh.run(replace(target, known_hosts=target.known_hosts.with_name("new")), "echo in")
    assert told == "in\n"


@needs_machines
def test_a_pinned_machine_must_be_known(target: ssh.Target) -> None:
    with pytest.raises(CloudRefused, match="host key"):
        ssh.run(replace(target, pinned=True), "true")


@needs_machines
def test_rights_that_cannot_be_had(target: ssh.Target) -> None:
    missing = ssh.run(target, "command -v sudo >/dev/null && echo there || echo missing").strip()
    if missing == "there":
        pytest.skip("root may use sudo here")
    with pytest.raises(CloudRefused, match="root's rights cannot be had there"):
        ssh.run(replace(target, sudo=True), "true")


@needs_machines
def test_a_script_is_not_on_a_command_line(target: ssh.Target) -> None:
    secret = "s3cr3t-of-this-test"
    done = ssh.run(target, f"token={secret}\ngrep -la '[s]{secret[1:]}' /proc/*/cmdline; :")
    assert done == ""


# --- becoming a node, and none again --------------------------------------------------------------


@needs_machines
def test_what_a_bootstrap_misses_is_said(
    target: ssh.Target, machine: netns.Machine, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    (broken / "mlcloud").mkdir(parents=True)
    (broken / "mlcloud" / "__init__.py").write_text("raise ImportError('not whole')")
    with pytest.raises(CloudRefused, match="there is no /nowhere/python on this machine"):
        ssh.run(target, script("i-1", Runtime("/nowhere/python")))
    assert "/nowhere" in (machine.home / ".mlcloud-node/one-0/i-1/failed").read_text()
    bare = Runtime(sys.executable, variables={"PYTHONPATH": str(broken)})
    with pytest.raises(CloudRefused, match=r"does not start with .*: ImportError: not whole"):
        ssh.run(target, script("i-1", bare))
    ssh.run(target, bootstrap.ending(bootstrap.MARK, "i-1", folders="one-0/i-1"))
    assert not (machine.home / ".mlcloud-node").exists()


@needs_machines
def test_one_node_on_one_machine(target: ssh.Target, machine: netns.Machine, key: Path) -> None:
    pid = ssh.run(target, script("i-1", HERE))
    assert ssh.run(target, script("i-1", HERE)) == pid, "a second run starts a second agent"
    with pytest.raises(NoCapacity, match=r"in use by the cluster one \(node i-1\)"):
        ssh.run(target, script("i-2", HERE, cluster="two"))
    node = machine.home / ".mlcloud-node/one-0/i-1/node.json"
    assert node.stat().st_mode & 0o777 == 0o600
    assert int(pid) in machine.pids()
    for name, folder in (("i-2", "two-0/i-2"), ("i-1", "one-0/i-1")):
        end = bootstrap.ending(bootstrap.MARK, name, folders=folder, claims=f"^{name} ")
        ssh.run(target, end)
    assert machine.pids() == []
    assert not (machine.home / ".mlcloud-node").exists()


def test_a_head_starts_one_keeper_at_each_boot(tmp_path: Path) -> None:
    """Several may try at once; a number that is another process's by now is no keeper; and a keeper
    that is done is not started again."""
    python = tmp_path / "python"
    answers = f"-c) echo {__version__};; *) echo $$ >>{tmp_path}/kept; sleep 60;;"
    python.write_text(f"#!/bin/sh\ncase $1 in {answers} esac\n")
    (tmp_path / "shutdown").write_text("#!/bin/sh\n")  # not this computer's
    for each in (python, tmp_path / "shutdown"):
        each.chmod(0o755)
    script = bootstrap.head(
        cluster="one",
        cluster_id="one-0",
        instance="head-one-0",
        files={"token": "secret"},
        variables={"MLCLOUD_STORE": "s3://b/a b"},
        runtime=Runtime(str(python)),
        version=__version__,
    )
    (tmp_path / "head.sh").write_text(script)
    boot = bootstrap.deserted("one", 10_000).replace("/var/lib/cloud", str(tmp_path))
    (tmp_path / "boot.sh").write_text(boot)
    here = {"HOME": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def run(name: str, count: int = 1) -> None:
        running = [subprocess.Popen(["sh", str(tmp_path / name)], env=here) for _ in range(count)]
        assert [each.wait(20) for each in running] == [0] * count

    def started() -> list[int]:
        return [int(line) for line in (tmp_path / "kept").read_text().split()]

    folder = tmp_path / ".mlcloud-node" / "one-0" / "head"
    try:
        run("head.sh")
        run("head.sh")
        (first,) = started()
        assert (folder / "start.sh").stat().st_mode & 0o077 == 0
        os.killpg(first, signal.SIGKILL)
        (folder / "pid").write_text(str(os.getpid()))  # as after a reboot
        run("boot.sh", 4)
        _, second = started()
        os.killpg(second, signal.SIGKILL)
        (folder / "start.sh").unlink()  # as the keeper does at its end
        run("boot.sh")
        assert len(started()) == 2
    finally:
        while left := _of_home(tmp_path):
            for each in left:
                each.kill()
            time.sleep(0.05)


def _of_home(home: Path) -> list[psutil.Process]:
    """Those that live: one that waits to be reaped shows no environment."""
    running = psutil.process_iter(["environ"])
    return [each for each in running if (each.info["environ"] or {}).get("HOME") == str(home)]


@needs_machines
def test_the_cloud_of_ones_own_machines(
    target: ssh.Target, machine: netns.Machine, tmp_path: Path
) -> None:
    cloud = SSHCloud(
        tmp_path,
        [Machine(machine.address, 8, 2**34, ("A10G", 2), "0.40")],
        cluster_id="one-0",
        known_hosts=target.known_hosts,
        key=target.key,
    )
    (offer,) = cloud.offers()
    assert (offer.accelerator, offer.accelerator_count) == ("A10G", 2)
    assert (offer.usd_per_hour, offer.simulated) == (Decimal("0.40"), False)
    request = LaunchRequest("a10g", {}, instance_id="i-9", bootstrap=script("i-9", HERE))
    instance = cloud.launch(offer, request)
    assert instance.private_ip == machine.address
    assert not cloud.free(offer)
    with pytest.raises(NoCapacity, match="in use by i-9 of this cluster"):
        cloud.launch(offer, request)
    (seen,) = cloud.instances()
    assert (seen.id, seen.alive) == ("i-9", True)

    machine.kill()
    (seen,) = cloud.instances()
    assert not seen.alive
    cloud.terminate("i-9", "idle")
    assert cloud.free(offer)
    assert cloud.instances() == []
    assert not (machine.home / ".mlcloud-node").exists()
    cloud.terminate("i-9", "again")


@needs_machines
def test_a_machine_that_was_away_is_cleared_when_it_is_back(
    target: ssh.Target, machine: netns.Machine, tmp_path: Path
) -> None:
    made = [Machine(machine.address, 1, 2**30)]
    cloud = SSHCloud(
        tmp_path, made, cluster_id="one-0", known_hosts=target.known_hosts, key=target.key
    )
    (offer,) = cloud.offers()
    cloud.launch(offer, LaunchRequest("c", {}, instance_id="i-9", bootstrap=script("i-9", HERE)))
    machine.cut()
    (seen,) = cloud.instances()
    assert "cannot be reached" in seen.reason
    with pytest.raises(NoCapacity):
        cloud.terminate("i-9", seen.reason)
    assert not cloud.free(offer)
    machine.mend()
    until(lambda: cloud.instances() == [] and cloud.free(offer), "the machine is free again")
    assert machine.pids() == []


@needs_machines
def test_keys_are_let_in_once_and_forgotten(target: ssh.Target, machine: netns.Machine) -> None:
    keys = machine.home / ".ssh" / "authorized_keys"
    before = keys.read_text()
    line = "ssh-ed25519 AAAA mlcloud cluster it's one"
    for _ in range(2):
        ssh.run(target, bootstrap.authorizing(line))
    assert keys.read_text() == before + line + "\n"
    ssh.run(target, bootstrap.forgetting(line))
    assert keys.read_text() == before


# --- the tunnel -----------------------------------------------------------------------------------


@pytest.fixture
def server(machine: netns.Machine, tmp_path: Path) -> Iterator[int]:
    """An HTTP server on the machine's own loopback; its port."""
    inside = ["ip", "netns", "exec", machine.namespace]
    with subprocess.Popen(
        [*inside, sys.executable, "-m", "http.server", "8443", "--bind", "127.0.0.1"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        until(lambda: "127.0.0.1:8443" in machine.listening(), "the server listens")
        yield 8443
        process.kill()


@needs_machines
def test_a_tunnel_comes_back(target: ssh.Target, machine: netns.Machine, server: int) -> None:
    import httpx

    tunnel = Tunnel(target, server)
    try:
        url = tunnel.open()
        assert httpx.get(url, trust_env=False).is_success
        first = tunnel.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        until(lambda: tunnel.pid != first, "another ssh runs")
        assert tunnel.open() == url
        assert httpx.get(url, trust_env=False).is_success

        machine.stop_sshd()
        second = tunnel.pid
        assert second is not None
        os.kill(second, signal.SIGKILL)
        until(lambda: tunnel.pid != second, "it is gone")
        with pytest.raises(ConnectionFailed, match="cannot be reached: Connection refused"):
            tunnel.open(2)
        machine.restart_sshd()
        assert tunnel.open() == url
    finally:
        tunnel.close()
        if machine.sshd is None:
            machine.restart_sshd()
    assert tunnel.pid is None


@needs_machines
def test_a_tunnel_that_is_refused_says_so_at_once(target: ssh.Target, tmp_path: Path) -> None:
    ssh.make_key(tmp_path / "other", "somebody else")
    tunnel = Tunnel(replace(target, key=tmp_path / "other"), 8443)
    began = time.monotonic()
    with pytest.raises(ConnectionFailed, match="does not take the key"):
        tunnel.open()
    assert time.monotonic() - began < 5
    tunnel.close()


@needs_machines
def test_a_tunnel_ends_with_its_client(target: ssh.Target, server: int) -> None:
    code = (
        "import sys, time; from pathlib import Path; from mlcloud.client.tunnel import Tunnel\n"
        "from mlcloud.cluster.ssh import Target\n"
        f"tunnel = Tunnel(Target({target.host!r}, 'root', Path({str(target.known_hosts)!r}), "
        f"key=Path({str(target.key)!r})), {server})\n"
        "tunnel.open(); print(tunnel.pid, flush=True); time.sleep(600)"
    )
    client = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env={**os.environ, **PATH}
    )
    assert client.stdout is not None
    pid = int(client.stdout.readline())
    client.kill()
    client.wait()
    until(lambda: not Path(f"/proc/{pid}").exists(), "its ssh ends")


PATH = {"PYTHONPATH": str(ROOT)}


# --- without machines -----------------------------------------------------------------------------


def test_all_interfaces_are_one(tmp_path: Path) -> None:
    """What Ray binds to all addresses is bound to the node's."""
    code = (
        "import socket\n"
        "a = socket.socket(); a.bind(('0.0.0.0', 0)); print(a.getsockname()[0])\n"
        "b = socket.socket(socket.AF_INET6)\n"
        "b.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)\n"
        "b.bind(('::', 0)); print(b.getsockname()[0])\n"
        "c = socket.socket(); c.bind(('127.0.0.1', 0)); print(c.getsockname()[0])\n"
        "try: a.bind(('127.0.0.1', 1))\n"
        "except OSError as error: print(error.errno > 0)\n"
    )
    assert onlyhere.preload("127.0.0.1", tmp_path, {}) == {}
    wanted = onlyhere.preload("10.255.255.254", tmp_path, {"LD_PRELOAD": "/other.so"})
    if not wanted:
        pytest.skip("there is no library for this kind of machine")
    assert wanted["LD_PRELOAD"] == f"{tmp_path / onlyhere.NAME}:/other.so"
    assert onlyhere.removed(wanted) == {"LD_PRELOAD": "/other.so"}

    # Ours is not 127.0.0.0/8, and 10.255.255.254 is no address of this computer's.
    library = (tmp_path / onlyhere.NAME).read_bytes()
    (tmp_path / onlyhere.NAME).write_bytes(
        library.replace(b"\x0a\xff\xff\xfe", b"\x7f\x00\x00\x05")
    )
    environment = {**os.environ, "LD_PRELOAD": str(tmp_path / onlyhere.NAME)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.split() == ["127.0.0.5", "::ffff:127.0.0.5", "127.0.0.1", "True"]


class Elsewhere(Cloud):
    """A cloud that notes what it is asked for."""

    name = "elsewhere"

    def __init__(self) -> None:
        self.launched: list[LaunchRequest] = []
        self.gone: dict[str, str] = {}
        self.ended: list[str] = []

    def offers(self) -> list[Offer]:
        return [OFFER]

    def launch(self, offer: Offer, request: LaunchRequest) -> Instance:
        self.launched.append(request)
        return Instance(f"vm-{len(self.launched)}", request.node_type, offer, now())

    def instances(self) -> list[Instance]:
        return [
            Instance(
                f"vm-{number}",
                each.node_type,
                OFFER,
                now(),
                ended_at=now() if f"vm-{number}" in self.gone else None,
                reason=self.gone.get(f"vm-{number}", ""),
            )
            for number, each in enumerate(self.launched, 1)
        ]

    def terminate(self, instance_id: str, reason: str) -> None:
        self.ended.append(instance_id)


OFFER = Offer(
    *("elsewhere", "r", "z", "t", 1, 2**30, None, 0, "on-demand", Decimal(1)),
    simulated=True,
    source="a test",
    as_of=date(2026, 11, 1),
)


@pytest.fixture
def headed(tmp_path: Path) -> Headed:
    certificate = tmp_path / "tls.crt"
    certificate.write_text(CERTIFICATE)
    spec = HeadSpec("lab", "lab-0", "elsewhere", "10.0.0.5", {})
    root = tmp_path / "cloud"
    root.mkdir()
    settings = {
        "gcs_port": 1,
        "object_store_bytes": 1,
        "dead_man_s": 1,
        "notice_poll_s": 1,
        "ray_environment": {"RAY_AUTH_TOKEN": "the-ray-token"},
    }
    (root / "cluster.json").write_text(json.dumps(settings))
    return Headed(root, spec, Elsewhere(), certificate, watching=True)


def test_a_join_token_is_good_for_one_node_once(headed: Headed) -> None:
    elsewhere: Any = headed.beyond
    node = headed.launch(OFFER, LaunchRequest("cpu1", {"CPU": 1}))
    other = headed.launch(OFFER, LaunchRequest("cpu1", {"CPU": 1}))
    text = elsewhere.launched[0].bootstrap
    token = json.loads(re.search(r'"join": ("[^"]+")', text)[1])  # type: ignore[index]
    # Of secrets, user data holds that token alone.
    kept = headed.records.secrets_of(node.id)
    assert not [each for each in (*kept.values(), "the-ray-token") if each in text]

    assert headed.join(node.id, "guessed") is None
    assert headed.join(other.id, token) is None
    answer = headed.join(node.id, token)
    assert answer is not None
    assert answer["node_token"] == kept["node_token"]
    assert answer["settings"]["ray_environment"]["RAY_AUTH_TOKEN"] == "the-ray-token"
    assert headed.join(node.id, token) == answer, "its answer may have been lost on the way"
    assert headed.heard(node.id)
    assert headed.join(node.id, token) is None


def test_a_node_that_is_quiet_is_looked_for(
    headed: Headed, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere: Any = headed.beyond
    monkeypatch.setattr("mlcloud.cluster.clouds.headed.QUIET_S", 0.05)
    monkeypatch.setattr("mlcloud.cluster.clouds.headed.LOOK_AGAIN_S", 0.01)
    node = headed.launch(OFFER, LaunchRequest("cpu1", {"CPU": 1}))
    assert headed.heard(node.id)
    time.sleep(0.2)
    assert headed.instances()[0].alive, "quiet, but there"
    elsewhere.gone["vm-1"] = "its power failed"
    until(lambda: not headed.instances()[0].alive, "it is found to be gone")
    assert headed.instances()[0].reason == "its power failed"
    assert not headed.heard(node.id), "given up: it shall end itself"
    until(lambda: elsewhere.ended == ["vm-1"], "it is ended out there too")


def test_a_bootstrap_that_failed_ends_its_node(headed: Headed) -> None:
    node = headed.launch(OFFER, LaunchRequest("cpu1", {"CPU": 1}))
    headed.failed(node.id, "there is no python3 on this machine")
    (seen,) = headed.instances()
    assert (seen.alive, seen.reason) == (False, "there is no python3 on this machine")


def test_temporary_folders_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/var/folders/" + "x" * 60)
    sockets = nodefile.temporary_folder("i-1") / "session_2026-11-26_21-48-31_340440_1234567"
    assert len(str(sockets / "sockets" / "plasma_store")) < 107


def test_a_specification_becomes_a_cluster_of_machines() -> None:
    told = from_yaml(
        "name: lab\ncloud: ssh\nstore: s3://bucket/lab\nsetup: nvidia-smi\n"
        "ssh:\n  user: me\n  key: ~/.ssh/lab\n  hosts:\n"
        "  - {host: front, cpus: 4, memory: 16GB}\n"
        "  - {host: gpu1, cpus: 32, memory: 256GB, gpu: 'A10G:2', usd_per_hour: 0.5, port: 2222}\n"
        "  - {host: cpu1, cpus: 8, memory: 32GB, user: you}\n"
        "nodes: [{gpu: 'A10G:1', max: 3}]\nidle: {node: 5m}\n"
    )
    made = of_specification(told)
    head, worker = made.machines
    assert (head.host, head.user) == ("front", "me")
    assert (worker.host, worker.port, worker.gpu) == ("gpu1", 2222, ("A10G", 2))
    assert worker.usd_per_hour == "0.5"
    assert made.workers == (worker,)
    assert made.key == Path("~/.ssh/lab").expanduser()
    assert made.settings["MLCLOUD_NODE_IDLE"] == "300s"
    assert made.settings["MLCLOUD_MAX_NODES"] == "1"
    assert made.runtime.setup == ("nvidia-smi",)
    assert type(told).model_validate(made.specification) == told


@needs_machines
def test_a_cluster_yaml_that_cannot_come_up_is_noted_and_cleared(
    target: ssh.Target, machine: netns.Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up as far as the machine allows, with its last words; a change is refused; down clears it."""
    monkeypatch.setenv("MLCLOUD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    text = (
        "name: lab\ncloud: ssh\nstore: s3://bucket/lab\nsetup: echo no driver >&2; false\n"
        f"ssh:\n  user: root\n  key: {target.key}\n  hosts:\n"
        f"  - {{host: {machine.address}, cpus: 1, memory: 2GB}}\n"
    )
    cluster = mlcloud.Cluster.from_yaml(text)
    with pytest.raises(CloudRefused, match="setup: this failed: echo no driver"):
        cluster.up()
    assert notes.known(Settings()) == ["lab"]
    assert "mlcloud cluster lab" in (machine.home / ".ssh/authorized_keys").read_text()
    with pytest.raises(Conflict, match=r"setup.*no driver.*true \(for nodes launched"):
        mlcloud.Cluster.from_yaml(text.replace("echo no driver >&2; false", "'true'")).up()
    cluster.down()
    assert notes.known(Settings()) == []
    assert "mlcloud cluster lab" not in (machine.home / ".ssh/authorized_keys").read_text()
    assert not (machine.home / ".mlcloud-node").exists()
    assert machine.pids() == []
