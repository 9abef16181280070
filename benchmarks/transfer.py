"""A large array into a session: time, memory and bytes, beside Ray Client and plain HTTP.

    Ray Client            `ray.put` through `ray://` of a Ray of its own
    HTTP, one PUT         http.client, one streaming body, to a sink that counts and forgets
    HTTP, httpx           the same by httpx, in pieces of 1 MiB
    HTTP, object route    the gateway's own route by plain httpx, one chunk after the other
    upload                mlcloud's own way into the store: named by hash, verified, visible
    into a session        a cell that reads the array, from `run` to its end
    again                 the same cell, array unchanged
    another session       the same content from another process to another session
    back                  `session["x"]`

The sink is a uvicorn app with the gateway's settings. Each measurement is a fresh process with
fresh content; rounds go round, so a noisy machine hits all alike. `extra MB` is the process's peak
beyond what it held before (the array that comes back included). `sent MB` is counted at the
process's own sockets. Between rounds the store is emptied, so its pages are used again.

    python benchmarks/transfer.py [--mb 1000] [--rounds 3] [--no-ray]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from report import report

CHUNK = 16 * 2**20
RAY_TRIES = 3
STEP = 2**20
Measure = dict[str, float]


# --- one measurement, in a process of its own -----------------------------------------------------


class Watch:
    """Seconds, peak memory beyond what was there, and bytes sent, of a block."""

    def __init__(self) -> None:
        self.result: Measure = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        import psutil

        me = psutil.Process()
        before = peak = me.memory_info().rss
        sent = SENT[0]
        end = threading.Event()

        def watch() -> None:
            nonlocal peak
            while not end.wait(0.005):
                peak = max(peak, me.memory_info().rss)

        watcher = threading.Thread(target=watch)
        watcher.start()
        start = time.perf_counter()
        try:
            yield
        finally:
            self.result[f"{name} s"] = time.perf_counter() - start
            end.set()
            watcher.join()
        self.result[f"{name} extra"] = peak - before
        self.result[f"{name} sent"] = SENT[0] - sent


SENT = [0]


def count_sockets() -> None:
    """Count what this process's Python sockets send."""
    original = {name: getattr(socket.socket, name) for name in ("send", "sendall")}

    def counted(name: str) -> Callable[..., Any]:
        def call(self: socket.socket, data: Any, *rest: Any) -> Any:
            answer = original[name](self, data, *rest)
            SENT[0] += memoryview(data).nbytes if answer is None else answer
            return answer

        return call

    for name in original:
        setattr(socket.socket, name, counted(name))


