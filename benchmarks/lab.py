"""What the JupyterLab extension costs, in Chromium, and its server's part.

    bytes       of its scripts, gzip
    start       JupyterLab from navigation to `restored`, with the extension and without, in turns:
                difference of the shortest
    frames      the longest gap between two frames while 500 sessions change 10 times a second
                and the panel is scrolled, and while 5,000 lines a second come into a log; and the
                longest task of the page, by the clock and by the processor's time it took
    forwarded   a request through the Jupyter server, beyond the same request to the gateway; also
                of a gateway elsewhere, whose certificate is pinned (a relay with TLS is one);
                the median, the quickest tenth, and the processor's time of the Jupyter server

    python benchmarks/lab.py [--rounds 9]

Other work on the machine holds all of it up. So each is told by the processor's time, too: `own`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import ssl
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import httpx
import psutil
from report import report

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from playwright.sync_api import Page, sync_playwright  # noqa: E402

import mlcloud  # noqa: E402
from mlcloud.client import pinned  # noqa: E402
from tests.browser.lab import CHROMIUM_FLAGS, EXTENSION, Lab, chromium  # noqa: E402
from tests.labserver.relay import Relay  # noqa: E402

SESSIONS, LINES, SECONDS, REQUESTS = 500, 5000, 5, 300
LINE = "line {} of a training run: loss 0.1234, accuracy 0.98, 412 img/s\n"

#: Long tasks are those over 50 ms (https://w3c.github.io/longtasks).
WATCH = """() => {
  window.gaps = []; window.tasks = [];
  let last = performance.now();
  const look = now => {
    window.gaps.push(now - last);
    last = now;
    window.raf = requestAnimationFrame(look);
  };
  window.raf = requestAnimationFrame(look);
  window.observer = new PerformanceObserver(list => {
    for (const each of list.getEntries()) window.tasks.push(each.duration);
  });
  window.observer.observe({ type: "longtask" });
}"""
WATCHED = """() => {
  cancelAnimationFrame(window.raf); window.observer.disconnect();
  const sorted = window.gaps.slice(2).sort((a, b) => a - b);
  return { frames: sorted.length, p99_ms: sorted[Math.floor(sorted.length * 0.99)],
           longest_ms: sorted[sorted.length - 1], long_tasks: window.tasks.length,
           longest_task_ms: Math.max(0, ...window.tasks) };
}"""
STATES = ("idle", "busy", "parked", "moving")


def session(i: int, state: str, **more: Any) -> dict[str, Any]:
    return {
        "id": f"s-{i}", "name": f"session-{i}", "state": state, "gpu": "A10G:1", "cpus": 4,
        "memory": None, "market": "spot", "node": "i-1", "instance_type": "g5.xlarge",
        "zone": "eu-central-1a", "usd_per_hour": "0.421", "usd": f"{time.time() % 10:.4f}",
        "simulated": True, "running": None, "queued": 0, "last_event": 0, "finished_cells": 12,
        "safe_cells": 12, "detail": "", "idle_since": "2026-01-01T00:00:00Z", **more,
    }  # fmt: skip


INFO = {
    "name": "big", "state": "running", "detail": "", "cloud": "aws", "store": "", "usd": "1",
    "usd_today": "1", "usd_per_hour": "1", "standing_usd_per_hour": "0", "simulated": True,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    rows: list[dict[str, Any]] = [size()]
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        os.environ["MLCLOUD_HOME"] = f"{folder}/home"
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        (Path(folder) / "lab").mkdir()
        lab = Lab(Path(folder) / "lab", environment)
        browser = playwright.chromium.launch(executable_path=chromium(), args=CHROMIUM_FLAGS)
        try:
            rows += start(browser, lab, rounds)
            page = browser.new_page(viewport={"width": 1400, "height": 900})
            rows += frames(browser, page, lab, Path(folder) / "trace.json")
            page.close()  # what it draws is no part of a request
            mlcloud.connect()
            rows += forwarded(lab, Path(folder), environment)
        finally:
            browser.close()
            lab.close()
            mlcloud.connect().cluster.down()
    report("lab", rows, rounds=rounds, cpus=os.cpu_count(), load=os.getloadavg()[0])


def size() -> dict[str, Any]:
    scripts = list((EXTENSION / "static").glob("*.js"))
    packed = sum(len(gzip.compress(each.read_bytes())) for each in scripts)
    return {"what": "scripts, gzip", "value": packed / 1000, "unit": "KB", "aim": 50}


def start(browser: Any, lab: Lab, rounds: int) -> list[dict[str, Any]]:
    """In turns, since the machine's other work comes and goes. The first of each is left out."""
    times: dict[bool, list[float]] = {True: [], False: []}
    own: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(rounds + 1):
        for with_it in (True, False):
            page = browser.new_page()
            if not with_it:
                page.route("**/labextensions/mlcloud/**", lambda route: route.abort())
            cdp = page.context.new_cdp_session(page)
            cdp.send("Performance.enable", {"timeDomain": "threadTicks"})
            page.goto(f"{lab.url}/lab?token={lab.token}&reset", wait_until="commit")
            page.wait_for_function("window.jupyterapp?.restored", timeout=120_000)
            took = page.evaluate(
                "async () => { await window.jupyterapp.restored; return performance.now(); }"
            )
            told = {e["name"]: e["value"] for e in cdp.send("Performance.getMetrics")["metrics"]}
            if turn:
                times[with_it].append(took)
                own[with_it].append(1000 * told["TaskDuration"])
            page.close()
    with_it, without = (min(times[each]) for each in (True, False))
    more = statistics.median(own[True]) - statistics.median(own[False])
    return [
        {"what": "start without", "value": without, "unit": "ms"},
        {"what": "start with", "value": with_it, "unit": "ms"},
        {"what": "start, more", "value": with_it - without, "unit": "ms", "aim": 50},
        {"what": "start, more: own", "value": more, "unit": "ms", "aim": 50},
    ]


