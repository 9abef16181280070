"""A job whose cluster is taken down while it is waited for: a word says so, nothing starts."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mlcloud
from mlcloud import errors
from tests.jobs.calls import WAIT_S
from tests.live import Embedded, until

QUIET_S = 2.0  # a feed that found no gateway looked for it every half second


def step(x: int, folder: str) -> int:
    """Waits for a file: that of the first half of the items is there from the beginning."""
    import time
    from pathlib import Path

    while not Path(folder, "go").exists() and x >= 2:
        time.sleep(0.05)
    return x + 1


def test_waiting_starts_no_cluster_and_says_how_to_go_on(
    own_cluster: Callable[..., Embedded], tmp_path: Path
) -> None:
    embedded = own_cluster(max_nodes="2", node_idle="60s")
    embedded.connect()
    remote: Any = mlcloud.remote(quiet=True, max_workers=1)(step)
    many = remote.starmap([(x, str(tmp_path)) for x in range(4)])
    until(lambda: many.info.done == 2, "half of it is done", WAIT_S)
    job = remote.submit(5, str(tmp_path))
    raised: dict[str, BaseException] = {}

    def waiting(name: str, call: Callable[[], Any]) -> threading.Thread:
        def run() -> None:
            try:
                call()
            except BaseException as error:
                raised[name] = error

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    async def awaited() -> Any:
        return await job

    calls: dict[str, Callable[[], Any]] = {
        "job": job.result,
        "awaited": lambda: asyncio.run(awaited()),
        "many": many.result,
        "logs": lambda: many.logs(follow=True),
        "wait": lambda: many.wait(WAIT_S),
    }
    threads = [waiting(name, call) for name, call in calls.items()]
    until(lambda: job.info.state.value == "queued", "it waits for its turn")
    embedded.end()  # asserts that no process of it is left
    for thread in threads:
        thread.join(WAIT_S)
    assert {name: type(each) for name, each in raised.items()} == dict.fromkeys(
        calls, errors.ClusterDown
    )
    assert f"mlcloud.attach({job.id!r})" in str(raised["job"])
    for each in (job, many):
        with pytest.raises(errors.ClusterDown, match="brings it up again"):
            _ = each.state
    time.sleep(QUIET_S)
    assert not embedded.running()
    assert not embedded.processes()
    assert not [each for each in threading.enumerate() if each.name == "mlcloud-jobs"]

    # What the word says is so.
    (tmp_path / "go").touch()
    embedded.connect()
    assert mlcloud.attach(job.id).result(WAIT_S) == 6
    assert many.result(WAIT_S) == [1, 2, 3, 4]