def array(size: int, seed: int | None) -> Any:
    import numpy as np

    return np.random.default_rng(seed).integers(0, 2**63, size // 8, dtype=np.int64)


def child(task: dict[str, Any]) -> Measure:
    count_sockets()
    x = array(task["size"], task.get("seed"))
    watch = Watch()
    CHILDREN[task["kind"]](task, x, watch)
    return watch.result


def ray_client(task: dict[str, Any], x: Any, watch: Watch) -> None:
    import ray

    ray.init(task["url"], logging_level="ERROR")
    ray.get(ray.put(b"warm"))
    with watch("put"):
        held = ray.put(x)
    del held
    ray.shutdown()


def one_put(task: dict[str, Any], x: Any, watch: Watch) -> None:
    import http.client

    lane = http.client.HTTPConnection("127.0.0.1", task["port"])
    lane.connect()
    with watch("put"):
        body = memoryview(x).cast("B")
        lane.putrequest("PUT", "/sink")
        lane.putheader("Content-Length", str(len(body)))
        lane.endheaders()
        for at in range(0, len(body), STEP):
            lane.send(body[at : at + STEP])
        assert int(lane.getresponse().read()) == x.nbytes


def by_httpx(task: dict[str, Any], x: Any, watch: Watch) -> None:
    import httpx

    body = memoryview(x).cast("B")
    pieces = (bytes(body[at : at + STEP]) for at in range(0, len(body), STEP))
    with httpx.Client(trust_env=False, timeout=600) as http, watch("put"):
        url = f"http://127.0.0.1:{task['port']}/sink"
        answer = http.put(url, content=pieces, headers={"Content-Length": str(len(body))})
        assert answer.json() == x.nbytes


def object_route(task: dict[str, Any], x: Any, watch: Watch) -> None:
    import httpx
    from blake3 import blake3

    body = memoryview(x).cast("B")
    headers = {"Authorization": f"Bearer {task['token']}"}
    with (
        httpx.Client(base_url=task["url"], headers=headers, trust_env=False, timeout=600) as http,
        watch("put"),
    ):
        for at in range(0, len(body), CHUNK):
            chunk = bytes(body[at : at + CHUNK])
            answer = http.put(f"/v1/objects/{blake3(chunk).hexdigest()}", content=chunk)
            assert answer.status_code == 204


def upload(task: dict[str, Any], x: Any, watch: Watch) -> None:
    import mlcloud
    from mlcloud.client import objects
    from mlcloud.client.shipping import LocalSide

    connection = mlcloud.connect()._connection
    side = LocalSide({"x": x}, "benchmark")
    with watch("put"):
        objects.upload(connection, side.prepare("x").groups)


def into_session(task: dict[str, Any], x: Any, watch: Watch) -> None:
    import mlcloud

    here: dict[str, Any] = {"x": x}
    session = mlcloud.connect().session(task["session"], namespace=here)
    session.run("1", quiet=True)
    with watch("put"):
        session.run("last = int(x[-1])", quiet=True)
    assert here["last"] == x[-1]
    with watch("again"):
        session.run("first = int(x[0])", quiet=True)
    assert here["first"] == x[0]
    if task.get("back"):
        with watch("back"):
            back = session["x"]
        assert (back == x).all()
    session.run("del x", quiet=True)


CHILDREN: dict[str, Callable[[dict[str, Any], Any, Watch], None]] = {
    "ray": ray_client,
    "one put": one_put,
    "httpx": by_httpx,
    "route": object_route,
    "upload": upload,
    "session": into_session,
}


def measure(kind: str, size: int, **task: Any) -> Measure:
    """Run one measurement in a fresh process, once the disk has what the one before left."""
    os.sync()
    done = subprocess.run(
        [sys.executable, __file__, "--child", json.dumps({"kind": kind, "size": size, **task})],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    answer: Measure = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


# --- what they are measured against ---------------------------------------------------------------


def serve_sink(listener: socket.socket) -> None:
    """Counts a body and forgets it; the gateway's server, with its settings."""
    import asyncio

    import uvicorn
    from fastapi import FastAPI, Request

    app = FastAPI()

    async def sink(request: Request) -> int:
        size = 0
        async for piece in request.stream():
            size += len(piece)
        return size

    # A local annotation cannot be resolved by name: hand FastAPI the class.
    sink.__annotations__["request"] = Request
    app.put("/sink")(sink)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    asyncio.run(server.serve(sockets=[listener]))


@contextlib.contextmanager
def sink_server() -> Iterator[int]:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    listener.set_inheritable(True)
    process = subprocess.Popen(
        [sys.executable, __file__, "--sink", str(listener.fileno())],
        pass_fds=[listener.fileno()],
    )
    try:
        yield listener.getsockname()[1]
    finally:
        process.terminate()
        process.wait()
        listener.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# `ray start` as it is, but on the loopback address, which it else replaces by a network card's.
RAY_START = """
from ray._private import services
services.resolve_ip_for_localhost = lambda host: host
from ray.scripts import scripts
scripts.main()
"""


@contextlib.contextmanager
def ray_server(size: int) -> Iterator[str]:
    """A Ray head of its own with a Ray Client server, on the loopback address alone."""
    import signal

    folder = tempfile.mkdtemp(prefix="rayb-", dir="/tmp")
    port = free_port()
    # Without a token: with one, Ray 2.60's own client server does not reach its GCS.
    # The switch says that 127.0.0.1 is meant, to each of Ray's processes and to the client.
    os.environ.update(RAY_AUTH_MODE="disabled", RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0")
    process = subprocess.Popen(
        [
            *(sys.executable, "-c", RAY_START, "start", "--head", "--block"),
            *("--node-ip-address=127.0.0.1", f"--port={free_port()}", f"--temp-dir={folder}"),
            *(f"--ray-client-server-port={port}", "--include-dashboard=false", "--num-cpus=1"),
            *(f"--object-store-memory={max(2 * size, 2**28)}", "--disable-usage-stats"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        until = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert process.poll() is None, "ray start ended"
            assert time.monotonic() < until, "Ray's client server does not listen"
            time.sleep(0.2)
        yield f"ray://127.0.0.1:{port}"
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def cluster() -> Iterator[tuple[str, str, Path]]:
    """An embedded cluster with a warm session: its url, token and store."""
    with tempfile.TemporaryDirectory(prefix="mlc-bench-") as home:
        os.environ["MLCLOUD_HOME"] = home
        import mlcloud

        client = mlcloud.connect()
        session = client.session("transfer", namespace={})
        other = client.session("another", namespace={})
        try:
            for each in (session, other):
                each.run("import numpy", quiet=True)
            facts = json.loads((Path(home) / "gateway.json").read_text())
            yield facts["url"], facts["token"], Path(home) / "store"
        finally:
            client.cluster.down()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mb", type=int, default=1000, help="megabytes of the array")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-ray", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--sink", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(json.loads(options.child))))
        return
    if options.sink is not None:
        serve_sink(socket.socket(fileno=options.sink))
        return
    run(options.mb * 10**6, options.rounds, with_ray=not options.no_ray)


def run(size: int, rounds: int, *, with_ray: bool) -> None:
    found: dict[str, list[Measure]] = {}

    def take(name: str, result: Measure, part: str = "put") -> None:
        facts = {key: result[f"{part} {key}"] for key in ("s", "extra", "sent")}
        found.setdefault(name, []).append(facts)
        print(f"{name}: {facts['s']:.2f} s", file=sys.stderr, flush=True)

    with contextlib.ExitStack() as stack:
        port = stack.enter_context(sink_server())
        url, token, store = stack.enter_context(cluster())
        for number in range(rounds):
            seed = number + 1000
            take("HTTP, one PUT to a sink", measure("one put", size, port=port))
            take("HTTP, httpx to a sink", measure("httpx", size, port=port))
            take("HTTP, object route", measure("route", size, url=url, token=token))
            take("mlcloud, upload", measure("upload", size))
            result = measure("session", size, session="transfer", seed=seed, back=True)
            take("mlcloud, into a session", result)
            take("mlcloud, again", result, "again")
            take("mlcloud, back", result, "back")
            result = measure("session", size, session="another", seed=seed)
            take("mlcloud, another session", result)
            shutil.rmtree(store / "chunks", ignore_errors=True)
        if with_ray:
            take("Ray Client, put", by_ray_client(size))
    rows = table(found, size)
    report("transfer", rows, bytes=size, rounds=rounds)


def by_ray_client(size: int) -> Measure:
    """Its server starts another one for each client, and now and then that one does not come up."""
    for left in reversed(range(RAY_TRIES)):
        with ray_server(size) as url:
            try:
                return measure("ray", size, url=url)
            except subprocess.CalledProcessError:
                if not left:
                    raise
    raise AssertionError


def table(found: dict[str, list[Measure]], size: int) -> list[dict[str, Any]]:
    """Medians, and rates against the two baselines."""
    seconds = {name: statistics.median(each["s"] for each in all_) for name, all_ in found.items()}
    rows = []
    for name, all_ in found.items():
        row: dict[str, Any] = {
            "what": name,
            "s": seconds[name],
            "MB/s": size / 1e6 / seconds[name],
            "of one PUT": seconds["HTTP, one PUT to a sink"] / seconds[name],
        }
        if "Ray Client, put" in seconds:
            row["of Ray Client"] = seconds["Ray Client, put"] / seconds[name]
        row["extra MB"] = max(each["extra"] for each in all_) / 1e6
        # Ray's client sends by gRPC's own sockets, which nobody counts here.
        row["sent MB"] = "" if "Ray" in name else max(each["sent"] for each in all_) / 1e6
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
