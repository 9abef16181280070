"""Finding and starting the embedded gateway: one per home, however many notebooks race for it.

    connection file, answered ──► use it
    else: take the start lock ─► look again ─► start a child ─► wait until it listens ─► use it
    who only waits (`recover`)    └► are there nodes? without any, the cluster is down: no child

The child is its own session: closing the notebook does not end it. Ending it is `down()`, which
also works when the gateway is dead and only its nodes are left.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from mlcloud.client.connection import Address, Connection
from mlcloud.cluster.clouds.local import LocalCloud, importable
from mlcloud.cluster.in_force import read_record, write_record
from mlcloud.config import ALREADY_RUNNING, Settings
from mlcloud.environment.index import FILE as PIP_CONF
from mlcloud.errors import ClusterDown, ConnectionFailed


def connection(settings: Settings) -> Connection:
    """To the gateway of this home, which is started where there is none."""
    return Connection(
        lambda: find(settings),
        embedded=True,
        look=lambda: running(settings),
        recover=lambda: recover(settings),
    )


def find(settings: Settings) -> Address:
    """The running gateway's address, or a new one's. Raises `ConnectionFailed`."""
    address = running(settings)
    if address is not None:
        return address
    settings.make_folders()
    with _locked(settings.start_lock_file):
        return running(settings) or _start(settings)


def recover(settings: Settings) -> Address:
    """The gateway's address; one that died is started again as long as nodes of it are up.

    Raises `ClusterDown` where none is: what calls this waits for something, and starts no cluster.
    """
    address = running(settings)
    if address is not None:
        return address
    if settings.home.is_dir():
        settings.make_folders()
        with _locked(settings.start_lock_file):  # whoever takes it down now is waited for
            address = running(settings)
            if address is not None:
                return address
            if any(each.alive for each in LocalCloud(settings.cloud_root).instances()):
                return _start(settings)
    raise ClusterDown("the embedded cluster is down: `mlcloud.connect()` brings it up again")


def running(settings: Settings) -> Address | None:
    """The gateway of this home, if one answers and takes our token."""
    try:
        connection = json.loads(settings.connection_file.read_text())
        address = Address(connection["url"], connection["token"])
        response = httpx.get(
            f"{address.url}/v1/nodes",
            headers=address.headers,
            timeout=5,
            trust_env=False,
        )
    except (OSError, ValueError, KeyError, TypeError, httpx.TransportError, httpx.InvalidURL):
        return None
    return address if response.is_success else None


def _start(settings: Settings) -> Address:
    settings.connection_file.unlink(missing_ok=True)
    record = read_record(settings)
    start = settings.log_file.stat().st_size if settings.log_file.exists() else 0
    child = _spawn(settings)
    until = time.monotonic() + settings.start_timeout.total_seconds()
    while time.monotonic() < until:
        if child.poll() == ALREADY_RUNNING:  # the one before it is about to end
            time.sleep(0.2)
            child = _spawn(settings)
        elif child.poll() is not None:
            raise ConnectionFailed(
                f"the embedded gateway did not start: {_since(settings.log_file, start)}"
            )
        address = running(settings)
        if address is not None:
            if record:
                write_record(settings, {**read_record(settings), "url": address.url})
            return address
        time.sleep(0.05)
    child.kill()
    raise ConnectionFailed(
        f"the embedded gateway did not answer within {settings.start_timeout}; "
        f"its log is {settings.log_file}"
    )


def _spawn(settings: Settings) -> subprocess.Popen[bytes]:
    with open(settings.log_file, "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "mlcloud.gateway"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=settings.home,
            env={**os.environ, **importable(), **_named(settings), **_explicit(settings)},
            start_new_session=True,
        )


def _explicit(settings: Settings) -> dict[str, str]:
    """What was set in Python rather than in the environment: the child must see the same."""
    return {"MLCLOUD_HOME": str(settings.home.resolve())}


def _named(settings: Settings) -> dict[str, str]:
    """What a specification says of this home's cluster, until it is taken down."""
    named = read_record(settings).get("variables")
    return {str(key): str(named[key]) for key in named} if isinstance(named, dict) else {}


def _since(log: Path, start: int) -> str:
    with open(log, "rb") as file:
        file.seek(start)
        text = file.read().decode(errors="replace").strip()
    return text[-2000:] or f"see {log}"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def down(settings: Settings, *, timeout: float = 60.0) -> bool:
    """End the embedded cluster, its gateway first; True if there was anything to end.

    Safe at any moment: with no gateway left, the nodes are ended by their records.
    """
    import shutil

    if not settings.home.is_dir():
        return False
    settings.make_folders()
    found = False
    with _locked(settings.start_lock_file):
        address = running(settings)
        if address is not None:
            found = True
            response = httpx.post(
                f"{address.url}/v1/down",
                headers=address.headers,
                timeout=timeout,
                trust_env=False,
            )
            response.raise_for_status()
        _wait_for_end(settings, timeout)
        cloud = LocalCloud(settings.cloud_root)
        for instance in cloud.instances():
            if instance.alive:
                found = True
                cloud.terminate(instance.id, "the cluster was taken down")
        shutil.rmtree(settings.ray_dir, ignore_errors=True)
        with contextlib.suppress(OSError):
            settings.ray_dir.parent.rmdir()
        settings.connection_file.unlink(missing_ok=True)
        settings.record_file.unlink(missing_ok=True)
        (settings.home / PIP_CONF).unlink(missing_ok=True)
    return found


def _wait_for_end(settings: Settings, timeout: float) -> None:
    """The gateway holds its lock until its very end."""
    until = time.monotonic() + timeout
    with open(settings.lock_file, "w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > until:
                    raise ConnectionFailed(
                        f"the gateway does not end; see {settings.log_file}"
                    ) from None
                time.sleep(0.05)
