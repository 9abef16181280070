"""From a cloud's notice to the request for a replacement, as each cloud gives it.

    given → seen     the notice is in the metadata, until the gateway was told of it: the poll, or
                     for Google the answer to a request that hangs
    seen → asked     until the session's new host is asked for, its old node having been drained
    given → back     until the session is on another node, idle

Nodes are processes of this machine, their metadata services the local cloud's. The poll is 1 s.

    python benchmarks/notices.py [--rounds 5] [--clouds aws gcp azure]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from report import report

import mlcloud
from mlcloud.client.session import Session

WAIT_S = 120.0
NOTICE_S = 20.0  # longer than a machine takes to start


def until(condition: Any, what: str) -> Any:
    end = time.monotonic() + WAIT_S
    while not (found := condition()):
        if time.monotonic() > end:
            raise RuntimeError(f"not within {WAIT_S:.0f} s: {what}")
        time.sleep(0.05)
    return found


def at(session: Session, after: int, kind: str, text: str) -> float | None:
    """When the first event of this kind with this text was written, after event `after`."""
    while batch := session.events(after):
        for each in batch:
            if each["kind"] == kind and text in each["content"].get("text", ""):
                return float(each["time"])
        after = batch[-1]["seq"]
    return None


def one(session: Session, client: mlcloud.Client) -> dict[str, float]:
    node, after = session.info.node, session.info.last_event
    given = time.time()
    client.cluster.preempt(session, NOTICE_S)
    asked = until(lambda: at(session, after, "status", "asking for a node"), "one is asked for")
    told = at(session, after, "story", "notice: ")
    assert told is not None
    until(lambda: session.info.node not in (node, None) and session.state == "idle", "it moved")
    return {
        "given → seen": told - given,
        "seen → asked": asked - told,
        "given → back": time.time() - given,
    }


def measure(cloud: str, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as home:
        os.environ |= {
            "MLCLOUD_HOME": str(Path(home) / "home"),
            "MLCLOUD_METADATA": cloud,
            "MLCLOUD_OFFER_COOLDOWN": "1s",
        }
        client = mlcloud.connect()
        try:
            session = client.session("bench", namespace={})
            session.run("kept = 1", durable=True, quiet=True)
            found = [one(session, client) for _ in range(rounds)]
        finally:
            client.cluster.down()
    row: dict[str, Any] = {"cloud": cloud}
    for name in found[0]:
        values = [each[name] for each in found]
        row[f"{name} p50 s"] = round(statistics.median(values), 3)
        row[f"{name} max s"] = round(max(values), 3)
    return row


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clouds", nargs="+", default=["aws", "gcp", "azure"])
    options = parser.parse_args()
    rows = [measure(cloud, options.rounds) for cloud in options.clouds]
    report("notices", rows, rounds=options.rounds)


if __name__ == "__main__":
    main()