class Feed:
    """The server's end of the page's WebSocket, and the routes that a log is read by: what comes
    is what a gateway sends, in the amounts that are asked for."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.socket: Any = None
        self.sent = 0
        page.route_web_socket("**/mlcloud/events*", self._opened)
        page.route("**/mlcloud/clusters/big/**", self._asked)

    def _opened(self, socket: Any) -> None:
        self.socket = socket
        known = {"name": "big", "kind": "url", "up": True, "problem": "", "doing": ""}
        self.send({"clusters": [known]})
        items = {f"session/session-{i}": session(i, "idle") for i in range(SESSIONS)}
        self.send({"cluster": "big", "whole": True, "set": {"info": INFO, **items}, "gone": []})

    def _asked(self, route: Any) -> None:
        path, _, query = route.request.url.partition("?")
        if path.endswith("/events"):
            after = int(parse_qs(query)["after"][0])
            most = min(self.sent, after + LINES // 5)
            text = "".join(LINE.format(i) for i in range(after, most))
            event = {"seq": most, "execution_id": "e", "kind": "stream", "content": {"text": text}}
            route.fulfill(json=[event] if text else [])
        elif path.endswith("/state"):
            route.fulfill(json={"variables": [], "bytes": 0, "files": 0})
        else:
            route.fulfill(json=[])

    def send(self, frame: dict[str, Any]) -> None:
        self.socket.send(json.dumps(frame))

    def change(self, items: dict[str, Any]) -> None:
        self.send({"cluster": "big", "whole": False, "set": items, "gone": []})

    def sessions(self) -> None:
        """All of them, ten times a second, while the panel is scrolled."""
        for turn in range(10 * SECONDS):
            states = [STATES[(i // 7 + turn) % 4] for i in range(SESSIONS)]
            # Without toasts, of which 500 would be the user's doing.
            states = ["idle" if each == "moving" else each for each in states]
            self.change(
                {
                    f"session/session-{i}": session(i, each, queued=turn)
                    for i, each in enumerate(states)
                    if each != "parked"
                }
            )
            # Its height is not asked for: that would lay the page out once more.
            self.page.evaluate(
                "y => { document.querySelector('.mlcloud-tree').scrollTop = y; }",
                700 * turn % (44 * SESSIONS),
            )
            self.page.wait_for_timeout(60)

    def log(self) -> None:
        began, before = time.monotonic(), self.sent
        while (passed := time.monotonic() - began) < SECONDS:
            self.sent = before + int(LINES * passed)
            self.change({"session/session-0": session(0, "busy", last_event=self.sent)})
            self.page.wait_for_timeout(50)


def frames(browser: Any, page: Page, lab: Lab, trace: Path) -> list[dict[str, Any]]:
    feed = Feed(page)
    page.goto(f"{lab.url}/lab?token={lab.token}&reset")
    page.locator(".mlcloud-status-button").click(timeout=60_000)
    page.locator(".mlcloud-session").first.wait_for(timeout=20_000)
    rows = []

    def watched(what: str, act: Callable[[], None]) -> None:
        page.evaluate(WATCH)
        act()
        found = page.evaluate(WATCHED)
        # Once more, since a trace takes time of its own.
        browser.start_tracing(page=page, path=trace, categories=["toplevel", "__metadata"])
        act()
        browser.stop_tracing()
        rows.append({"what": what, **found, "own_ms": own_ms(json.loads(trace.read_text()))})

    watched(f"{SESSIONS} sessions", feed.sessions)
    page.evaluate("document.querySelector('.mlcloud-tree').scrollTop = 0")
    page.locator(".mlcloud-session").first.click()
    page.get_by_role("button", name="Show the log of session-0").click()
    page.wait_for_timeout(500)
    watched(f"{LINES} lines/s", feed.log)
    page.locator(".mlcloud-log", has_text=f"line {feed.sent - 1} ").wait_for(timeout=10_000)
    watched("nothing happens", lambda: page.wait_for_timeout(1000 * SECONDS))
    found = []
    for row in rows:
        for key in ("p99_ms", "longest_ms", "longest_task_ms", "own_ms"):
            aim = {"aim": 50} if key in ("longest_task_ms", "own_ms") else {}
            found.append({"what": f"{row['what']}: {key}", "value": row[key], "unit": "ms", **aim})
    return found


def own_ms(trace: dict[str, Any]) -> float:
    """The processor's time of the longest task of a page's main thread."""
    events = trace["traceEvents"]
    names = {
        (each["pid"], each["tid"]): each["args"]["name"]
        for each in events
        if each["name"] == "thread_name"
    }
    took = [
        each.get("tdur", 0) / 1000
        for each in events
        if each.get("ph") == "X" and names.get((each["pid"], each["tid"])) == "CrRendererMain"
    ]
    return max(took)


def forwarded(lab: Lab, folder: Path, environment: dict[str, str]) -> list[dict[str, Any]]:
    told = json.loads((folder / "home" / "gateway.json").read_text())
    rows = compared("", lab, "embedded", told["url"], told["token"], None)
    with Relay(folder, told["url"]) as relay:
        (folder / "pinned").mkdir()
        given = {"URL": relay.url, "TOKEN": told["token"], "FINGERPRINT": relay.fingerprint}
        other = Lab(
            folder / "pinned", {**environment, **{f"MLCLOUD_{k}": v for k, v in given.items()}}
        )
        try:
            context = pinned.context(relay.url, relay.fingerprint)
            rows += compared("pinned: ", other, relay.place, relay.url, told["token"], context)
        finally:
            other.close()
    return rows


def compared(
    what: str, lab: Lab, cluster: str, url: str, token: str, context: ssl.SSLContext | None
) -> list[dict[str, Any]]:
    """The same request, to the gateway and through the Jupyter server, in turns."""
    headers = {"Authorization": f"Bearer {token}"}
    gateway = httpx.Client(headers=headers, trust_env=False, timeout=30, verify=context or True)
    server = psutil.Process(lab.pid)
    direct, through = [], []
    before = server.cpu_times()
    for _ in range(REQUESTS):
        began = time.perf_counter()
        gateway.get(f"{url}/v1/budgets").raise_for_status()
        direct.append(time.perf_counter() - began)
        began = time.perf_counter()
        lab.http.get(f"/mlcloud/clusters/{cluster}/v1/budgets").raise_for_status()
        through.append(time.perf_counter() - began)
    gateway.close()
    after = server.cpu_times()
    own = 1000 * (after.user + after.system - before.user - before.system) / REQUESTS
    one, two = (1000 * statistics.median(each) for each in (direct, through))
    quick, quicker = (1000 * statistics.quantiles(each, n=10)[0] for each in (through, direct))
    return [
        {"what": f"{what}request to the gateway", "value": one, "unit": "ms"},
        {"what": f"{what}the same, forwarded", "value": two, "unit": "ms"},
        {"what": f"{what}forwarded, more", "value": two - one, "unit": "ms", "aim": 5},
        {"what": f"{what}of the quickest", "value": quick - quicker, "unit": "ms", "aim": 5},
        {"what": f"{what}own", "value": own, "unit": "ms", "aim": 5},
    ]


if __name__ == "__main__":
    main()
