"""The gateway's life: one per home however many race for it, ended by idleness or by `down`."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import mlcloud
from mlcloud import errors
from mlcloud.client.embedded import down
from tests.live import Embedded, start_python, until

pytestmark = pytest.mark.cluster

OwnCluster = Callable[..., Embedded]


def test_six_processes_race_and_one_gateway_starts(own_cluster: OwnCluster) -> None:
    embedded = own_cluster()
    code = (
        "import json, mlcloud\nclient = mlcloud.connect()\n"
        "print(client.url)\nprint(client._connection.get('/healthz')['pid'])"
    )
    racers = [start_python(embedded, code) for _ in range(6)]
    answers = [racer.communicate(timeout=120) for racer in racers]
    assert len({out for out, _ in answers}) == 1, answers
    assert answers[0][0].split() == [embedded.connection["url"], str(embedded.connection["pid"])]
    gateways = [p for p in embedded.processes() if "mlcloud.gateway" in p.command]
    assert len(gateways) == 1
    until(embedded.records, "the head is launched")
    assert len([each for each in embedded.records() if each["node_type"] == "head"]) == 1


def test_it_ends_itself_when_nobody_uses_it(own_cluster: OwnCluster) -> None:
    embedded = own_cluster(idle_end="3s")
    embedded.connect()
    until(lambda: embedded.connect().cluster.status().info.state == "running", "it runs", 60)
    seen = embedded.processes()
    assert len(seen) >= 3
    until(lambda: not any(each.alive for each in seen), "it has ended by itself", timeout=40)
    assert not embedded.settings.connection_file.exists()
    assert not embedded.settings.ray_dir.exists()


def test_a_gateway_that_stood_still_answers_those_who_wait(own_cluster: OwnCluster) -> None:
    embedded = own_cluster(idle_end="3s")
    embedded.connect()
    pid = embedded.connection["pid"]
    os.kill(pid, signal.SIGSTOP)
    with embedded.http() as http, ThreadPoolExecutor() as pool:
        try:
            waiting = pool.submit(http.get, "/v1/nodes")
            time.sleep(4)  # nobody was served for longer than `idle_end`
        finally:
            os.kill(pid, signal.SIGCONT)
        assert waiting.result().is_success
        time.sleep(2)
        assert http.get("/healthz").json()["pid"] == pid


def test_connecting_while_the_one_before_ends(own_cluster: OwnCluster) -> None:
    embedded = own_cluster()
    embedded.settings.make_folders()
    with open(embedded.settings.lock_file, "w") as lock, ThreadPoolExecutor() as pool:
        fcntl.flock(lock, fcntl.LOCK_EX)
        connecting = pool.submit(embedded.connect)
        time.sleep(3)
        assert not connecting.done()
        fcntl.flock(lock, fcntl.LOCK_UN)
        assert connecting.result(timeout=60).url == embedded.connection["url"]


def test_down_while_it_still_starts(own_cluster: OwnCluster) -> None:
    embedded = own_cluster()
    embedded.connect()
    assert down(embedded.settings, timeout=15)
    assert not embedded.left()


def test_down_of_nothing(own_cluster: OwnCluster) -> None:
    embedded = own_cluster()
    assert not down(embedded.settings)


def test_the_command_line(own_cluster: OwnCluster) -> None:
    embedded = own_cluster()

    def mlc(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", "from mlcloud.cli import main; main()", *words],
            capture_output=True,
            text=True,
            env=embedded.environment,
            timeout=120,
        )

    up = mlc("up")
    assert up.returncode == 0, up.stderr
    assert "embedded" in up.stdout
    assert "cluster" in mlc("status").stdout
    assert mlc("sessions").returncode == 0
    assert "simulated" in mlc("cost").stdout
    wrong = mlc("park", "nobody")
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("NotFound: ")
    assert "Traceback" not in wrong.stderr
    assert "down" in mlc("down").stdout
    assert "nothing" in mlc("down").stdout


def test_a_port_in_use_is_named(own_cluster: OwnCluster) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        own_cluster(port=str(port))
        with pytest.raises(errors.ConnectionFailed, match=f"port {port}.*in use.*MLCLOUD_PORT"):
            mlcloud.connect()


def test_a_port_that_is_asked_for_is_used(own_cluster: OwnCluster) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    embedded = own_cluster(port=str(port))
    assert embedded.connect().url == f"http://127.0.0.1:{port}"


def test_a_connection_file_left_by_a_dead_one(own_cluster: OwnCluster) -> None:
    embedded = own_cluster()
    file = embedded.settings.connection_file
    for text in (
        json.dumps({"url": "http://127.0.0.1:9", "token": "x", "pid": 1}),
        "half a fi",
        json.dumps([]),
        json.dumps({"url": "http://127.0.0.1:9"}),
    ):
        file.write_text(text)
        assert mlcloud.connect().sessions() == []
        embedded.kill_gateway()


@pytest.mark.parametrize(
    ("name", "value"), [("IDLE_END", "soon"), ("PORT", "99999"), ("STORE", "nowhere://x")]
)
def test_a_bad_setting_is_named(tmp_path: Path, name: str, value: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLCLOUD_HOME", str(tmp_path))
        patch.setenv(f"MLCLOUD_{name}", value)
        with pytest.raises(errors.MLCloudError, match=f"(?i){name}|{value}"):
            mlcloud.connect()
